#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim256_bf16(forward_kernel_of<256, Bfloat16>("hdim256_bf16"));
}
