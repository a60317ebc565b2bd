// Graphs, weights and batches that do not fit together: each is refused in words that name the op
// and the fault, before anything has run.

#include <functional>

#include "graphs.h"

using namespace arrays;
using graphs::Builder;
using graphs::OpKind;
using graphs::Weight;
using tensor_ops::CachedSequence;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;

namespace {

constexpr std::size_t width = 64;

// A graph with one op: what is wrong with it.
void check_graph_refused(OpKind kind, const std::vector<std::size_t>& input_widths,
                         std::size_t output_width, bool weight,
                         const std::function<void(Op&)>& change, const char* words,
                         std::source_location where = std::source_location::current()) {
    Builder b;
    std::vector<int> inputs;
    for (const std::size_t w : input_widths) inputs.push_back(b.external("in", w));
    const int output = output_width ? b.external("out", output_width) : -1;
    Op& op = b.op(kind, inputs, output, weight ? b.slot("w") : -1);
    op.n_heads = 4;
    op.n_kv_heads = 2;
    op.head_dim = 16;
    change(op);
    check::refused([&] { Executor(b.graph, 4); }, words, where);
}

void unchanged(Op&) {}

}  // namespace

TEST(a_graph_that_does_not_fit_together_is_refused_with_op_and_fault) {
    using enum OpKind;
    check_graph_refused(add, {64}, 64, false, unchanged, "add -> 'out': has 1 inputs, expected 2");
    check_graph_refused(add, {64, 32}, 64, false, unchanged,
                        "buffer 'in' has width 32, expected 64");
    check_graph_refused(swiglu, {32, 64}, 64, false, unchanged, "has width 32, expected 64");
    check_graph_refused(add, {64, 64}, 0, false, unchanged, "has no output");
    check_graph_refused(add, {64, 64}, 64, true, unchanged, "has a weight");
    check_graph_refused(rms_norm, {64}, 64, false, unchanged, "has no weight");
    check_graph_refused(rms_norm, {64}, 32, true, unchanged, "has width 64, expected 32");
    check_graph_refused(embed, {2}, 64, true, unchanged, "has width 2, expected 1");
    check_graph_refused(kv_append, {32, 32}, 32, false, unchanged, "has an output");
    check_graph_refused(kv_append, {32, 15}, 0, false, unchanged, "has width 15, no values of 2");
    check_graph_refused(rope, {64, 6}, 32, false, unchanged, "has width 32, expected 64");
    check_graph_refused(rope, {64, 5}, 64, false, unchanged, "the table's width is 5");
    check_graph_refused(rope, {64, 18}, 64, false, unchanged, "the table's width is 18");
    check_graph_refused(attention, {32}, 64, false, unchanged, "has width 32, expected 64");
    check_graph_refused(bias, {64}, 32, true, unchanged, "has width 64, expected 32");
    check_graph_refused(head_norm, {66}, 66, true, unchanged, "does not divide into n_heads");
    check_graph_refused(geglu, {64, 32}, 64, false, unchanged, "has width 32, expected 64");
    check_graph_refused(softcap, {64}, 64, false, unchanged, "cap is not above 0");
    check_graph_refused(swiglu_oai, {64, 64}, 64, false, unchanged, "limit is not above 0");
    check_graph_refused(xielu, {64}, 64, false, [](Op& op) { op.eps = 1e-6f; }, "eps is above 0");
    check_graph_refused(scale_rows, {64, 3}, 64, false, unchanged, "has width 3, expected a div");
    check_graph_refused(scale_rows, {64, 0}, 64, false, unchanged, "has width 0, expected a div");
    check_graph_refused(
        clamp, {64}, 64, false, [](Op& op) { op.low = 1.0f; }, "low is not below high");
    check_graph_refused(
        scale_rows, {1, 1}, 1, false, [](Op& op) { op.output = op.inputs[1]; },
        "cannot overwrite its input");
    check_graph_refused(
        attention, {64}, 64, false, [](Op& op) { op.cap = -1.0f; }, "softcap is below 0");
    check_graph_refused(
        attention, {64}, 64, false, [](Op& op) { op.alibi = -1.0f; }, "alibi is below 0");
}

TEST(a_mixture_of_experts_that_does_not_fit_together_is_refused) {
    using enum OpKind;
    const auto two = [](Op& op) { op.n_used = 2; };
    check_graph_refused(route, {8}, 4, false, unchanged, "n_used is 0, expected 1 to 8");
    check_graph_refused(
        route, {8}, 18, false, [](Op& op) { op.n_used = 9; }, "n_used is 9, expected 1 to 8");
    check_graph_refused(route, {8}, 6, false, two, "has width 6, expected 4");
    const auto groups = [](std::size_t n, std::size_t used) {
        return [=](Op& op) {
            op.n_used = 2;
            op.n_groups = n;
            op.n_groups_used = used;
        };
    };
    check_graph_refused(route, {8}, 4, false, groups(0, 0), "8 experts are no 0 equal groups");
    check_graph_refused(route, {8}, 4, false, groups(3, 1), "8 experts are no 3 equal groups");
    check_graph_refused(route, {8}, 4, false, groups(2, 3), "n_groups_used is 3, expected 1 to 2");
    check_graph_refused(route, {8}, 4, false, groups(2, 0), "n_groups_used is 0, expected 1 to 2");
    check_graph_refused(route, {8}, 4, false, groups(8, 4), "a group is one expert");
    check_graph_refused(
        route, {8}, 10, false,
        [](Op& op) {
            op.n_used = 5;
            op.n_groups = 2;
        },
        "n_used is 5, expected 1 to 4");
    check_graph_refused(expert_linear, {64, 6}, 64, true, two, "has width 6, expected 4");
    check_graph_refused(expert_linear, {64, 4}, 33, true, two, "does not divide into n_used");
    check_graph_refused(expert_bias, {64, 6}, 64, true, two, "has width 6, expected 4");
    check_graph_refused(expert_bias, {65, 4}, 65, true, two, "does not divide into n_used");
    check_graph_refused(expert_scale, {64, 6}, 64, true, two, "has width 6, expected 4");
    check_graph_refused(expert_scale, {65, 4}, 65, true, two, "does not divide into n_used");
    check_graph_refused(
        expert_bias, {4, 4}, 4, true,
        [](Op& op) {
            op.n_used = 2;
            op.output = op.inputs[1];
        },
        "cannot overwrite its input");
    check_graph_refused(expert_sum, {64, 4}, 16, false, two, "has width 64, expected 32");
    check_graph_refused(
        expert_linear, {4, 4}, 4, true,
        [](Op& op) {
            op.n_used = 2;
            op.output = op.inputs[1];
        },
        "cannot overwrite its input");
}

TEST(an_op_that_points_outside_of_the_graph_is_refused) {
    using enum OpKind;
    for (const int bad : {-1, 9}) {
        check_graph_refused(
            add, {64, 64}, 64, false,
            bad < 0 ? [](Op& op) { op.inputs[0] = -1; } : [](Op& op) { op.inputs[0] = 9; },
            "an input is no buffer");
    }
    check_graph_refused(
        add, {64, 64}, 64, false, [](Op& op) { op.output = 9; }, "the output is no buffer");
    check_graph_refused(
        rms_norm, {64}, 64, true, [](Op& op) { op.weight = 9; }, "the weight is no slot");
}

TEST(an_op_that_would_overwrite_what_it_reads_is_refused) {
    using enum OpKind;
    const auto in_place = [](Op& op) { op.output = op.inputs[0]; };
    check_graph_refused(linear, {64}, 64, true, in_place, "cannot overwrite its input");
    check_graph_refused(attention, {64}, 64, false, in_place, "cannot overwrite its input");
    check_graph_refused(
        rope, {64, 16}, 64, false,
        [](Op& op) {
            op.n_heads = 1;
            op.inputs = {1, 1};
            op.output = 1;
        },
        "cannot overwrite its table");
}

TEST(heads_out_of_range_are_refused) {
    using enum OpKind;
    check_graph_refused(
        attention, {64}, 64, false, [](Op& op) { op.n_heads = 0; },
        "number of heads is out of range");
    check_graph_refused(
        attention, {64}, 64, false, [](Op& op) { op.n_kv_heads = 3; },
        "n_heads is no multiple of n_kv_heads");
    for (const auto change : {+[](Op& op) { op.head_dim = 0; }, +[](Op& op) { op.head_dim = 577; }})
        check_graph_refused(attention, {64}, 64, false, change, "expected 1 to 576");
}

TEST(a_name_that_is_no_op_is_refused_with_those_that_are) {
    check::refused([] { tensor_ops::op_kind_from_name("pool"); }, "no op is named 'pool'");
    check::refused([] { tensor_ops::op_kind_from_name(""); }, "embed rms_norm head_norm");
    check::that(tensor_ops::op_kind_from_name("swiglu") == OpKind::swiglu, "swiglu");
}

TEST(weights_of_the_wrong_kind_or_shape_are_refused_by_name) {
    Builder b;
    const int tokens = b.external("tokens", 1), x = b.external("x", width), y = b.external("y", 32);
    b.op(OpKind::embed, {tokens}, x, b.slot("embedding"));
    b.op(OpKind::rms_norm, {x}, x, b.slot("norm"));
    b.op(OpKind::linear, {x}, y, b.slot("out"));
    const auto embedding = matrices::random(DType::f32, 11, width, 1),
               out = matrices::random(DType::f32, 32, width, 2);
    const Floats norm = normal(width, 3), short_norm = normal(width - 1, 3);
    const std::vector<Weight> good = {graphs::raw_rows(embedding), graphs::vector(norm),
                                      graphs::packed(out)};
    tensor_ops::check_weights(b.graph, good);
    const auto refused = [&](std::size_t slot, const Weight& bad, const char* words) {
        std::vector<Weight> weights = good;
        weights[slot] = bad;
        check::refused([&] { tensor_ops::check_weights(b.graph, weights); }, words);
    };
    refused(0, graphs::vector(norm), "weight 'embedding' is no RawRows");
    refused(0, graphs::raw_rows(matrices::random(DType::f32, 11, 32, 1)),
            "is [11, 32], expected [11, 64]");
    refused(1, graphs::packed(out), "weight 'norm' is no float32 vector");
    refused(1, graphs::vector(short_norm), "is [1, 63], expected [1, 64]");
    refused(2, graphs::raw_rows(embedding), "weight 'out' is no PackedMatrix");
    refused(2, graphs::packed(embedding), "is [11, 64], expected [32, 64]");
    check::refused([&] { tensor_ops::check_weights(b.graph, {}); }, "as many weights as slots");
}

TEST(a_batch_that_does_not_fit_is_refused_and_the_next_one_runs) {
    Builder b;
    const int q = b.external("q", 64), kv = b.external("kv", 32), out = b.external("out", 64);
    Op& append = b.op(OpKind::kv_append, {kv, kv});
    append.n_kv_heads = 2;
    append.head_dim = 16;
    Op& attention = b.op(OpKind::attention, {q}, out);
    attention.n_heads = 4;
    attention.n_kv_heads = 2;
    attention.head_dim = 16;
    Executor executor(b.graph, 4);
    Floats queries = normal(4 * 64, 1), keys = normal(4 * 32, 2), result(4 * 64);
    Floats k_cache(2 * 10 * 16), v_cache(2 * 10 * 16);
    const tensor_ops::KvCache cache{k_cache.data(), v_cache.data(), DType::f32, 2, 10, 16};
    const auto run = [&](std::size_t n, std::size_t past, const tensor_ops::KvCache& c) {
        graphs::run(executor, {}, {{q, queries.data()}, {kv, keys.data()}, {out, result.data()}}, n,
                    past, c);
    };
    check::refused([&] { run(5, 0, cache); }, "n_tokens is 5; this executor takes up to 4");
    check::refused([&] { run(1, 0, {}); }, "this graph needs keys and values");
    check::refused([&] { run(4, 7, cache); }, "7 + 4 positions do not fit the KV cache of 10");
    check::refused([&] { run(1, SIZE_MAX, cache); }, "do not fit the KV cache of 10");
    tensor_ops::KvCache other = cache;
    other.head_dim = other.value_dim = 8;
    check::refused([&] { run(1, 0, other); }, "has 2 heads of 8, expected 2 heads of 16");
    check::that(same_bytes(result, Floats(4 * 64)), "something was written");
    check::that(same_bytes(k_cache, Floats(2 * 10 * 16)), "the cache was written");
    run(0, 10, cache);  // it is full, and no token follows
    run(4, 0, cache);
    check::that(std::isfinite(result[0]), "the next batch");
}

TEST(an_index_that_does_not_fit_is_refused) {
    Builder b;
    const int k = b.external("k", 16);
    b.op(OpKind::index_append, {k}).head_dim = 16;
    Executor executor(b.graph, 4);
    Floats keys = normal(4 * 16, 1), rows(10 * 16);
    tensor_ops::KvCache index{rows.data(), nullptr, DType::f32, 1, 10, 16};
    const auto run = [&](std::size_t n, std::size_t past) {
        const CachedSequence sequence{.n_tokens = n, .past = past, .cache = {}, .index = index};
        graphs::run(executor, {}, {{k, keys.data()}}, std::span(&sequence, 1));
    };
    check::refused([&] { run(1, 10); }, "10 + 1 positions do not fit the index of 10");
    run(0, 10);
    index.first = 1;
    check::refused([&] { run(1, 5); }, "the index begins at position 1, and not at 0");
}

TEST(keys_of_groups_that_are_not_as_the_others_are_refused) {
    Builder b;
    const int q = b.external("q", 16), y = b.external("y", 16);
    Op& op = b.op(OpKind::group_attention, {q}, y);
    op.n_heads = 1;
    op.head_dim = 16;
    op.window = op.every = 4;
    Executor executor(b.graph, 1);
    Floats memory(2 * 16 * 16), queries = normal(16, 1), out(16);
    std::byte* const page = reinterpret_cast<std::byte*>(memory.data());
    const tensor_ops::KvCache keys{
        .n_kv_heads = 1, .capacity = 16, .head_dim = 16, .pages = &page, .page_bits = 4};
    const auto run = [&](const tensor_ops::KvCache& cache, const tensor_ops::KvCache& groups) {
        const CachedSequence sequence{.n_tokens = 1, .past = 0, .cache = cache, .groups = groups};
        graphs::run(executor, {}, {{q, queries.data()}, {y, out.data()}}, std::span(&sequence, 1));
    };
    run(keys, keys);
    tensor_ops::KvCache other = keys;
    other.type = DType::f16;
    check::refused([&] { run(keys, other); }, "the keys of groups are no keys as the others");
    other = keys;
    other.v_offset = 16 * 16 * sizeof(float);
    check::refused([&] { run(other, keys); }, "the keys of groups are no keys as the others");
}

TEST(tokens_for_groups_that_do_not_fit_are_refused) {
    Builder b;
    const int x = b.external("x", 32), gate = b.external("gate", 32), y = b.external("y", 16);
    Op& op = b.op(OpKind::pool_groups, {x, gate}, y, b.slot("bias"));
    op.every = 4;
    op.n_parts = 2;
    Executor executor(b.graph, 2);
    Floats memory(2 * 2 * 16 * 16), in = normal(2 * 32, 1), out(2 * 16), bias = normal(4 * 32, 2);
    std::byte* const page = reinterpret_cast<std::byte*>(memory.data());
    const tensor_ops::KvCache good{.n_kv_heads = 2,
                                   .capacity = 16,
                                   .head_dim = 16,
                                   .pages = &page,
                                   .page_bits = 4,
                                   .v_offset = 2 * 16 * 16 * sizeof(float)};
    const auto run = [&](std::size_t n, std::size_t past, const tensor_ops::KvCache& pending) {
        const CachedSequence sequence{.n_tokens = n, .past = past, .cache = {}, .pending = pending};
        graphs::run(executor, {tensor_ops::Vector{bias.data(), 32, 4}},
                    {{x, in.data()}, {gate, in.data()}, {y, out.data()}}, std::span(&sequence, 1));
    };
    run(2, 14, good);
    run(0, 16, good);
    check::refused([&] { run(2, 15, good); }, "15 + 2 positions do not fit the tokens for groups");
    check::refused([&] { run(1, SIZE_MAX, good); }, "do not fit the tokens for groups, 16");
    check::refused([&] { run(1, 0, {}); }, "this graph needs tokens for groups");
    const auto refused = [&](const std::function<void(tensor_ops::KvCache&)>& change) {
        tensor_ops::KvCache wrong = good;
        change(wrong);
        check::refused([&] { run(1, 0, wrong); }, "tokens for groups do not fit the op");
    };
    refused([](auto& pending) { pending.type = DType::f16; });
    refused([](auto& pending) { pending.n_kv_heads = 1; });
    refused([](auto& pending) { pending.head_dim = 8; });
    refused([](auto& pending) { pending.value_dim = 8; });
    refused([](auto& pending) { pending.v_offset = 0; });  // the values are in the keys
}
