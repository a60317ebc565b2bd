// The Python objects that hold matrices.
#pragma once

#include <memory>
#include <optional>

#include "bindings/arrays.h"
#include "bindings/made.h"
#include "ops/matrix.h"

namespace tensor_ops::bindings {

using PackedMatrixPtr = std::shared_ptr<PackedMatrix>;

// Converts "q8", "q16" or "f32"; gives nothing for "auto".
inline std::optional<Activations> activations_argument(const char* op, py::handle value) {
    const std::size_t i = choice({op, "activations", value}, {"auto", "q8", "q16", "f32"});
    return i == 0 ? std::nullopt : std::optional(static_cast<Activations>(i - 1));
}

// Keeps the array that the rows lie in alive.
struct RawRowsObject {
    py::object owner;
    RawRows rows;
};

}  // namespace tensor_ops::bindings

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::PackedMatrix>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::PackedMatrix> {};
template <>
class type_caster<tensor_ops::bindings::RawRowsObject>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::bindings::RawRowsObject> {};
}  // namespace pybind11::detail

namespace tensor_ops::bindings {

// The object as a PackedMatrix, or null if it is none.  Throws py::type_error for a PackedMatrix
// that was never initialised.
inline PackedMatrixPtr packed_matrix(py::handle object) {
    const auto* type = py::detail::get_type_info(typeid(PackedMatrix));
    if (!PyType_IsSubtype(Py_TYPE(object.ptr()), type->type)) return nullptr;
    static_cast<void>(object.cast<const PackedMatrix&>());
    return object.cast<PackedMatrixPtr>();
}

}  // namespace tensor_ops::bindings
