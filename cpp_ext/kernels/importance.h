// What searches for scales have in common: which blocks have one, how much a column counts, and the
// scale's inverse and its rounding.
#pragma once

#include <cmath>

#include "kernels/block.h"
#include "kernels/simd.h"

namespace tensor_ops {
namespace {

// Half of the smallest step in half precision, 2^-25, is nearer to zero than to the step.
inline constexpr float least_magnitude = 0x1p-26f;

// The largest magnitude of n numbers; NaN if one is.
inline float magnitude_of(const float* x, std::size_t n) {
    float largest = 0.0f;
    for (std::size_t i = 0; i < n; ++i) {
        const float magnitude = std::fabs(x[i]);
        if (magnitude > largest || std::isnan(magnitude)) largest = magnitude;  // a NaN stays
    }
    return largest;
}

// Whether the scale of a block of this magnitude is to be searched for: smaller ones become zeros,
// the others, and NaN, NaN.
inline bool has_scale(float magnitude) {
    return magnitude >= least_magnitude && magnitude <= 0x1p30f;
}

inline float largest_of(const float* importance, std::size_t n) {
    float largest = 0.0f;
    for (std::size_t i = 0; i < n; ++i)
        if (importance[i] > largest) largest = importance[i];
    return largest;
}

// Only ratios of importance count.  A column has at least a millionth of the block's largest, so
// that there always is an error to minimise.
inline float weight_of(float importance, float largest) {
    const float share = largest > 0.0f ? importance / largest : 1.0f;
    return share > 0x1p-20f ? share : 0x1p-20f;
}

// Zero for a scale so small that no value in half precision is.
template <class V>
inline V inverse_of(V scale) {
    return xsimd::select(xsimd::abs(scale) < V(1e-30f), V(0.0f), V(1.0f) / scale);
}

inline float rounded_to_half(float value) { return half_to_float(half_from_float(value)); }

}  // namespace
}  // namespace tensor_ops
