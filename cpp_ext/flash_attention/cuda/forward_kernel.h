// What a file of kernels/ includes: it makes one Kernel.
#pragma once

#include "flash_attention/cuda/forward.h"
#include "flash_attention/cuda/launch.h"

namespace tensor_ops::flash::cuda {

template <int D, class T>
Kernel forward_kernel_of(const char* name) {
    constexpr int type = sizeof(T) == 1 ? FA_E4M3 : std::is_same_v<T, Bfloat16> ? FA_BF16 : FA_F16;
    return {name, D, type, Tiles<D, T>::rows, threads, sizeof(Tiles<D, T>), forward_kernel<D, T>};
}

}  // namespace tensor_ops::flash::cuda
