// Checks of ops: what has memory that each token of a sequence changes.
#include <algorithm>

#include "graph/op_checks_by_kind.h"
#include "ops/recurrent.h"

namespace tensor_ops {

void OpCheck::conv() const {
    require(
        op_.taps >= 1 && op_.taps <= conv_max_taps,
        "taps is " + std::to_string(op_.taps) + ", expected 1 to " + std::to_string(conv_max_taps));
    require(op_.dilation >= 1 && op_.dilation <= most_dilation,
            "dilation is " + std::to_string(op_.dilation) + ", expected 1 to " +
                std::to_string(most_dilation));
    alike();
}

void OpCheck::delta_rule() const {
    const std::size_t heads = op_.n_heads, keys = op_.n_kv_heads, decays = input_width(3);
    require(heads >= 1 && keys >= 1 && heads % keys == 0, "n_heads is no multiple of n_kv_heads");
    const std::size_t d_k = input_width(0) / keys;
    require(d_k >= 1 && d_k <= delta_rule_max_key_dim, "keys of " + std::to_string(d_k) +
                                                           ", expected 1 to " +
                                                           std::to_string(delta_rule_max_key_dim));
    width(0, keys * d_k);
    width(1, keys * d_k);
    width(2, output_width());
    require(output_width() % heads == 0 && output_width() / heads <= longest_row / d_k,
            "the output does not divide into n_heads");
    require(decays == heads || decays == heads * d_k, "the decay's width is " +
                                                          std::to_string(decays) +
                                                          ", expected one for each head, "
                                                          "or for each of its keys");
    width(4, heads);
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
}

void OpCheck::ssm_scan() const {
    const std::size_t heads = input_width(1), groups = op_.n_groups;
    require(heads >= 1 && output_width() % heads == 0, "the output does not divide into heads");
    require(groups >= 1 && heads % groups == 0 && input_width(2) % groups == 0,
            "n_groups does not divide the heads, or b");
    width(0, output_width());
    width(3, input_width(2));
    require(output_width() <= longest_row / std::max<std::size_t>(1, input_width(2) / groups),
            "the state is too large");
    require(op_.dt_min >= 0.0f && op_.dt_min <= op_.dt_max, "dt_min is not below dt_max");
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
}

void OpCheck::selective_scan() const {
    width(0, output_width());
    width(1, output_width());
    width(3, input_width(2));
    require(output_width() <= longest_row / std::max<std::size_t>(1, input_width(2)),
            "the state is too large");
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
}

void OpCheck::log_decay() const {
    require(op_.bound <= 0.0f, "bound is above 0");
    alike();
}

}  // namespace tensor_ops
