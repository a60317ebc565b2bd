// Attention.
#pragma once

#include "kernels/attention.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.attention = attention<Isa>;
    table.attention_parts = attention_parts<Isa>;
    table.attention_merge = attention_merge<Isa>;
    table.attention_scratch_floats = attention_scratch_floats;
}

}  // namespace
}  // namespace tensor_ops
