#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim128_e4m3(forward_kernel_of<128, E4m3>("hdim128_e4m3"));
}
