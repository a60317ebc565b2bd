#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim64_bf16(forward_kernel_of<64, Bfloat16>("hdim64_bf16"));
}
