#include "flash_attention/cuda/forward_kernel.h"

namespace tensor_ops::flash::cuda {
static const BuiltKernel hdim96_e4m3(forward_kernel_of<96, E4m3>("hdim96_e4m3"));
}
