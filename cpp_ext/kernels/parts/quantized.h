// Products of packed matrices with activations as integers.
#pragma once

#include "kernels/linear_quantized.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.activation_tile = Isa::activation_tile;
    table.quantize_activations = quantize_activations<Isa>;
    table.linear_quantized = linear_quantized<Isa>;
}

}  // namespace
}  // namespace tensor_ops
