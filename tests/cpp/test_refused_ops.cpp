// Every kind of op: the form that fits is taken, and a change of any one thing about it that lets
// it read or write outside of its buffers, or over what it still reads, is refused.

#include <functional>
#include <limits>

#include "graphs.h"

using graphs::Builder;
using graphs::OpKind;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;

namespace {

// An op that fits.  tied: of each input and then of the output, whether another width does not fit.
struct Form {
    OpKind kind;
    std::vector<std::size_t> inputs;
    std::vector<std::size_t> outputs;
    std::size_t n_weights;
    std::vector<bool> tied;
    void (*set)(Op&) = [](Op&) {};
};

void set_heads(Op& op) {
    op.n_heads = 4;
    op.n_kv_heads = 2;
    op.head_dim = 16;
}
void use_two(Op& op) { op.n_used = 2; }
void two_choices(Op& op) {
    set_heads(op);
    op.n_choices = 2;
    op.block_size = 4;
}
void four_of_each(Op& op) {
    set_heads(op);
    op.block_size = op.n_chosen = 4;
}
void four_of_all(Op& op) {
    four_of_each(op);
    op.pooled = true;
}
void windowed(Op& op) {
    set_heads(op);
    op.window = op.every = 4;
}
void four_in_two_parts(Op& op) {
    op.every = 4;
    op.n_parts = 2;
}
void two_earlier(Op& op) { op.n_earlier = 2; }
void two_groups(Op& op) {
    op.n_groups = 2;
    op.dt_max = 1.0f;
}
void from_32(Op& op) { op.offset = 32; }
void from_block_1(Op& op) {
    op.offset = 32;
    op.quantized = true;
}

const std::vector<Form>& forms() {
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
        {relu_squared, {64}, {64}, 0, {true, true}},
        {swiglu_oai, {64, 64}, {64}, 0, {true, true, true}, [](Op& op) { op.limit = 1.0f; }},
        {scale, {64}, {64}, 0, {true, true}},
        {scale_rows, {64, 1}, {64}, 0, {true, true, true}},
        {layer_norm, {64}, {64}, 1, {true, true}},
        {expert_bias, {64, 4}, {64}, 1, {true, true, true}, use_two},
        {silu, {64}, {64}, 0, {true, true}},
        {gelu, {64}, {64}, 0, {true, true}},
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

Builder built(const Form& form) {
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
void refused(OpKind kind, const std::function<void(Graph&, Op&)>& change, const char* words,
             std::source_location where = std::source_location::current()) {
    for (const Form& form : forms()) {
        if (form.kind != kind) continue;
        Builder b = built(form);
        change(b.graph, b.graph.ops[0]);
        return check::refused([&] { Executor(b.graph, 2); },
                              std::string(op_kind_name(kind)) + words, where);
    }
}

// An op with all buffers of one width that writes to its input i.
void refused_in_place(OpKind kind, std::size_t i, std::size_t width, void (*set)(Op&),
                      std::source_location where = std::source_location::current()) {
    refused(
        kind,
        [&](Graph& graph, Op& op) {
            for (auto& buffer : graph.buffers) buffer.width = width;
            set(op);
            op.output = op.inputs[i];
        },
        " -> 'in': cannot overwrite its", where);
}

}  // namespace

TEST(there_is_a_form_of_every_op_and_it_is_taken) {
    std::vector<bool> seen(std::size(tensor_ops::signatures));
    for (const Form& form : forms()) {
        seen[static_cast<std::size_t>(form.kind)] = true;
        Executor(built(form).graph, 2);
    }
    for (std::size_t kind = 0; kind < seen.size(); ++kind)
        check::that(seen[kind], op_kind_name(static_cast<OpKind>(kind)));
}

TEST(each_width_that_must_fit_is_checked) {
    for (const Form& form : forms())
        for (std::size_t i = 0; i < form.tied.size(); ++i) {
            Builder b = built(form);
            b.graph.buffers[i].width += 1;
            if (form.tied[i])
                check::refused([&] { Executor(b.graph, 2); }, op_kind_name(form.kind));
            else
                Executor(b.graph, 2);
        }
}

TEST(each_input_output_and_weight_must_be_there) {
    for (const Form& form : forms()) {
        const Builder b = built(form);
        const auto check_refused = [&](void (*change)(Op&)) {
            Graph graph = b.graph;
            change(graph.ops[0]);
            check::refused([&] { Executor(graph, 2); }, op_kind_name(form.kind));
        };
        check_refused([](Op& op) { op.inputs.push_back(0); });
        check_refused([](Op& op) { op.inputs.pop_back(); });
        check_refused([](Op& op) { op.inputs[0] = -1; });
        check_refused([](Op& op) { op.inputs.back() = 99; });
        check_refused([](Op& op) { op.output = op.output < 0 ? 0 : -1; });
        check_refused([](Op& op) { op.output = 99; });
        // An op whose weight is optional may go without it.
        if (form.n_weights == 0 || tensor_ops::signature(form.kind).weights.least > 0)
            check_refused([](Op& op) { op.weight = op.weight < 0 ? 0 : -1; });
        check_refused([](Op& op) { op.weight = 99; });
        check_refused([](Op& op) { op.more_outputs.push_back(op.inputs[0]); });
        check_refused([](Op& op) { op.more_weights.push_back(0); });
    }
    for (const int bad : {-1, 99}) {
        refused(
            OpKind::linear_many, [&](Graph&, Op& op) { op.more_outputs[0] = bad; },
            " -> 'out': the output is no buffer");
        for (const OpKind kind : {OpKind::linear_many, OpKind::glu_linear})
            refused(
                kind, [&](Graph&, Op& op) { op.more_weights[0] = bad; },
                " -> 'out': the weight is no slot");
    }
}

TEST(an_op_that_reads_what_it_would_have_overwritten_is_refused) {
    using enum OpKind;
    const auto nothing = [](Op&) {};
    const auto one = [](Op& op) { op.n_used = 1; };
    const auto from_start = [](Op& op) { op.offset = 0; };
    const auto one_head = [](Op& op) {
        op.n_heads = op.n_kv_heads = 1;
        op.head_dim = 16;
    };
    for (const OpKind kind : {linear, linear_many, glu_linear})
        refused_in_place(kind, 0, 64, nothing);
    refused_in_place(linear_add, 0, 64, nothing);
    refused_in_place(attention, 0, 16, one_head);
    const auto one_choice = [](Op& op) {
        op.n_heads = op.n_kv_heads = op.n_choices = op.block_size = 1;
        op.head_dim = op.n_chosen = 16;
    };
    refused_in_place(choose_blocks, 0, 16, one_choice);
    const auto one_windowed = [](Op& op) {
        op.n_heads = op.window = 1;
        op.head_dim = 16;
    };
    refused_in_place(group_attention, 0, 16, one_windowed);
    refused_in_place(hyper_factors, 0, 3, nothing);
    for (const std::size_t input : {0u, 1u}) {
        refused_in_place(block_attention, input, 16, one_choice);
        refused_in_place(stream_products, input, 1, [](Op& op) { op.n_streams = 1; });
        refused_in_place(sparse_attention, input, 16, one_head);
        refused_in_place(sparse_group_attention, input, 16, one_windowed);
        refused_in_place(hyper_mix, 1 + input, 3, [](Op& op) { op.n_streams = 1; });
        refused_in_place(pool_groups, input, 16, [](Op& op) { op.n_parts = 1; });
        refused_in_place(index_select, input, 16, [](Op& op) {
            op.n_heads = 16;
            op.head_dim = 1;
        });
    }
    refused_in_place(rope, 1, 16, one_head);
    refused_in_place(route, 0, 2, one);
    for (const std::size_t input : {0u, 1u}) {
        refused_in_place(expert_linear, input, 2, one);
        refused_in_place(expert_sum, input, 2, one);
    }
    refused_in_place(merge_add, 1, 64, nothing);
    refused_in_place(head_linear, 0, 16, one_head);
    refused_in_place(take_head_columns, 0, 16, one_head);
    for (const std::size_t input : {0u, 1u}) refused_in_place(join_heads, input, 32, one_head);
    for (const OpKind kind : {take_columns, put_columns}) refused_in_place(kind, 0, 64, from_start);
    refused(
        linear_many, [](Graph&, Op& op) { op.more_outputs[0] = op.inputs[0]; },
        " -> 'out': cannot overwrite its input");
    refused(
        linear_many, [](Graph&, Op& op) { op.more_outputs[0] = op.output; },
        " -> 'out': writes a buffer twice");
}

TEST(numbers_of_heads_experts_and_matrices_have_bounds) {
    using enum OpKind;
    for (const std::size_t heads : {std::size_t{0}, (std::size_t{1} << 20) + 1}) {
        for (const OpKind kind : {rope, attention})
            refused(
                kind, [&](Graph&, Op& op) { op.n_heads = heads; },
                " -> 'out': the number of heads is out of range");
        for (const OpKind kind : {rope_append, kv_append})
            refused(
                kind, [&](Graph&, Op& op) { op.n_kv_heads = heads; },
                ": the number of heads is out of range");
        refused(
            attention, [&](Graph&, Op& op) { op.n_kv_heads = heads; },
            " -> 'out': the number of heads is out of range");
    }
    for (const OpKind kind : {index_select, sparse_attention})
        for (const std::size_t width : {std::size_t{0}, (std::size_t{1} << 16) + 1})
            refused(
                kind,
                [&](Graph& graph, Op& op) {
                    const int selection = kind == index_select ? op.output : op.inputs[1];
                    graph.buffers[static_cast<std::size_t>(selection)].width = width;
                },
                (" -> 'out': selects " + std::to_string(width) + " positions").c_str());
    for (const std::size_t every : {0u, 4097u})
        for (const OpKind kind : {pool_groups, group_attention, sparse_group_attention})
            refused(kind, [&](Graph&, Op& op) { op.every = every; }, " -> 'out': every is ");
    for (const std::size_t parts : {0u, 3u})
        refused(pool_groups, [&](Graph&, Op& op) { op.n_parts = parts; }, " -> 'out': n_parts is");
    refused(group_attention, [](Graph&, Op& op) { op.window = 0; }, " -> 'out': window is 0");
    for (const std::size_t streams : {0u, 17u})
        for (const OpKind kind : {hyper_factors, hyper_mix})
            refused(
                kind, [&](Graph&, Op& op) { op.n_streams = streams; },
                " -> 'out': n_streams is out of range");
    refused(
        hyper_factors, [](Graph&, Op& op) { op.n_iterations = 0; },
        " -> 'out': n_iterations is out of range");
    refused(rope, [](Graph&, Op& op) { op.offset = 16; }, " -> 'out': offset is not below");
    refused(
        rope, [](Graph&, Op& op) { op.offset = 6; },
        " -> 'out': the table's width is 12, expected an even number up to head_dim 10");
    for (const std::size_t taps : {0u, 9u})
        refused(conv, [&](Graph&, Op& op) { op.taps = taps; }, " -> 'out': taps is ");
    for (const std::size_t dilation : {0u, 65u})
        refused(conv, [&](Graph&, Op& op) { op.dilation = dilation; }, " -> 'out': dilation is ");
    for (const std::size_t size : {0u, 4097u})
        for (const OpKind kind : {block_mean, choose_blocks, block_attention})
            refused(
                kind, [&](Graph&, Op& op) { op.block_size = size; }, " -> 'out': block_size is ");
    refused(
        choose_blocks, [](Graph&, Op& op) { op.block_size = 4096, op.n_chosen = 17; },
        " -> 'out': 17 blocks of 4096 positions; expected 1 to 65536 positions");
    for (const std::size_t n : {std::size_t{0}, ~std::size_t{0}})
        refused(choose_blocks, [&](Graph&, Op& op) { op.n_chosen = n; }, " -> 'out': n_chosen is ");
    refused(choose_blocks, [](Graph&, Op& op) { op.n_local = 5; }, " -> 'out': n_local is");
    for (const std::size_t n : {0u, 4u})
        refused(
            block_attention, [&](Graph&, Op& op) { op.n_choices = n; },
            " -> 'out': the KV heads, or the blocks, do not divide into n_choices");
    refused(stream_products, [](Graph&, Op& op) { op.n_streams = 0; }, " -> 'out': ");
    refused(signed_root, [](Graph&, Op& op) { op.least = -1.0f; }, " -> 'out': least is below 0");
    for (const OpKind kind : {ssm_scan, group_norm})
        refused(kind, [](Graph&, Op& op) { op.n_groups = 0; }, " -> 'out': ");
    refused(ssm_scan, [](Graph&, Op& op) { op.dt_min = 2.0f; }, " -> 'out': dt_min is not below");
    for (const float bound : {1.0f, std::numeric_limits<float>::quiet_NaN()})
        refused(log_decay, [&](Graph&, Op& op) { op.bound = bound; }, " -> 'out': bound is above");
    for (const std::size_t n : {std::size_t{0}, std::size_t{4}, ~std::size_t{0}})
        refused(
            residual_attention, [&](Graph&, Op& op) { op.n_earlier = n; },
            " -> 'out': n_earlier is ");
    refused(
        residual_attention,
        [](Graph& graph, Op& op) {
            graph.buffers[1].width = 64 * 300;
            op.n_earlier = 257;
        },
        " -> 'out': n_earlier is 257, expected 1 to 256");
    refused(
        residual_attention, [](Graph& graph, Op&) { graph.buffers[1].width = 191; },
        " -> 'out': the width of earlier rows is no multiple");
    for (const auto change : {+[](Op& op) { op.n_heads = 0; }, +[](Op& op) { op.n_kv_heads = 0; },
                              +[](Op& op) { op.n_kv_heads = 3; }})
        refused(
            delta_rule, [&](Graph&, Op& op) { change(op); },
            " -> 'out': n_heads is no multiple of n_kv_heads");
    refused(
        delta_rule,
        [](Graph& graph, Op&) { graph.buffers[0].width = graph.buffers[1].width = 2 * 257; },
        " -> 'out': keys of 257, expected 1 to 256");
    refused(
        head_norm, [](Graph&, Op& op) { op.n_heads = 0; },
        " -> 'out': the output does not divide into n_heads");
    for (const OpKind kind : {head_linear, take_head_columns, join_heads})
        refused(
            kind, [](Graph&, Op& op) { op.n_heads = 0; },
            " -> 'out': buffer 'in' has width 64, no 0 heads");
    refused(
        take_head_columns, [](Graph&, Op& op) { op.offset = 9; },
        " -> 'out': columns from 9 to 17 of 16");
    for (const std::size_t used : {std::size_t{0}, (std::size_t{1} << 12) + 1})
        for (const OpKind kind : {route, expert_linear, expert_sum, scale_shares})
            refused(kind, [&](Graph&, Op& op) { op.n_used = used; }, " -> 'out': n_used is");
    refused(
        linear_many,
        [](Graph& graph, Op& op) {
            while (op.more_outputs.size() < tensor_ops::largest_many) {
                op.more_outputs.push_back(static_cast<int>(graph.buffers.size()));
                op.more_weights.push_back(0);
                graph.buffers.push_back({"more", 16, true});
            }
        },
        " -> 'out': has 9 weights, expected 1 to 8");
}

TEST(what_is_kept_in_blocks_has_whole_blocks) {
    using enum OpKind;
    refused(
        round_q8, [](Graph& graph, Op&) { graph.buffers[0].width = graph.buffers[1].width = 33; },
        " -> 'out': 33 values are no whole blocks");
    refused(
        merge_add,
        [](Graph& graph, Op& op) {
            for (const int i : {0, 2}) graph.buffers[static_cast<std::size_t>(i)].width = 48;
            op.quantized = true;  // two parts of a block and a half, in whole blocks together
        },
        " -> 'out': 48 values are no whole blocks");
    for (const OpKind kind : {take_columns, put_columns}) {
        refused(
            kind,
            [](Graph& graph, Op& op) {
                op.quantized = true;
                for (auto& buffer : graph.buffers)
                    if (buffer.width == 64) buffer.width = 33;
            },
            " -> 'out': 33 values are no whole blocks");
        refused(
            kind,
            [](Graph&, Op& op) {
                op.quantized = true;
                op.offset = 5;
            },
            " -> 'out': 5 values are no whole blocks");
        refused(kind, [](Graph&, Op& op) { op.offset = SIZE_MAX - 31; }, " -> 'out': columns from");
    }
}

TEST(blocks_are_kept_in_external_buffers_that_no_op_takes_for_floats) {
    using enum OpKind;
    for (const bool quantized : {false, true}) {
        Builder b;
        const int blocks = b.external("blocks", 64), x = b.external("x", 64);
        b.op(take_columns, {blocks}, x).quantized = quantized;
        Graph reads = b.graph, writes = b.graph, inside = b.graph;
        Op silu{};
        silu.kind = OpKind::silu;
        silu.inputs = {blocks};
        silu.output = x;
        reads.ops.push_back(silu);
        silu.inputs = {x};
        silu.output = blocks;
        writes.ops.push_back(silu);
        inside.buffers[0].external = false;
        if (!quantized) {
            for (const Graph& graph : {reads, writes, inside}) Executor(graph, 2);
            continue;
        }
        check::refused([&] { Executor(reads, 2); }, "silu -> 'x': takes 'blocks' for float32");
        check::refused([&] { Executor(writes, 2); },
                       "silu -> 'blocks': takes 'blocks' for float32");
        check::refused([&] { Executor(inside, 2); },
                       "take_columns -> 'x': 'blocks' is internal, or no rows of whole blocks");
    }
    refused(
        put_columns, [](Graph& graph, Op&) { graph.buffers[1].external = false; },
        " -> 'out': writes a part of its buffer");
}

TEST(token_ids_come_from_outside_and_no_op_writes_them) {
    using enum OpKind;
    refused(
        embed, [](Graph& graph, Op&) { graph.buffers[0].external = false; },
        " -> 'out': its tokens 'in' do not come from outside");
    Builder b;
    const int ids = b.external("ids", 1), y = b.external("y", 64), x = b.external("x", 64);
    b.op(embed, {ids}, y, b.slot("rows"));
    Op& many = b.op(linear_many, {x}, y, b.slot("w"));
    many.more_outputs = {ids};
    many.more_weights = {b.slot("v")};
    check::refused([&] { Executor(b.graph, 2); }, "its tokens 'ids' do not come from outside");
}

TEST(rows_and_batches_beyond_any_model_are_refused) {
    Builder b;
    const std::size_t most = tensor_ops::longest_row;
    b.external("x", most);
    Executor(b.graph, tensor_ops::largest_batch);
    check::refused([&] { Executor(b.graph, tensor_ops::largest_batch + 1); },
                   "max_tokens is 16777217; expected at most 16777216");
    b.external("y", most + 1);
    check::refused([&] { Executor(b.graph, 1); },
                   "buffer 'y' has width 1073741825; expected at most 1073741824");
}

TEST(vectors_and_experts_of_another_shape_or_type_are_refused) {
    const arrays::Floats short_vector = arrays::normal(15, 1), long_vector = arrays::normal(64, 1);
    const auto refused_weight = [](OpKind kind, const tensor_ops::Weight& weight,
                                   const char* words) {
        for (const Form& form : forms())
            if (form.kind == kind)
                check::refused([&] { tensor_ops::check_weights(built(form).graph, {weight}); },
                               words);
    };
    for (const OpKind kind :
         {OpKind::rms_norm, OpKind::quantized_norm, OpKind::bias, OpKind::head_norm})
        refused_weight(kind, graphs::vector(short_vector), "weight 'w' is [1, 15], expected [1, ");
    refused_weight(OpKind::head_norm, graphs::vector(long_vector), "[1, 64], expected [1, 16]");
    const auto expert = [](DType type, std::size_t n, std::size_t k) {
        return std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
            graphs::packed(matrices::random(type, n, k, 1)));
    };
    const auto good = expert(DType::q8_0, 16, 32);
    refused_weight(OpKind::expert_linear, tensor_ops::Experts{}, "has no experts");
    for (const auto& other :
         {expert(DType::q8_0, 17, 32), expert(DType::q8_0, 16, 64), expert(DType::q4_0, 16, 32)})
        refused_weight(OpKind::expert_linear, tensor_ops::Experts{good, other},
                       "different shapes, types or instruction sets");
    refused_weight(OpKind::expert_linear, tensor_ops::Experts{expert(DType::q8_0, 17, 32)},
                   "is [34, 64], expected [32, 64]");
    const auto head = expert(DType::q8_0, 8, 32);
    refused_weight(OpKind::head_linear, tensor_ops::Experts{}, "has no heads");
    refused_weight(OpKind::head_linear, tensor_ops::Experts{head, head}, "has 2 heads, expected 4");
    refused_weight(OpKind::head_linear, tensor_ops::Experts{head, head, head, head},
                   "is [32, 128], expected [32, 64]");
}
