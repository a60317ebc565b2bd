// Every kind of op in a form that fits, for the tests of what does not.
#pragma once

#include <functional>

#include "graphs.h"

namespace op_forms {

using graphs::Builder;
using graphs::OpKind;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;

// An op that fits.  tied: of each input and then of the output, whether another width does not fit.
struct Form {
    OpKind kind;
    std::vector<std::size_t> inputs;
    std::vector<std::size_t> outputs;
    std::size_t n_weights;
    std::vector<bool> tied;
    void (*set)(Op&) = [](Op&) {};
};

inline void set_heads(Op& op) {
    op.n_heads = 4;
    op.n_kv_heads = 2;
    op.head_dim = 16;
}
inline void use_two(Op& op) { op.n_used = 2; }
inline void two_choices(Op& op) {
    set_heads(op);
    op.n_choices = 2;
    op.block_size = 4;
}
inline void four_of_each(Op& op) {
    set_heads(op);
    op.block_size = op.n_chosen = 4;
}
inline void four_of_all(Op& op) {
    four_of_each(op);
    op.pooled = true;
}
inline void windowed(Op& op) {
    set_heads(op);
    op.window = op.every = 4;
}
inline void four_in_two_parts(Op& op) {
    op.every = 4;
    op.n_parts = 2;
}
inline void two_earlier(Op& op) { op.n_earlier = 2; }
inline void two_groups(Op& op) {
    op.n_groups = 2;
    op.dt_max = 1.0f;
}
inline void from_32(Op& op) { op.offset = 32; }
inline void from_block_1(Op& op) {
    op.offset = 32;
    op.quantized = true;
}

inline const std::vector<Form>& forms() {
    using enum OpKind;
    static const std::vector<Form> all = {
        {embed, {1}, {64}, 1, {true, false}},
        {rms_norm, {64}, {64}, 1, {true, true}},
        {quantized_norm, {64}, {64}, 1, {true, true}},
        {head_norm, {64}, {64}, 1, {true, true}, set_heads},
        {bias, {64}, {64}, 1, {true, true}},
        {linear, {64}, {32}, 1, {false, false}},
        {linear_many, {64}, {32, 16}, 2, {false, false, false}},
        {linear_add, {64, 32}, {32}, 1, {false, true, true}},
        {glu_linear, {64}, {32}, 2, {false, false}},
        {rope, {64, 12}, {64}, 0, {true, true, true}, set_heads},
        {rope_append, {32, 32, 12}, {}, 0, {true, true, true}, set_heads},
        {kv_append, {32, 32}, {}, 0, {true, true}, set_heads},
        {latent_append, {32}, {}, 0, {true}, set_heads},
        {attention, {64}, {64}, 0, {true, true}, set_heads},
        {index_append, {16}, {}, 0, {true}, set_heads},
        {index_select, {64, 4}, {8}, 0, {true, true, false}, set_heads},
        {sparse_attention, {64, 8}, {64}, 0, {true, false, true}, set_heads},
        {block_mean, {64}, {64}, 0, {true, true}},
        {choose_blocks, {64}, {16}, 0, {true, true}, four_of_each},
        {choose_blocks, {64}, {5}, 0, {true, true}, four_of_all},
        {block_attention, {64, 8}, {64}, 0, {true, true, true}, two_choices},
        {pool_groups, {64, 64}, {32}, 1, {true, true, true}, four_in_two_parts},
        {group_append, {16}, {}, 0, {true}, set_heads},
        {group_attention, {64}, {64}, 0, {true, true}, windowed},
        {sparse_group_attention, {64, 8}, {64}, 0, {true, false, true}, windowed},
        {conv, {64}, {64}, 1, {true, true}, [](Op& op) { op.taps = 4; }},
        {delta_rule, {32, 32, 64, 4, 4}, {64}, 0, {true, true, true, true, true, true}, set_heads},
        {ssm_scan, {64, 4, 32, 32}, {64}, 3, {true, true, true, true, true}, two_groups},
        {selective_scan, {64, 64, 16, 16}, {64}, 1, {true, true, true, true, true}},
        {l2_norm, {64}, {64}, 0, {true, true}, set_heads},
        {log_decay, {64}, {64}, 2, {true, true}},
        {group_norm, {64}, {64}, 1, {true, true}, two_groups},
        {residual_attention, {64, 192}, {64}, 1, {true, true, true}, two_earlier},
        {mix_streams, {64, 6}, {96}, 0, {true, true, true}, [](Op& op) { op.n_streams = 2; }},
        {stream_products, {64, 64}, {2}, 0, {true, true, true}, [](Op& op) { op.n_streams = 2; }},
        {signed_root, {64}, {64}, 0, {true, true}},
        {hyper_factors, {15}, {15}, 2, {true, true}, [](Op& op) { op.n_streams = 3; }},
        {hyper_factors, {3}, {3}, 2, {true, true}, [](Op& op) { op.n_streams = 3; }},
        {hyper_mix,
         {48, 16, 15},
         {48},
         0,
         {true, true, true, true},
         [](Op& op) { op.n_streams = 3; }},
        {add_to_streams, {96, 32}, {96}, 0, {true, true, true}},
        {match_rms, {96, 32}, {96}, 0, {true, true, true}},
        {keep_above, {64}, {64}, 0, {true, true}},
        {swiglu, {64, 64}, {64}, 0, {true, true, true}},
        {geglu, {64, 64}, {64}, 0, {true, true, true}},
        {add, {64, 64}, {64}, 0, {true, true, true}},
        {multiply, {64, 64}, {64}, 0, {true, true, true}},
        {softcap, {64}, {64}, 0, {true, true}, [](Op& op) { op.cap = 1.0f; }},
        {sigmoid, {64}, {64}, 0, {true, true}},
        {softplus, {64}, {64}, 0, {true, true}},
        {relu_squared, {64}, {64}, 0, {true, true}},
        {swiglu_oai, {64, 64}, {64}, 0, {true, true, true}, [](Op& op) { op.limit = 1.0f; }},
        {scale, {64}, {64}, 0, {true, true}},
        {scale_rows, {64, 4}, {64}, 0, {true, true, true}},
        {clamp, {64}, {64}, 0, {true, true}},
        {layer_norm, {64}, {64}, 1, {true, true}},
        {expert_bias, {64, 4}, {64}, 1, {true, true, true}, use_two},
        {expert_scale, {64, 4}, {64}, 1, {true, true, true}, use_two},
        {silu, {64}, {64}, 0, {true, true}},
        {gelu, {64}, {64}, 0, {true, true}},
        {gelu_erf, {64}, {64}, 0, {true, true}},
        {xielu, {64}, {64}, 0, {true, true}},
        {round_q8, {64}, {64}, 0, {true, true}},
        {route, {8}, {4}, 0, {false, true}, use_two},
        {route_to, {8, 2}, {4}, 0, {false, true, true}, use_two},
        {expert_linear, {64, 4}, {32}, 1, {false, true, true}, use_two},
        {expert_sum, {64, 4}, {32}, 0, {true, true, true}, use_two},
        {head_linear, {64}, {32}, 1, {true, true}, set_heads},
        {take_head_columns, {64}, {32}, 0, {true, true}, set_heads},
        {join_heads, {64, 32}, {96}, 0, {true, true, true}, set_heads},
        {scale_shares, {4}, {4}, 1, {true, true}, use_two},
        {layer_columns, {96}, {32}, 0, {true, true}},
        {merge_add, {32, 96}, {32}, 0, {true, true, true}},
        {take_columns, {96}, {64}, 0, {false, true}, from_32},
        {put_columns, {64}, {96}, 0, {true, false}, from_32},
        {take_columns, {96}, {64}, 0, {true, true}, from_block_1},
        {put_columns, {64}, {96}, 0, {true, true}, from_block_1},
    };
    return all;
}

inline Builder built(const Form& form) {
    Builder b;
    std::vector<int> inputs, outputs;
    for (const std::size_t width : form.inputs) inputs.push_back(b.external("in", width));
    for (const std::size_t width : form.outputs) outputs.push_back(b.external("out", width));
    Op& op = b.op(form.kind, inputs, outputs.empty() ? -1 : outputs[0],
                  form.n_weights ? b.slot("w") : -1);
    for (std::size_t i = 1; i < outputs.size(); ++i) op.more_outputs.push_back(outputs[i]);
    for (std::size_t i = 1; i < form.n_weights; ++i) op.more_weights.push_back(b.slot("more"));
    form.set(op);
    return b;
}

// The first form of that kind, with a change to its graph, is refused in such words.
inline void refused(OpKind kind, const std::function<void(Graph&, Op&)>& change, const char* words,
                    std::source_location where = std::source_location::current()) {
    for (const Form& form : forms()) {
        if (form.kind != kind) continue;
        Builder b = built(form);
        change(b.graph, b.graph.ops[0]);
        return check::refused([&] { Executor(b.graph, 2); },
                              std::string(op_kind_name(kind)) + words, where);
    }
}

// The first form of that kind, with a change to its graph, is taken.
inline void taken(OpKind kind, const std::function<void(Graph&, Op&)>& change,
                  std::source_location where = std::source_location::current()) {
    for (const Form& form : forms()) {
        if (form.kind != kind) continue;
        Builder b = built(form);
        change(b.graph, b.graph.ops[0]);
        try {
            Executor(b.graph, 2);
        } catch (const std::invalid_argument& error) {
            check::fail(error.what(), where);
        }
        return;
    }
}

}  // namespace op_forms
