// Products with plain matrices.
#pragma once

#include "kernels/plain_matrix.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.linear_plain = linear_plain<Isa>;
    table.matmul = matmul<Isa>;
    table.matmul_scratch_floats = plain_scratch_floats<Isa>;
}

}  // namespace
}  // namespace tensor_ops
