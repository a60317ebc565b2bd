// Recurrent layers.
#pragma once

#include "kernels/recurrent.h"

namespace tensor_ops {
namespace {

template <class Isa>
void fill(KernelTable& table) {
    table.softplus = softplus<Isa>;
    table.l2_norm = l2_norm<Isa>;
    table.causal_conv = causal_conv<Isa>;
    table.delta_rule = delta_rule<Isa>;
    table.ssm_scan = ssm_scan<Isa>;
    table.selective_scan = selective_scan<Isa>;
}

}  // namespace
}  // namespace tensor_ops
