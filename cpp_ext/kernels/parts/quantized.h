// Products of packed matrices with activations as integers: the types whose codes are numbers.
#pragma once

#include "kernels/linear_quantized.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    fill_linear_quantized<Isa, false>(table);
}

}  // namespace
}  // namespace tensor_ops
