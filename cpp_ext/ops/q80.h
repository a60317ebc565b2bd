// Q8_0 blocks as the nodes of a cluster pass them on: what is quantised and read again a few times
// for every layer and token, so it must be quick on every CPU.  The kernels' own conversions are
// for files, go value by value, and cost 4 ns for each where these take a fraction of one.
//
// Halves are rounded to even, as dllama does on x86; the kernels, like GGML, round them away from
// 0.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace tensor_ops {

inline constexpr std::size_t q80_bytes = block_size(DType::q8_0).bytes;

// n values, a multiple of 32, to n / 32 blocks.  A block that holds NaN or infinity becomes NaN.
void quantize_q80(const KernelTable& table, const float* x, std::byte* blocks, std::size_t n);
void dequantize_q80(const KernelTable& table, const std::byte* blocks, float* y, std::size_t n);
// y = x as blocks would hold it.  y may be x.
void round_q80(const KernelTable& table, const float* x, float* y, std::size_t n);

}  // namespace tensor_ops
