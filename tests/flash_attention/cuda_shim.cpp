// The backend for GPUs and some of its kernels, to run on the CPU: see cuda/shim.h.
#undef _FORTIFY_SOURCE  // it takes a jump to another fiber for a fault
#define FA_CUDA_SHIM
#include "flash_attention/cuda/backend.cu"
#include "flash_attention/cuda/kernels/hdim128_bf16.cu"
#include "flash_attention/cuda/kernels/hdim256_f16.cu"
#include "flash_attention/cuda/kernels/hdim64_e4m3.cu"
#include "flash_attention/cuda/kernels/hdim64_f16.cu"
#include "flash_attention/cuda/kernels/hdim96_f16.cu"

// The device that this thread has chosen, as the shim of CUDA's runtime keeps it.
extern "C" [[gnu::visibility("default")]] int fa_shim_device(int chosen) {
    const int before = chosen_device;
    chosen_device = chosen;
    return before;
}
