#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim192_e4m3(forward_kernel_of<192, E4m3>("hdim192_e4m3"));
}
