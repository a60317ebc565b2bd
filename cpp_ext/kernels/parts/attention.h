// Attention.
#pragma once

#include "kernels/attention.h"
#include "kernels/index.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.attention = attention<Isa>;
    table.attention_parts = attention_parts<Isa>;
    table.attention_merge = attention_merge<Isa>;
    table.attention_scratch_floats = attention_scratch_floats;
    table.index_scores = index_scores<Isa>;
    table.block_scores = block_scores<Isa>;
    table.index_scratch_floats = index_scratch_floats<Isa>;
}

}  // namespace
}  // namespace tensor_ops
