// Starting kernels, and the list of the forward kernels that are built in.
#pragma once

#include <cstddef>

#include "flash_attention/cuda/arguments.h"
#include "flash_attention/refusal.h"

namespace tensor_ops::flash::cuda {

inline void check(cudaError_t status, const char* what) {
    if (status == cudaSuccess) return;
    cudaGetLastError();  // the caller's next look at it is not to find this one
    const fa_status kind = status == cudaErrorMemoryAllocation ? FA_OUT_OF_MEMORY : FA_DEVICE_ERROR;
    refuse(kind, "%s: %s", what, cudaGetErrorString(status));
}

// Returns once the kernel is in the stream.
inline void launch(void (*kernel)(Arguments), dim3 grid, int n_threads, std::size_t shared_bytes,
                   [[maybe_unused]] cudaStream_t stream, const Arguments& arguments) {
#if defined(FA_CUDA_SHIM)
    shim::run(kernel, grid, n_threads, shared_bytes, arguments);
#else
    // More than 48 KB must be asked for.
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          "shared memory of the kernel");
    void* given[] = {const_cast<Arguments*>(&arguments)};
    check(cudaLaunchKernel(reinterpret_cast<const void*>(kernel), grid,
                           dim3(static_cast<unsigned>(n_threads)), given, shared_bytes, stream),
          "launch of the kernel");
#endif
}

// A forward kernel for heads of up to head_dim elements.
struct Kernel {
    const char* name;
    int head_dim, type;  // fa_dtype
    int rows;            // of queries and heads, that a block computes
    int threads;
    std::size_t shared_bytes;
    void (*function)(Arguments);
};

// Each kernel has a file of its own, which makes one of these; the library knows those that are
// linked into it.
struct BuiltKernel : Kernel {
    const BuiltKernel* next;

    explicit BuiltKernel(const Kernel& kernel) : Kernel(kernel), next(first()) { first() = this; }

    static const BuiltKernel*& first() {
        static const BuiltKernel* head = nullptr;
        return head;
    }
};

}  // namespace tensor_ops::flash::cuda
