// Packed matrices, and their products with activations as they are.
#pragma once

#include "kernels/linear_f32.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.group_rows = group_rows<Isa>;
    table.group_bytes = group_bytes<Isa>;
    table.pack = pack<Isa>;
    table.unpack = unpack<Isa>;
    table.linear_f32 = linear_f32<Isa>;
}

}  // namespace
}  // namespace tensor_ops
