#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim256_f16(forward_kernel_of<256, Half>("hdim256_f16"));
}
