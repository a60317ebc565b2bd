#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim64_e4m3(forward_kernel_of<64, E4m3>("hdim64_e4m3"));
}
