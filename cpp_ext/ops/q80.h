// Q8_0 blocks that the nodes of a cluster exchange.  They are written and read a few times for
// every layer and token, so the conversions must be fast on every CPU.  The kernels' own
// conversions are for files: they go value by value and take 4 ns for each, where these take a
// fraction of a nanosecond.
//
// Ties round to even, as in dllama on x86; in the kernels, as in GGML, they round away from 0.
#pragma once

#include <cstddef>

#include "kernels.h"

namespace tensor_ops {

inline constexpr std::size_t q80_bytes = block_size(DType::q8_0).bytes;

// n values, a multiple of 32, to n / 32 blocks.  A block that holds NaN or infinity becomes NaN.
void quantize_q80(const KernelTable& table, const float* x, std::byte* blocks, std::size_t n);
void dequantize_q80(const KernelTable& table, const std::byte* blocks, float* y, std::size_t n);
// y = x rounded to Q8_0.  y may be x.
void round_q80(const KernelTable& table, const float* x, float* y, std::size_t n);

}  // namespace tensor_ops
