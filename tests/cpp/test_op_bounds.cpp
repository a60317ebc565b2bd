// The numbers that ops have: what is beyond their bounds is refused, and what is at them is taken.

#include <limits>

#include "op_forms.h"

using graphs::OpKind;
using op_forms::refused;
using op_forms::taken;
using tensor_ops::Graph;
using tensor_ops::Op;

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

// Of one thing each: no memory, more than a kernel takes, or a product that no longer fits a
// number.
TEST(widths_have_bounds) {
    using enum OpKind;
    const auto widths = [](std::initializer_list<std::size_t> all) {
        return [all = std::vector<std::size_t>(all)](Graph& graph, Op&) {
            for (std::size_t i = 0; i < all.size(); ++i) graph.buffers[i].width = all[i];
        };
    };
    const auto wide_heads = [](std::initializer_list<std::size_t> all) {
        return [all = std::vector<std::size_t>(all)](Graph& graph, Op& op) {
            for (std::size_t i = 0; i < all.size(); ++i) graph.buffers[i].width = all[i];
            op.head_dim = 577;
        };
    };
    const std::size_t most = tensor_ops::longest_row;
    refused(latent_append, wide_heads({2 * 577}), ": head_dim is 577");
    for (const OpKind kind : {index_append, group_append})
        refused(kind, wide_heads({577}), ": head_dim is 577");
    refused(index_select, wide_heads({4 * 577, 4}), " -> 'out': head_dim is 577");
    refused(choose_blocks, wide_heads({4 * 577}), " -> 'out': head_dim is 577");
    refused(group_attention, wide_heads({4 * 577, 4 * 577}), " -> 'out': head_dim is 577");
    for (const std::size_t width : {std::size_t{0}, (std::size_t{1} << 16) + 1})
        refused(sparse_group_attention, widths({64, width}), " -> 'out': selects ");
    refused(block_attention, widths({64, 0}), " -> 'out': 0 blocks of 4 positions");
    refused(kv_append, widths({32, 0}), ": buffer 'in' has width 0, no values of 2 heads");
    refused(kv_append, widths({32, 2 * 577}), ": buffer 'in' has width 1154, no values");
    for (const std::size_t width : {std::size_t{0}, std::size_t{577}})
        refused(pool_groups, widths({2 * width, 2 * width, width}),
                " -> 'out': the output's width");
    refused(delta_rule, widths({0, 0}), " -> 'out': keys of 0, expected 1 to 256");
    refused(delta_rule, widths({32, 32, 66, 4, 4, 66}), " -> 'out': the output does not divide");
    refused(delta_rule, widths({512, 512, most, 4, 4, most}),
            " -> 'out': the output does not divide");
    refused(ssm_scan, widths({64, 0}), " -> 'out': the output does not divide into heads");
    refused(ssm_scan, widths({65, 4, 32, 32, 65}), " -> 'out': the output does not divide");
    refused(ssm_scan, widths({64, 4, 33, 33}), " -> 'out': n_groups does not divide");
    refused(ssm_scan, widths({63, 3, 32, 32, 63}), " -> 'out': n_groups does not divide");
    refused(ssm_scan, widths({most, 4, 32, 32, most}), " -> 'out': the state is too large");
    refused(selective_scan, widths({64, 64, 16, 15}), " -> 'out': buffer 'in' has width 15");
    refused(selective_scan, widths({most, most, 16, 16, most}), " -> 'out': the state is too");
    refused(residual_attention, widths({0, 192, 0}), " -> 'out': the width of earlier rows");
    refused(group_norm, widths({65, 65}), " -> 'out': the output does not divide");
    refused(merge_add, widths({0, 96, 0}), " -> 'out': the parts' width is no multiple");
    refused(stream_products, widths({63, 63}), " -> 'out': the inputs do not divide");
    refused(hyper_factors, widths({16, 16}), " -> 'out': the output does not fit n_streams");
    refused(hyper_mix, widths({49, 16, 15, 49}), " -> 'out': the output does not divide");
    refused(scale_shares, widths({5, 5}), " -> 'out': buffer 'in' has width 5, expected 4");
    for (const OpKind kind : {add_to_streams, match_rms})
        refused(kind, widths({96, 0}), " -> 'out': the output's width is no multiple");
    refused(layer_columns, widths({96, 0}), " -> 'out': the input's width is no multiple");
}

TEST(other_numbers_have_bounds) {
    using enum OpKind;
    refused(attention, [](Graph&, Op& op) { op.chunked = true; }, " -> 'out': a chunk has no");
    for (const std::size_t every : {0u, 4097u}) {
        for (const OpKind kind : {index_append, group_append})
            refused(kind, [&](Graph&, Op& op) { op.every = every; }, ": every is ");
        refused(index_select, [&](Graph&, Op& op) { op.every = every; }, " -> 'out': every is ");
    }
    refused(
        take_head_columns, [](Graph&, Op& op) { op.offset = SIZE_MAX; },
        " -> 'out': columns from 18446744073709551615");
    refused(ssm_scan, [](Graph&, Op& op) { op.dt_min = -1.0f; }, " -> 'out': dt_min is not below");
    refused(mix_streams, [](Graph&, Op& op) { op.n_streams = 0; }, " -> 'out': the inputs do not");
    refused(
        hyper_factors, [](Graph&, Op& op) { op.n_iterations = (1u << 16) + 1; },
        " -> 'out': n_iterations is out of range");
    for (const std::size_t used : {std::size_t{0}, (std::size_t{1} << 12) + 1})
        for (const OpKind kind : {expert_bias, expert_scale})
            refused(kind, [&](Graph&, Op& op) { op.n_used = used; }, " -> 'out': n_used is");
    for (const std::size_t used : {0u, 9u})
        refused(
            route_to,
            [&](Graph& graph, Op& op) {
                op.n_used = graph.buffers[1].width = used;
                graph.buffers[2].width = 2 * used;
            },
            " -> 'out': n_used is");
    refused(
        glu_linear, [](Graph&, Op& op) { op.more_weights.clear(); },
        " -> 'out': has 1 weights, expected 2");
}

TEST(numbers_at_their_bounds_are_taken) {
    using enum OpKind;
    const auto widths = [](Graph& graph, std::initializer_list<std::size_t> all) {
        std::size_t i = 0;
        for (const std::size_t width : all) graph.buffers[i++].width = width;
    };
    const std::size_t most = tensor_ops::longest_row;
    for (const std::size_t heads : {std::size_t{1}, std::size_t{1} << 20})
        taken(attention, [&](Graph& graph, Op& op) {
            widths(graph, {heads, heads});
            op.n_heads = op.n_kv_heads = heads;
            op.head_dim = 1;
        });
    taken(kv_append, [&](Graph& graph, Op& op) {
        widths(graph, {576, 576});
        op.n_kv_heads = 1;
        op.head_dim = 576;
    });
    taken(kv_append, [&](Graph& graph, Op&) { widths(graph, {32, 2}); });
    taken(attention, [](Graph&, Op& op) { op.chunked = true, op.window = 1; });
    for (const std::size_t n : {std::size_t{1}, std::size_t{1} << 16}) {
        taken(index_select, [&](Graph& graph, Op&) { graph.buffers[2].width = n; });
        taken(choose_blocks, [&](Graph& graph, Op& op) {
            graph.buffers[1].width = 4 * n;
            op.n_chosen = n;
            op.block_size = 1;
        });
    }
    for (const std::size_t n : {1u, 576u})
        taken(pool_groups, [&](Graph& graph, Op&) { widths(graph, {2 * n, 2 * n, n}); });
    for (const std::size_t every : {1u, 4096u})
        taken(index_append, [&](Graph&, Op& op) { op.every = every; });
    taken(take_head_columns, [](Graph&, Op& op) { op.offset = 8; });
    taken(take_head_columns, [](Graph& graph, Op& op) {
        graph.buffers[1].width = 0;
        op.offset = 16;
    });
    taken(take_columns, [](Graph& graph, Op& op) {
        graph.buffers[1].width = 0;
        op.offset = 96;
    });
    for (const std::size_t taps : {1u, 8u})
        taken(conv, [&](Graph&, Op& op) { op.taps = taps, op.dilation = 64; });
    for (const std::size_t d_k : {1u, 256u})
        taken(delta_rule, [&](Graph& graph, Op& op) {
            widths(graph, {d_k, d_k, most / d_k, 1, 1, most / d_k});
            op.n_heads = op.n_kv_heads = 1;
        });
    taken(ssm_scan, [&](Graph& graph, Op& op) {
        widths(graph, {most / 32, 1, 32, 32, most / 32});
        op.n_groups = 1;
        op.dt_min = op.dt_max;
    });
    taken(selective_scan,
          [&](Graph& graph, Op&) { widths(graph, {most / 16, most / 16, 16, 16, most / 16}); });
    taken(residual_attention, [&](Graph& graph, Op& op) {
        widths(graph, {1, 256, 1});
        op.n_earlier = 256;
    });
    taken(residual_attention, [](Graph&, Op& op) { op.n_earlier = 1; });
    taken(group_norm, [](Graph&, Op& op) { op.n_groups = 1; });
    taken(head_norm, [](Graph&, Op& op) { op.n_heads = 1; });
    taken(block_attention, [](Graph&, Op& op) { op.n_choices = 1; });
    taken(merge_add, [&](Graph& graph, Op&) { widths(graph, {1, 3, 1}); });
    taken(mix_streams, [&](Graph& graph, Op& op) {
        widths(graph, {4, 1, 4});
        op.n_streams = 1;
    });
    for (const std::size_t n : {1u, 16u}) {
        taken(stream_products, [&](Graph& graph, Op& op) {
            widths(graph, {n, n, n});
            op.n_streams = n;
        });
        taken(hyper_factors, [&](Graph& graph, Op& op) {
            widths(graph, {n * (2 + n), n * (2 + n)});
            op.n_streams = n;
            op.n_iterations = 1u << 16;
        });
        taken(hyper_mix, [&](Graph& graph, Op& op) {
            widths(graph, {n, 1, n * (2 + n), n});
            op.n_streams = n;
        });
    }
    taken(add_to_streams, [&](Graph& graph, Op&) { widths(graph, {3, 1, 3}); });
    taken(layer_columns, [&](Graph& graph, Op&) { widths(graph, {3, 1}); });
    taken(block_attention, [&](Graph& graph, Op& op) {
        graph.buffers[1].width = 2 * 16;
        op.block_size = 4096;
    });
    taken(route, [&](Graph& graph, Op& op) {
        op.n_used = 8;
        graph.buffers[1].width = 16;
    });
    taken(route, [](Graph&, Op& op) { op.n_groups = 4, op.n_groups_used = 1; });
}
