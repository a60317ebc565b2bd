#pragma once

#include "flash_attention/flash_attn.h"
#include "kernels.h"

namespace tensor_ops::flash {

// Combines partial results, which it checks before.
void combine(const KernelTable& table, int threads, const fa_combine_params* params);

}  // namespace tensor_ops::flash
