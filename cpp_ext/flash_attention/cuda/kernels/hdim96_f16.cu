#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim96_f16(forward_kernel_of<96, Half>("hdim96_f16"));
}
