#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim256_e4m3(forward_kernel_of<256, E4m3>("hdim256_e4m3"));
}
