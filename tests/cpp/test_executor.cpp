// The executor's own promises: what shares memory or threads gives what plain loops give, and what
// does not fit is refused before anything has run.

#include "dispatch.h"
#include "graphs.h"
#include "threads.h"

using namespace arrays;
using graphs::Builder;
using graphs::OpKind;
using graphs::Weight;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;

namespace {

constexpr std::size_t width = 64;

// ---- plain loops -------------------------------------------------------------------------------
// Each buffer in memory of its own, one thread, one op after the other.

void plain_linear(const tensor_ops::PackedMatrix& w, Activations kind, const float* x,
                  std::size_t n, float* y) {
    const auto& table = w.table();
    if (kind == Activations::f32 || !tensor_ops::is_quantized(w.type()))
        return table.linear_f32(w.view(), x, n, 0, w.groups(), y, w.n());
    Array<std::byte> xq(n * (w.k() / 32) * tensor_ops::quantized_block_bytes(kind));
    table.quantize_activations(kind, x, n, w.k(), 0, n, xq.data());
    table.linear_quantized(kind, w.view(), xq.data(), n, 0, w.groups(), y, w.n());
}

// For graphs of norms, products, add and swiglu over buffers of one width; buffers: one for each of
// the graph's, filled in for the external ones.
void run_plainly(const Graph& graph, const std::vector<Weight>& weights, std::size_t n,
                 std::vector<Floats>& buffers) {
    const auto& table = tensor_ops::kernels();
    for (const Op& op : graph.ops) {
        const auto at = [&](int b) { return buffers[static_cast<std::size_t>(b)].data(); };
        const float* x = at(op.inputs[0]);
        float* y = at(op.output);
        const auto slot = static_cast<std::size_t>(op.weight);
        const auto product = [&](int w, float* out) {
            plain_linear(*std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
                             weights[static_cast<std::size_t>(w)]),
                         op.activations.value_or(tensor_ops::activations_for(n)), x, n, out);
        };
        Floats own(n * width), other(n * width);
        if (op.kind == OpKind::rms_norm || op.kind == OpKind::quantized_norm) {
            table.rms_norm(x, std::get<tensor_ops::Vector>(weights[slot]).data, op.eps, y, n, width,
                           false);
        } else if (op.kind == OpKind::linear || op.kind == OpKind::linear_many) {
            product(op.weight, y);
            for (std::size_t i = 0; i < op.more_weights.size(); ++i)
                product(op.more_weights[i], at(op.more_outputs[i]));
        } else if (op.kind == OpKind::linear_add) {
            product(op.weight, own.data());
            table.add(at(op.inputs[1]), own.data(), y, n * width);
        } else if (op.kind == OpKind::glu_linear) {
            product(op.weight, own.data());
            product(op.more_weights[0], other.data());
            if (op.gelu) {
                table.gelu_tanh(own.data(), own.data(), n * width);
                for (std::size_t i = 0; i < n * width; ++i) y[i] = own[i] * other[i];
            } else {
                table.swiglu(own.data(), other.data(), y, n * width);
            }
        } else if (op.kind == OpKind::add)
            table.add(x, at(op.inputs[1]), y, n * width);
        else
            table.swiglu(x, at(op.inputs[1]), y, n * width);
    }
}

// Runs the graph both ways, the external buffers filled with the same numbers, and compares these
// bit for bit.
void check_against_plain_loops(const Graph& graph, const std::vector<Weight>& weights,
                               std::size_t n, int threads,
                               std::source_location where = std::source_location::current()) {
    std::vector<Floats> expected, actual;
    std::vector<std::pair<int, void*>> external;
    for (std::size_t b = 0; b < graph.buffers.size(); ++b) {
        expected.push_back(normal(n * width, static_cast<unsigned>(b)));
        actual.push_back(copy<float>(expected.back()));
        if (graph.buffers[b].external) external.emplace_back(static_cast<int>(b), actual[b].data());
    }
    run_plainly(graph, weights, n, expected);
    const Threads wanted(threads);
    Executor executor(graph, n);
    graphs::run(executor, weights, external, n);
    for (std::size_t b = 0; b < graph.buffers.size(); ++b)
        if (graph.buffers[b].external)
            check::that(same_bytes(actual[b], expected[b]),
                        "buffer " + graph.buffers[b].name + " with " + std::to_string(threads) +
                            " threads and " + std::to_string(n) + " tokens",
                        where);
}

// `n_ops` ops on random buffers of those written so far: inputs overwritten, results reused late,
// one input of several matrices, quantised and exact ones side by side.
Graph random_graph(unsigned seed, std::size_t n_ops) {
    std::mt19937 random(seed);
    Builder b;
    std::vector<int> written = {b.external("x", width), b.external("y", width)}, all = written;
    for (const char* name : {"a", "b", "c", "d", "e"}) all.push_back(b.internal(name, width));
    for (const char* name : {"norm", "f32", "q8_0", "q4_1"}) b.slot(name);
    const auto any_of = [&](const std::vector<int>& v) { return v[random() % v.size()]; };
    while (b.graph.ops.size() < n_ops) {
        const int first = any_of(written), second = any_of(written), output = any_of(all);
        const auto choice = random() % 10;
        const auto any_matrix = [&] { return 1 + static_cast<int>(random() % 3); };
        if (choice < 2) {
            b.op(OpKind::rms_norm, {first}, output, 0).eps = 1e-5f;
        } else if (choice == 2) {
            b.op(OpKind::add, {first, second}, output);
        } else if (choice == 3) {
            b.op(OpKind::swiglu, {first, second}, output);
        } else if (choice == 4) {
            Op& norm = b.op(OpKind::quantized_norm, {first}, output, 0);
            norm.eps = 1e-5f;
            if (random() % 2) norm.activations = static_cast<Activations>(random() % 3);
        } else {
            const int third = any_of(all);
            if (output == first || (choice == 5 && (third == first || third == output))) continue;
            const OpKind kinds[] = {OpKind::linear_many, OpKind::linear_add, OpKind::glu_linear,
                                    OpKind::linear, OpKind::linear};
            Op& op = b.op(kinds[choice - 5], {first}, output, any_matrix());
            if (choice == 5) op.more_outputs = {third};
            if (choice == 5 || choice == 7) op.more_weights = {any_matrix()};
            if (choice == 6) op.inputs.push_back(second);
            op.gelu = random() % 2 != 0;
            if (random() % 2) op.activations = static_cast<Activations>(random() % 3);
            if (choice == 5) written.push_back(third);
        }
        written.push_back(output);
    }
    return b.graph;
}

}  // namespace

TEST(random_graphs_give_what_plain_loops_give_on_any_number_of_threads) {
    const Floats norm = normal(width, 1);
    const std::vector<Weight> weights = {
        graphs::vector(norm), graphs::packed(matrices::random(DType::f32, width, width, 2)),
        graphs::packed(matrices::random(DType::q8_0, width, width, 3)),
        graphs::packed(matrices::random(DType::q4_1, width, width, 4))};
    for (unsigned seed = 0; seed < 12; ++seed) {
        const Graph graph = random_graph(seed, 40);
        for (const int threads : {1, 2, 4})
            for (const std::size_t n : {1u, 7u, 33u})
                check_against_plain_loops(graph, weights, n, threads);
    }
}

TEST(buffers_that_do_not_live_at_the_same_time_share_memory) {
    Builder b;
    const int norm = b.slot("norm");
    int last = b.external("x", width);
    for (int i = 0; i < 20; ++i) {
        const int next = b.internal("step", width);
        b.op(OpKind::rms_norm, {last}, next, norm).eps = 1e-5f;
        last = next;
    }
    b.op(OpKind::add, {last, 0}, 0);
    const std::size_t n = 5, two_buffers = 2 * n * width * sizeof(float);
    check::that(Executor(b.graph, n).bytes() <= two_buffers, "more than two of twenty buffers");
    const Floats weight = normal(width, 1);
    check_against_plain_loops(b.graph, {graphs::vector(weight)}, n, 3);
}

// The quantised form of an input serves the matrices that follow, until the input changes.
TEST(an_input_that_changes_between_two_matrices_is_quantised_again) {
    Builder b;
    const int x = b.external("x", width), y = b.external("y", width), z = b.external("z", width);
    const int norm = b.slot("norm"), w = b.slot("w");
    b.op(OpKind::linear, {x}, y, w);
    b.op(OpKind::linear, {x}, z, w);
    b.op(OpKind::rms_norm, {x}, x, norm).eps = 1e-5f;
    b.op(OpKind::linear, {x}, y, w);
    b.op(OpKind::linear, {y}, z, w);
    b.op(OpKind::linear, {x}, y, w);
    const Floats weight = normal(width, 1);
    const std::vector<Weight> weights = {
        graphs::vector(weight), graphs::packed(matrices::random(DType::q8_0, width, width, 2))};
    for (const int threads : {1, 3}) check_against_plain_loops(b.graph, weights, 9, threads);
}

TEST(matrices_on_one_input_may_want_it_quantised_differently) {
    Builder b;
    const int x = b.external("x", width), w = b.slot("w");
    for (const Activations kind :
         {Activations::q8, Activations::q16, Activations::f32, Activations::q8}) {
        const int y = b.external("y", width);
        b.op(OpKind::linear, {x}, y, w).activations = kind;
    }
    const std::vector<Weight> weights = {
        graphs::packed(matrices::random(DType::q4_0, width, width, 2))};
    for (const int threads : {1, 3}) check_against_plain_loops(b.graph, weights, 9, threads);
}

// Each ISA has its own layout of quantised activations, and a matrix keeps the ISA it was made for.
TEST(matrices_on_one_input_may_be_packed_for_different_isas) {
    Builder one_by_one, many;
    for (Builder* b : {&one_by_one, &many}) {
        const int x = b->external("x", width), y = b->external("y", width),
                  z = b->external("z", width);
        const int first = b->slot("first"), second = b->slot("second");
        if (b == &one_by_one) {
            b->op(OpKind::linear, {x}, y, first);
            b->op(OpKind::linear, {x}, z, second);
        } else {
            Op& op = b->op(OpKind::linear_many, {x}, y, first);
            op.more_outputs = {z};
            op.more_weights = {second};
        }
    }
    const auto packed_for = [](const std::string& isa, unsigned seed) {
        tensor_ops::select_isa(isa);
        const Weight w = graphs::packed(matrices::random(DType::q8_0, width, width, seed));
        tensor_ops::select_isa("");
        return w;
    };
    for (const std::string& first : tensor_ops::available_isas())
        for (const std::string& second : tensor_ops::available_isas())
            for (const Builder* b : {&one_by_one, &many})
                check_against_plain_loops(b->graph, {packed_for(first, 2), packed_for(second, 3)},
                                          13, 2);
}

TEST(a_norm_may_be_quantised_otherwise_than_a_matrix_wants_it) {
    const Floats norm = normal(width, 1);
    const std::vector<Weight> weights = {
        graphs::vector(norm), graphs::packed(matrices::random(DType::q8_0, width, width, 3))};
    for (const auto first : {Activations::q8, Activations::q16, Activations::f32})
        for (const auto second : {Activations::q8, Activations::q16, Activations::f32}) {
            Builder b;
            const int x = b.external("x", width), y = b.external("y", width),
                      h = b.internal("h", width);
            const int slot = b.slot("norm"), w = b.slot("w");
            Op& op = b.op(OpKind::quantized_norm, {x}, h, slot);
            op.eps = 1e-5f;
            op.activations = first;
            b.op(OpKind::linear, {h}, y, w).activations = second;
            check_against_plain_loops(b.graph, weights, 40, 3);
        }
}

// The last chunk of columns ends within a group of rows of the matrix.
TEST(a_sum_and_a_glu_of_any_width_have_the_bits_of_their_parts) {
    const auto& table = tensor_ops::kernels();
    const auto gate = matrices::random(DType::f32, 37, width, 1),
               up = matrices::random(DType::f32, 37, width, 2);
    const std::vector<Weight> weights = {graphs::packed(gate), graphs::packed(up)};
    for (const std::size_t n : {1u, 3u, 33u}) {
        Builder b;
        const int x = b.external("x", width), a = b.external("a", 37), sum = b.external("sum", 37),
                  glu = b.external("glu", 37);
        const int first = b.slot("first"), second = b.slot("second");
        b.op(OpKind::linear_add, {x, a}, sum, first);
        b.op(OpKind::glu_linear, {x}, glu, first).more_weights = {second};
        Floats in = normal(n * width, 1), added = normal(n * 37, 2), y(n * 37), z(n * 37);
        Floats products[2] = {Floats(n * 37), Floats(n * 37)}, expected(n * 37);
        Executor executor(b.graph, n);
        const Threads wanted(3);
        graphs::run(executor, weights,
                    {{x, in.data()}, {a, added.data()}, {sum, y.data()}, {glu, z.data()}}, n);
        for (std::size_t i = 0; i < 2; ++i)
            plain_linear(*std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(weights[i]),
                         Activations::f32, in.data(), n, products[i].data());
        table.add(added.data(), products[0].data(), expected.data(), n * 37);
        check::that(same_bytes(y, expected), "the sum of " + std::to_string(n) + " rows");
        table.swiglu(products[0].data(), products[1].data(), expected.data(), n * 37);
        check::that(same_bytes(z, expected), "the glu of " + std::to_string(n) + " rows");
    }
}

TEST(an_executor_may_run_many_batches_of_any_size_it_allows) {
    Builder b;
    const int x = b.external("x", width), y = b.external("y", width), w = b.slot("w");
    b.op(OpKind::linear, {x}, y, w);
    const auto matrix = matrices::random(DType::q8_0, width, width, 2);
    const std::vector<Weight> weights = {graphs::packed(matrix)};
    Executor executor(b.graph, 20);
    for (const std::size_t n : {20u, 1u, 7u, 0u, 20u}) {
        Floats input = normal(n * width, 1), output(n * width), expected(n * width);
        graphs::run(executor, weights, {{x, input.data()}, {y, output.data()}}, n);
        plain_linear(*std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(weights[0]),
                     tensor_ops::activations_for(n), input.data(), n, expected.data());
        check::that(same_bytes(output, expected), std::to_string(n) + " tokens");
    }
}

// ---- several sequences -------------------------------------------------------------------------

namespace {

constexpr std::size_t kv_heads = 2, capacity = 1300, head_dim = 16, kv_width = kv_heads * head_dim;

// Appends k and v to a cache, and attends with q.
struct AttentionGraph : Builder {
    int q = external("q", 64), k = external("k", kv_width), v = external("v", kv_width),
        out = external("out", 64);
    AttentionGraph() {
        Op& append = op(OpKind::kv_append, {k, v});
        append.n_kv_heads = kv_heads;
        append.head_dim = head_dim;
        Op& attention = op(OpKind::attention, {q}, out);
        attention.n_heads = 4;
        attention.n_kv_heads = kv_heads;
        attention.head_dim = head_dim;
        attention.scale = 0.25f;
    }
};

// A cache whose first `past` positions hold numbers.
struct FilledCache {
    Floats k, v;
    FilledCache(std::size_t past, unsigned seed)
        : k(kv_heads * capacity * head_dim), v(kv_heads * capacity * head_dim) {
        for (std::size_t head = 0; head < kv_heads; ++head) {
            const std::size_t at = head * capacity * head_dim;
            std::copy_n(normal(past * head_dim, seed).data(), past * head_dim, k.data() + at);
            std::copy_n(normal(past * head_dim, seed + 1).data(), past * head_dim, v.data() + at);
        }
    }
    tensor_ops::KvCache view() {
        return {k.data(), v.data(), DType::f32, kv_heads, capacity, head_dim};
    }
};

}  // namespace

TEST(a_sequence_in_a_batch_gets_what_it_gets_alone_bit_for_bit) {
    // More than 512 positions are divided into parts, see ops/attention.h.
    const struct {
        std::size_t n_tokens, past;
    } wanted[] = {{1, 0}, {1, 1250}, {5, 3}, {0, 7}, {40, 700}, {1, 900}, {1, 20}};
    AttentionGraph g;
    std::size_t total = 0;
    for (const auto& [n, past] : wanted) total += n;
    const Floats q = normal(total * 64, 1), k = normal(total * kv_width, 2),
                 v = normal(total * kv_width, 3);
    Floats expected(total * 64);
    std::vector<FilledCache> alone, together;
    std::vector<tensor_ops::CachedSequence> sequences;
    std::size_t row = 0;
    Executor executor(g.graph, total);
    for (const auto& [n, past] : wanted) {
        const auto seed = static_cast<unsigned>(10 + 2 * alone.size());
        alone.emplace_back(past, seed);
        together.emplace_back(past, seed);
        sequences.push_back({n, past, together.back().view()});
        Floats own_q = copy<float>(std::span(q.data() + row * 64, n * 64)),
               own_k = copy<float>(std::span(k.data() + row * kv_width, n * kv_width)),
               own_v = copy<float>(std::span(v.data() + row * kv_width, n * kv_width));
        graphs::run(executor, {},
                    {{g.q, own_q.data()},
                     {g.k, own_k.data()},
                     {g.v, own_v.data()},
                     {g.out, expected.data() + row * 64}},
                    n, past, alone.back().view());
        row += n;
    }
    for (const int threads : {1, 3}) {
        const Threads team(threads);
        Floats out(total * 64), own_q = copy<float>(q), own_k = copy<float>(k),
                                own_v = copy<float>(v);
        graphs::run(
            executor, {},
            {{g.q, own_q.data()}, {g.k, own_k.data()}, {g.v, own_v.data()}, {g.out, out.data()}},
            sequences);
        check::that(same_bytes(out, expected), std::to_string(threads) + " threads");
        for (std::size_t i = 0; i < alone.size(); ++i)
            check::that(
                same_bytes(together[i].k, alone[i].k) && same_bytes(together[i].v, alone[i].v),
                "cache " + std::to_string(i));
    }
}

TEST(each_sequence_of_a_batch_turns_its_keys_by_its_own_angles) {
    Builder b;
    const int k = b.external("k", kv_width), v = b.external("v", kv_width),
              angles = b.external("angles", head_dim);
    Op& op = b.op(OpKind::rope_append, {k, v, angles});
    op.n_kv_heads = kv_heads;
    op.head_dim = head_dim;
    constexpr std::size_t rows = 5, of_first = 2;
    Floats keys = normal(rows * kv_width, 1), values = normal(rows * kv_width, 2),
           turns = normal(rows * head_dim, 3);
    FilledCache first(0, 4), second(0, 4), own_first(0, 4), own_second(0, 4);
    Executor executor(b.graph, rows);
    const auto run = [&](std::size_t row,
                         const std::vector<tensor_ops::CachedSequence>& sequences) {
        graphs::run(executor, {},
                    {{k, &keys[row * kv_width]},
                     {v, &values[row * kv_width]},
                     {angles, &turns[row * head_dim]}},
                    sequences);
    };
    run(0, {{of_first, 7, first.view()}, {rows - of_first, 3, second.view()}});
    run(0, {{of_first, 7, own_first.view()}});
    run(of_first, {{rows - of_first, 3, own_second.view()}});
    check::that(same_bytes(first.k, own_first.k) && same_bytes(first.v, own_first.v), "first");
    check::that(same_bytes(second.k, own_second.k) && same_bytes(second.v, own_second.v), "second");
}

TEST(sequences_that_do_not_fit_together_are_refused) {
    AttentionGraph g;
    Executor executor(g.graph, 8);
    FilledCache first(0, 1), second(0, 2);
    Floats x(8 * 64);
    const auto run = [&](std::vector<tensor_ops::CachedSequence> sequences) {
        graphs::run(executor, {},
                    {{g.q, x.data()}, {g.k, x.data()}, {g.v, x.data()}, {g.out, x.data()}},
                    sequences);
    };
    tensor_ops::KvCache halves = second.view();
    halves.type = DType::f16;
    check::refused([&] { run({{1, 0, first.view()}, {1, 0, halves}}); }, "different types");
    check::refused([&] { run({{1, 0, first.view()}, {1, 0, {}}}); }, "needs keys and values");
    check::refused([&] { run({{1, 0, first.view()}, {1, capacity, second.view()}}); },
                   "1300 + 1 positions do not fit");
    std::vector<void*> pointers(executor.graph().buffers.size(), x.data());
    const tensor_ops::CachedSequence one{1, 0, first.view()};
    check::refused(
        [&] {
            const std::vector<Weight> none;
            const tensor_ops::Layer layer{&none, {&one, 1}};
            executor.run({&layer, 1}, {.external = pointers, .n_tokens = 2});
        },
        "the sequences have 1 tokens, and the batch has 2");
}

TEST(layers_run_one_after_the_other_on_the_same_buffers) {
    Builder b;
    const int x = b.external("x", width), h = b.internal("h", width);
    b.op(OpKind::linear, {x}, h, b.slot("w"));
    b.op(OpKind::add, {x, h}, x);
    std::vector<std::vector<Weight>> weights;
    for (unsigned seed = 0; seed < 5; ++seed)
        weights.push_back({graphs::packed(
            matrices::normal(seed % 2 ? DType::q8_0 : DType::f32, width, width, seed, 0.1))});
    Executor executor(b.graph, 7);
    const Floats start = normal(7 * width, 1);
    Floats expected = copy<float>(start);
    for (const auto& w : weights) graphs::run(executor, w, {{x, expected.data()}}, 7);
    for (const int threads : {1, 3}) {
        const Threads team(threads);
        Floats actual = copy<float>(start);
        std::vector<void*> pointers = {actual.data(), nullptr};
        std::vector<tensor_ops::Layer> layers;
        for (const auto& w : weights) layers.push_back({&w});
        executor.run(layers, {.external = pointers, .n_tokens = 7});
        check::that(same_bytes(actual, expected), std::to_string(threads) + " threads");
    }
}

TEST(the_time_of_each_op_is_added_where_it_is_asked_for) {
    Builder b;
    const int x = b.external("x", width), y = b.external("y", width);
    b.op(OpKind::linear, {x}, y, b.slot("w"));
    b.op(OpKind::add, {x, y}, y);
    const std::vector<Weight> weights = {
        graphs::packed(matrices::random(DType::q8_0, width, width, 2))};
    Executor executor(b.graph, 9);
    Floats in = normal(9 * width, 1), out(9 * width), timed(9 * width);
    graphs::run(executor, weights, {{x, in.data()}, {y, out.data()}}, 9);
    const Threads team(3);
    std::vector<double> seconds = {100.0, 200.0};
    std::vector<void*> pointers = {in.data(), timed.data()};
    const tensor_ops::Layer layer{&weights};
    executor.run({&layer, 1}, {.external = pointers, .n_tokens = 9, .seconds = seconds});
    check::that(seconds[0] > 100.0 && seconds[0] < 110.0, check::text(seconds[0]));
    check::that(seconds[1] > 200.0 && seconds[1] < 210.0, check::text(seconds[1]));
    check::that(same_bytes(timed, out), "another result");
}

// ---- embed -------------------------------------------------------------------------------------

TEST(embed_looks_up_rows_of_every_type_and_scales_them) {
    for (const DType type : matrices::all_types) {
        const std::size_t columns = matrices::in_blocks(type, width);
        for (const float scale : {1.0f, 8.0f}) {
            Builder b;
            const int tokens = b.external("tokens", 1), y = b.external("y", columns);
            b.op(OpKind::embed, {tokens}, y, b.slot("embedding")).scale = scale;
            const auto rows = matrices::random(type, 11, columns, 1, 4);
            Array<std::int32_t> ids = copy<std::int32_t>(std::vector{10, 0, 3, 3, 7});
            Floats out(5 * columns);
            Executor executor(b.graph, 5);
            const Threads wanted(2);
            graphs::run(executor, {graphs::raw_rows(rows)}, {{tokens, ids.data()}, {y, out.data()}},
                        5);
            for (std::size_t i = 0; i < out.size(); ++i) {
                const auto row = static_cast<std::size_t>(ids[i / columns]);
                const double exact = scale * rows.values[row * columns + i % columns];
                check::near(matrices::name(type), out[i], exact, ulp(exact) / 2, "at ", i);
            }
        }
    }
}

TEST(a_token_that_is_not_in_the_vocabulary_is_refused_before_anything_has_run) {
    Builder b;
    const int tokens = b.external("tokens", 1), y = b.external("y", width);
    b.op(OpKind::embed, {tokens}, y, b.slot("embedding"));
    const auto rows = matrices::random(DType::f32, 11, width, 1);
    Executor executor(b.graph, 3);
    for (const std::int32_t bad : {-1, 11, INT32_MAX, INT32_MIN}) {
        Array<std::int32_t> ids = copy<std::int32_t>(std::vector{1, 2, bad});
        Floats out(3 * width);
        check::refused(
            [&] {
                graphs::run(executor, {graphs::raw_rows(rows)},
                            {{tokens, ids.data()}, {y, out.data()}}, 3);
            },
            "token " + std::to_string(bad) + " is not in the vocabulary of 11");
        check::that(same_bytes(out, Floats(3 * width)), "something was written");
    }
}
