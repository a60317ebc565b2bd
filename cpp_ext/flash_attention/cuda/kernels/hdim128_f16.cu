#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim128_f16(forward_kernel_of<128, Half>("hdim128_f16"));
}
