#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim192_f16(forward_kernel_of<192, Half>("hdim192_f16"));
}
