// The Python objects that hold matrices.
#pragma once

#include <memory>
#include <optional>

#include "bindings/arrays.h"
#include "ops/matrix.h"

namespace tensor_ops::bindings {

using PackedMatrixPtr = std::shared_ptr<PackedMatrix>;

// Nothing for "auto".
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
