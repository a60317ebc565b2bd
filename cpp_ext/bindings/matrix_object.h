// The Python objects that hold matrices.
#pragma once

#include <memory>

#include "bindings/arrays.h"
#include "ops/matrix.h"

namespace tensor_ops::bindings {

using PackedMatrixPtr = std::shared_ptr<PackedMatrix>;

// Keeps the array that the rows lie in alive.
struct RawRowsObject {
    py::object owner;
    RawRows rows;
};

}  // namespace tensor_ops::bindings
