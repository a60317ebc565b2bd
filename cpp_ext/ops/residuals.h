// Layers that see the residuals of earlier layers.
#pragma once

#include "ops/ops.h"

namespace tensor_ops {

// Each row becomes a mean of itself and of the first n_earlier rows of n values that
// earlier[r * stride ...] has: y = sum_j p_j s_j, p = softmax over j of sum_i w[i]
// rms_norm(s_j)[i].  Scores and shares are computed in double.  The error of y is n_earlier + 2
// roundings of float32 of sum_j p_j |s_j|.  y is neither x nor in earlier; n_earlier is at most
// residual_attention_max_earlier.
inline constexpr std::size_t residual_attention_max_earlier = 256;
struct ResidualAttention {
    const float* x;
    const float* earlier;
    std::size_t stride;
    std::size_t n_earlier;
    const float* weight;
    float eps;
    std::size_t rows;
    std::size_t n;
    float* y;
};
void residual_attention(const Worker& worker, const ResidualAttention& task);

}  // namespace tensor_ops
