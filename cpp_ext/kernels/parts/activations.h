// Activations as integers.  An object of their own: with the products, GCC takes 755 MB for ARM's.
#pragma once

#include "kernels/activations.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.activation_tile = Isa::activation_tile;
    table.quantize_activations = quantize_activations<Isa>;
}

}  // namespace
}  // namespace tensor_ops
