// The words of CUDA that the kernels are written in. nvcc knows them; for tests without a GPU,
// FA_CUDA_SHIM has shim.h run the same kernels on the CPU.
#pragma once

#if defined(FA_CUDA_SHIM)
#include "flash_attention/cuda/shim.h"
#else
#include <cuda_runtime.h>
#endif

namespace tensor_ops::flash::cuda {

inline constexpr int warp = 32;

// Memory that the threads of a block share, as many bytes as the launch says.
__device__ inline unsigned char* shared_memory() {
#if defined(FA_CUDA_SHIM)
    return shim::shared_memory();
#else
    extern __shared__ __align__(16) unsigned char memory[];
    return memory;
#endif
}

// The value of the lane whose number differs from this one's in the bits of `mask`.
__device__ inline float other_lane(float x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}

}  // namespace tensor_ops::flash::cuda
