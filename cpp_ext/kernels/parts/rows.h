// Elements, rows and file formats.
#pragma once

#include "kernels/blocks.h"
#include "kernels/elementwise.h"
#include "kernels/k_blocks.h"
#include "kernels/rows.h"
#include "kernels/weighted_blocks.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.vector_floats = lanes<Isa>;
    table.sigmoid = sigmoid<Isa>;
    table.silu = silu<Isa>;
    table.gelu_tanh = gelu_tanh<Isa>;
    table.gelu_erf = gelu_erf<Isa>;
    table.elu = elu<Isa>;
    table.swiglu = swiglu<Isa>;
    table.add = add<Isa>;
    table.rms_norm = rms_norm<Isa>;
    table.layer_norm = layer_norm<Isa>;
    table.softmax = softmax<Isa>;
    table.rope = rope<Isa>;
    table.from_float = from_float;
    table.quantize_k = quantize_k<Isa>;
    table.quantize_weighted = quantize_weighted<Isa>;
    table.to_float = to_float;
}

}  // namespace
}  // namespace tensor_ops
