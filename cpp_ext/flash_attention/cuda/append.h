// Writes new keys and values into the cache: a block for each new row of a KV head.
#pragma once

#include "flash_attention/cuda/rotary.h"

namespace tensor_ops::flash::cuda {

template <class T>
__device__ T element(float x) {
    T to;
    set(to, x);
    return to;
}
template <>
__device__ inline E4m3 element<E4m3>(float) {
    return {0x7f};  // e4m3 is never rotated
}

template <class T>
__global__ void append_kernel(const __grid_constant__ Arguments a) {
    const int head = static_cast<int>(blockIdx.y), j = static_cast<int>(blockIdx.x);
    const Place s = place_of(a, static_cast<int>(blockIdx.z));
    if (j >= s.n_new) return;
    const T* k = row_of<T>(a.k_new, s.index, s.new_first + j, head);
    const T* v = row_of<T>(a.v_new, s.index, s.new_first + j, head);
    T* k_to = cache_row<T>(a, s, a.k, s.used + j, head);
    T* v_to = cache_row<T>(a, s, a.v, s.used + j, head);
    const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
    for (int c = first; c < a.k_dim; c += step)
        k_to[c] = c < a.rotary_dim ? element<T>(rotated(a, k, c, s.rotary + j)) : k[c];
    for (int c = first; c < a.value_dim; c += step) v_to[c] = v[c];
}

}  // namespace tensor_ops::flash::cuda
