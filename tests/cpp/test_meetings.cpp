// How often the threads of a run meet.  A meeting that is missing shows in no result unless a
// thread happens to be slow; so it is counted, on one thread, which passes the same barriers as
// several.  test_waits.cpp has those that the plan puts before an op; these are the others: around
// memory that is shared beside the buffers, whose use depends on the weights and the batch.

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
using tensor_ops::Op;
using tensor_ops::Worker;

namespace {

constexpr std::size_t width = 64;

Weight matrix(DType type, std::size_t n = width) {
    return graphs::packed(matrices::random(type, n, width, 1));
}

// Four external buffers, with the same numbers in each, and ops over them.
struct Graph4 : Builder {
    const int a = external("a", width), b = external("b", width), c = external("c", width),
              d = external("d", width);
    std::vector<Weight> weights;

    Op& product(OpKind kind, std::vector<int> inputs, int output, const Weight& w) {
        weights.push_back(w);
        return op(kind, std::move(inputs), output, slot("w"));
    }
    Op& linear(int input, int output, DType type = DType::q8_0) {
        return product(OpKind::linear, {input}, output, matrix(type));
    }

    // How often one thread meets in a run of `rows` rows through `n_layers` layers.
    std::size_t meetings(std::size_t rows, std::size_t n_layers = 1,
                         std::span<double> seconds = {}) const {
        Executor executor(graph, rows);
        std::vector<Floats> memory;
        std::vector<void*> pointers;
        for (const auto& buffer : graph.buffers) {
            memory.push_back(normal(rows * buffer.width, 1));
            pointers.push_back(buffer.external ? memory.back().data() : nullptr);
        }
        tensor_ops::check_weights(graph, weights);
        const Threads one(1);
        const std::vector<tensor_ops::Layer> layers(n_layers, {&weights});
        executor.run(layers, {.external = pointers, .n_tokens = rows, .seconds = seconds});
        return executor.meetings();
    }
};

// The same of one operation by itself.
template <class F>
std::size_t meetings_of(F&& f) {
    const Worker worker(0, 1, nullptr);
    f(worker);
    return worker.barriers();
}

}  // namespace

TEST(a_product_waits_until_its_input_is_quantised) {
    Graph4 g;
    g.linear(g.a, g.b);
    check::equal(g.meetings(1), std::size_t{1}, "meetings");
}

TEST(products_of_floats_do_not_wait) {
    Graph4 g;
    g.linear(g.a, g.b, DType::f32);
    g.linear(g.c, g.d).activations = Activations::f32;
    check::equal(g.meetings(1), std::size_t{0}, "meetings");
}

TEST(products_of_one_input_wait_once) {
    Graph4 g;
    g.linear(g.a, g.b);
    g.linear(g.a, g.c);
    check::equal(g.meetings(1), std::size_t{1}, "meetings");
}

TEST(an_input_is_quantised_when_all_have_read_the_one_before) {
    Graph4 g;
    g.linear(g.a, g.b);
    g.linear(g.c, g.d);
    // a quantised; a read; c quantised.
    check::equal(g.meetings(1), std::size_t{3}, "meetings");
}

TEST(a_meeting_for_something_else_serves_as_well) {
    Graph4 g;
    g.linear(g.a, g.b);
    g.op(OpKind::add, {g.b, g.b}, g.d);
    g.linear(g.c, g.a);
    // a quantised; b complete, so that a has been read by all; c quantised.
    check::equal(g.meetings(1), std::size_t{3}, "meetings");
}

TEST(a_norm_is_quantised_when_all_have_read_the_input_before) {
    Graph4 g;
    g.linear(g.a, g.b);
    g.weights.push_back(Weight{});
    g.op(OpKind::quantized_norm, {g.c}, g.d, g.slot("norm"));
    g.linear(g.d, g.a);
    const Floats norm = filled(width, 1.0f);
    g.weights[1] = graphs::vector(norm);
    // a quantised; a read; d complete, with its quantised form.
    check::equal(g.meetings(1), std::size_t{3}, "meetings");
}

TEST(a_product_takes_a_norm_in_the_form_that_the_norm_has_quantised) {
    Graph4 g;
    const Floats norm = filled(width, 1.0f);
    g.weights.push_back(graphs::vector(norm));
    g.op(OpKind::quantized_norm, {g.a}, g.b, g.slot("norm"));
    g.linear(g.b, g.c);
    check::equal(g.meetings(1), std::size_t{1}, "meetings");
}

TEST(an_input_is_quantised_when_a_norm_has_been) {
    Graph4 g;
    const Floats norm = filled(width, 1.0f);
    g.weights.push_back(graphs::vector(norm));
    g.op(OpKind::quantized_norm, {g.a}, g.b, g.slot("norm"));
    g.linear(g.c, g.d);
    g.linear(g.b, g.a);
    // b quantised; c quantised; b complete, and c read by all; b quantised again.
    check::equal(g.meetings(1), std::size_t{4}, "meetings");
}

TEST(experts_quantise_when_all_have_read_the_input_before_and_the_next_when_they_have_read) {
    for (const std::size_t rows : {1u, 2u}) {
        Graph4 g;
        const int route = g.external("route", 2), y = g.external("y", width);
        g.linear(g.a, g.b);
        const auto expert =
            std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(matrix(DType::q8_0));
        Op& op = g.product(OpKind::expert_linear, {g.c, route}, y, tensor_ops::Experts{expert});
        op.n_used = 1;
        op.shared = true;
        g.linear(g.a, g.d);
        Executor executor(g.graph, rows);
        Floats x = normal(rows * width, 1), of_route = filled(rows * 2, 0.0f);
        Floats b(rows * width), d(rows * width), out(rows * width);
        const Threads one(1);
        graphs::run(executor, g.weights,
                    {{g.a, x.data()},
                     {g.b, b.data()},
                     {g.c, x.data()},
                     {g.d, d.data()},
                     {route, of_route.data()},
                     {y, out.data()}},
                    rows);
        // a quantised; a read; the expert's input quantised (one row), or the route read, the input
        // there and multiplied (several); the input read; a quantised again.
        check::equal(executor.meetings(), std::size_t{rows == 1 ? 5u : 7u}, "meetings");
    }
}

TEST(matrices_of_a_glu_that_are_not_alike_are_multiplied_before_it) {
    Graph4 g;
    Op& op = g.product(OpKind::glu_linear, {g.a}, g.b, matrix(DType::f32));
    op.activations = Activations::f32;
    op.more_weights = {g.slot("up")};
    g.weights.push_back(matrix(DType::q8_0));
    check::equal(g.meetings(1), std::size_t{1}, "meetings");
}

TEST(products_of_many_rows_are_complete_before_they_are_combined) {
    for (const std::size_t rows : {1u, 33u}) {
        Graph4 sum, glu;
        sum.product(OpKind::linear_add, {sum.a, sum.b}, sum.c, matrix(DType::f32));
        Op& op = glu.product(OpKind::glu_linear, {glu.a}, glu.b, matrix(DType::f32));
        op.more_weights = {glu.slot("up")};
        glu.weights.push_back(matrix(DType::f32));
        const std::size_t expected = rows == 1 ? 0 : 1;
        check::equal(sum.meetings(rows), expected, "meetings of a sum");
        check::equal(glu.meetings(rows), expected, "meetings of a glu");
    }
}

TEST(layers_wait_for_each_other) {
    Graph4 g;
    g.op(OpKind::add, {g.a, g.b}, g.c);
    check::equal(g.meetings(1, 3), std::size_t{2}, "meetings of three layers");
}

TEST(ops_that_are_timed_end_for_all_at_once) {
    Graph4 g;
    g.op(OpKind::add, {g.a, g.b}, g.c);
    g.op(OpKind::add, {g.a, g.b}, g.d);
    std::vector<double> seconds(2);
    check::equal(g.meetings(1, 1, seconds), std::size_t{2}, "meetings of two ops");
}

TEST(parts_of_a_long_cache_are_complete_before_they_are_merged) {
    constexpr std::size_t capacity = 1100, head_dim = 16;
    Floats k = normal(capacity * head_dim, 1), v = normal(capacity * head_dim, 2);
    Floats q = normal(head_dim, 3), out(head_dim);
    Floats workspace(tensor_ops::attention_workspace_floats);
    for (const std::size_t n_kv : {500u, 1100u}) {
        const std::size_t meetings = meetings_of([&](const Worker& worker) {
            tensor_ops::attention(worker, tensor_ops::kernels(),
                                  {.q = q.data(),
                                   .n_q = 1,
                                   .n_heads = 1,
                                   .cache = {k.data(), v.data(), DType::f32, 1, capacity, head_dim},
                                   .n_kv = n_kv,
                                   .scale = 0.25f,
                                   .out = out.data()},
                                  workspace.data());
        });
        check::equal(meetings, std::size_t{n_kv == 500 ? 0u : 1u}, "meetings");
    }
}

TEST(the_parts_of_one_row_of_a_product_are_complete_before_they_are_added) {
    constexpr std::size_t k = 8, n = 1024;
    const Floats a = normal(k, 1), b = normal(k * n, 2);
    Floats c(n), sums(tensor_ops::matmul_sums(1) * n);
    const std::size_t meetings = meetings_of([&](const Worker& worker) {
        tensor_ops::matmul(worker, tensor_ops::kernels(), a.data(), b.data(), c.data(), 1, k, n,
                           sums.data());
    });
    check::equal(meetings, std::size_t{1}, "meetings");
}
