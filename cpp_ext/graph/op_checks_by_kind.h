// Checks one op of a graph: a function for each kind, or for several that are alike, which
// op_kinds.h names.  Each family's are in a file, op_checks_*.cpp.
#pragma once

#include <cstddef>
#include <string>

#include "graph/op_checks.h"

namespace tensor_ops {

class OpCheck {
 public:
    OpCheck(const Graph& graph, const Op& op) : graph_(graph), op_(op) {}
    void run() const;

 private:
    // op_checks_dense.cpp
    void alike() const;
    void tokens() const;
    void head_norm() const;
    void group_norm() const;
    void linear() const;
    void linear_many() const;
    void linear_add() const;
    void residual_attention() const;
    void softcap() const;
    void swiglu_oai() const;
    void xielu() const;
    void scale_rows() const;
    void clamp() const;
    void signed_root() const;

    // op_checks_attention.cpp
    void rope() const;
    void kv_append() const;
    void latent_append() const;
    void rope_append() const;
    void attention() const;
    void index_append() const;
    void index_select() const;
    void sparse_attention() const;
    void block_mean() const;
    void choose_blocks() const;
    void block_attention() const;
    void pool_groups() const;
    void group_attention() const;
    void sparse_group_attention() const;
    void table(int buffer, std::size_t offset = 0) const;
    void group() const;
    void heads(std::size_t n) const;
    // Checks a buffer with the positions that each token sees.
    void selection(int buffer) const;
    void block_size() const;
    // Checks how many blocks each token sees.
    void blocks(std::size_t n) const;
    // Checks a buffer with the values of n heads.
    void values_of_heads(int buffer, std::size_t n) const;

    // op_checks_experts.cpp
    void route() const;
    void route_to() const;
    void expert_linear() const;
    void expert_sum() const;
    void of_experts() const;
    void scale_shares() const;
    void used_experts(std::size_t most) const;
    void experts(std::size_t most) const;

    // op_checks_recurrent.cpp
    void conv() const;
    void delta_rule() const;
    void ssm_scan() const;
    void selective_scan() const;
    void log_decay() const;

    // op_checks_streams.cpp
    void mix_streams() const;
    void hyper_factors() const;
    void hyper_mix() const;
    void add_to_streams() const;
    void match_rms() const;
    void stream_products() const;

    // op_checks_slices.cpp
    void head_linear() const;
    void take_head_columns() const;
    void join_heads() const;
    void layer_columns() const;
    void round_q8() const;
    void merge_add() const;
    void take_columns() const;
    void put_columns() const;
    // The width of each head of a buffer.
    std::size_t of_each_head(int buffer) const;
    void whole_blocks(std::size_t n) const;
    // Checks that `whole` has as many columns from the offset on as `part` is wide.
    void columns(int whole, int part) const;

    // op_checks.cpp
    // Checks that an op has no field of other kinds: some say how much is read of the memory of a
    // sequence, and the executor looks at them before it looks at the kind.
    void foreign_fields() const;

    // What the checks have in common.
    static std::size_t at(int i) { return static_cast<std::size_t>(i); }
    void require(bool truth, const std::string& fault) const {
        if (!truth) op_fault(graph_, op_, fault);
    }
    std::size_t output_width() const { return graph_.buffers[at(op_.output)].width; }
    void count_weights(std::size_t n, std::size_t least, std::size_t most) const {
        require(n >= least && n <= most, "has " + std::to_string(n) + " weights, expected " +
                                             std::to_string(least) +
                                             (least < most ? " to " + std::to_string(most) : ""));
    }
    // Checks that an input is not the output.
    void apart(std::size_t input) const {
        require(op_.inputs[input] != op_.output, "cannot overwrite its input");
    }
    void width_of(int buffer, std::size_t expected) const {
        const Buffer& b = graph_.buffers[at(buffer)];
        require(b.width == expected, "buffer '" + b.name + "' has width " +
                                         std::to_string(b.width) + ", expected " +
                                         std::to_string(expected));
    }
    void width(std::size_t input, std::size_t expected) const {
        width_of(op_.inputs[input], expected);
    }
    std::size_t input_width(std::size_t input) const {
        return graph_.buffers[at(op_.inputs[input])].width;
    }

#define TENSOR_OPS_CHECK(kind, inputs, outputs, weights, check) &OpCheck::check,
    static constexpr void (OpCheck::* checks[])() const = {TENSOR_OPS_OP_KINDS(TENSOR_OPS_CHECK)};
#undef TENSOR_OPS_CHECK

    const Graph& graph_;
    const Op& op_;
};

}  // namespace tensor_ops
