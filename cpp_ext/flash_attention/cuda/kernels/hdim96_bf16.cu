#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim96_bf16(forward_kernel_of<96, Bfloat16>("hdim96_bf16"));
}
