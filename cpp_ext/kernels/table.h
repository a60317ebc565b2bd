// Fills the function table of one ISA.  Included by isa/<name>.cpp only, which defines
//
//     struct Isa {
//         using Arch = xsimd::...;                            // what xsimd calls it
//         using Int8 = ...; using HalfLoad = ...;             // from intrinsics.h
//         static constexpr std::size_t float_tile = ...;      // rows of the float microkernel
//         static constexpr std::size_t activation_tile = ...; // of the 8-bit one, a power of 2
//     };
#pragma once

#include "kernels.h"
#include "kernels/attention.h"
#include "kernels/elementwise.h"
#include "kernels/linear_quantized.h"
#include "kernels/plain_matrix.h"
#include "kernels/rows.h"

namespace tensor_ops {
namespace {

template <class Isa>
constexpr KernelTable make_table(const char* name) {
    return {
        .isa = name,
        .vector_floats = lanes<Isa>,
        .silu = silu<Isa>,
        .gelu_tanh = gelu_tanh<Isa>,
        .gelu_erf = gelu_erf<Isa>,
        .swiglu = swiglu<Isa>,
        .add = add<Isa>,
        .stream = stream<Isa>,
        .rms_norm = rms_norm<Isa>,
        .softmax = softmax<Isa>,
        .rope = rope<Isa>,
        .from_float = from_float,
        .to_float = to_float,
        .group_rows = group_rows<Isa>,
        .group_bytes = group_bytes<Isa>,
        .pack = pack<Isa>,
        .unpack = unpack<Isa>,
        .activation_tile = Isa::activation_tile,
        .quantize_activations = quantize_activations<Isa>,
        .linear_quantized = linear_quantized<Isa>,
        .linear_f32 = linear_f32<Isa>,
        .linear_plain = linear_plain<Isa>,
        .matmul = matmul<Isa>,
        .matmul_scratch_floats = gemm_scratch_floats,
        .attention = attention<Isa>,
        .attention_parts = attention_parts<Isa>,
        .attention_merge = attention_merge<Isa>,
        .attention_scratch_floats = attention_scratch_floats,
    };
}

}  // namespace
}  // namespace tensor_ops
