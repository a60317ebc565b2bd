// Rotation of a row by the angles of its position.
#pragma once

#include "flash_attention/cuda/arguments.h"
#include "flash_attention/cuda/numbers.h"
#include "flash_attention/flash_attn.h"

namespace tensor_ops::flash::cuda {

__device__ inline float table_value(const Arguments& a, const unsigned char* table,
                                    std::int64_t i) {
    if (a.table_type == FA_F32) return reinterpret_cast<const float*>(table)[i];
    if (a.table_type == FA_F16) return value(reinterpret_cast<const Half*>(table)[i]);
    return value(reinterpret_cast<const Bfloat16*>(table)[i]);
}

// Element c of a row, rotated by the angles of `position`.
template <class T>
__device__ float rotated(const Arguments& a, const T* row, int c, int position) {
    const float own = value(row[c]);
    if (c >= a.rotary_dim) return own;
    const int half = a.rotary_dim / 2;
    const bool first = a.interleaved ? c % 2 == 0 : c < half;
    const int pair = a.interleaved ? c / 2 : c % half;
    const float other = value(row[a.interleaved ? c ^ 1 : first ? c + half : c - half]);
    const float cosine = table_value(a, a.rotary_cos, position * a.cos_row + pair),
                sine = table_value(a, a.rotary_sin, position * a.sin_row + pair);
    return first ? own * cosine - other * sine : own * cosine + other * sine;
}

}  // namespace tensor_ops::flash::cuda
