// Mixtures of experts: the same bits as one product for each row and expert, on any number of
// threads, and nothing worse than NaN from a route that is no route.

#include "dispatch.h"
#include "graphs.h"
#include "ops/experts.h"
#include "threads.h"

using namespace arrays;
using graphs::Builder;
using graphs::OpKind;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Experts;
using tensor_ops::KernelTable;
using tensor_ops::Worker;

namespace {

constexpr std::size_t n_experts = 5, n_used = 3, n = 37, k = 64;

Experts random_experts(DType type) {
    Experts experts;
    for (unsigned e = 0; e < n_experts; ++e)
        experts.push_back(std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
            graphs::packed(matrices::random(type, n, k, e))));
    return experts;
}

// Of each token: n_used different experts, then their shares.
Floats random_route(std::size_t rows) {
    std::mt19937 random(9);
    Floats route = normal(rows * 2 * n_used, 3);
    for (std::size_t r = 0; r < rows; ++r) {
        const std::size_t first = random() % n_experts;
        for (std::size_t u = 0; u < n_used; ++u)
            route[r * 2 * n_used + u] = static_cast<float>((first + 2 * u) % n_experts);
    }
    return route;
}

// y[n] = x[k] w^T.
void plain_product(const tensor_ops::PackedMatrix& w, Activations kind, const float* x, float* y) {
    const auto& table = w.table();
    if (kind == Activations::f32 || !tensor_ops::is_quantized(w.type()))
        return table.linear_f32(w.view(), x, 1, 0, w.groups(), y, w.n());
    Array<std::byte> xq(w.k() / 32 * tensor_ops::quantized_block_bytes(kind));
    table.quantize_activations(kind, x, 1, w.k(), 0, 1, xq.data());
    table.linear_quantized(kind, w.view(), xq.data(), 1, 0, w.groups(), y, w.n());
}

// What expert_linear makes of x and the route, through a graph.
Floats run(const Experts& experts, Activations kind, bool shared, Floats& x, Floats& route,
           std::size_t rows) {
    Builder b;
    const int in = b.external("x", shared ? k : n_used * k), to = b.external("route", 2 * n_used);
    const int out = b.external("y", n_used * n), w = b.slot("w");
    auto& op = b.op(OpKind::expert_linear, {in, to}, out, w);
    op.n_used = n_used;
    op.shared = shared;
    op.activations = kind;
    Floats y = filled(rows * n_used * n, 0.0f);
    Executor executor(b.graph, rows);
    graphs::run(executor, {experts}, {{in, x.data()}, {to, route.data()}, {out, y.data()}}, rows);
    return y;
}

}  // namespace

KERNEL_TEST(each_row_of_a_quantised_matrix_has_the_bits_of_a_product_of_its_own) {
    check::equal(table.isa, tensor_ops::kernels().isa, "the ISA");
    for (const DType type : {DType::q8_0, DType::q4_1, DType::mxfp4}) {
        const Experts experts = random_experts(type);
        for (const Activations kind : {Activations::q8, Activations::q16, Activations::f32})
            for (const bool shared : {true, false})
                for (const std::size_t rows : {1u, 2u, 33u}) {
                    Floats x = normal(rows * (shared ? 1 : n_used) * k, 1);
                    Floats route = random_route(rows);
                    Floats expected(rows * n_used * n);
                    for (std::size_t i = 0; i < rows * n_used; ++i) {
                        const std::size_t r = i / n_used, u = i % n_used;
                        const auto e = static_cast<std::size_t>(route[r * 2 * n_used + u]);
                        plain_product(*experts[e], kind, x.data() + (shared ? r : i) * k,
                                      expected.data() + i * n);
                    }
                    for (const int threads : {1, 2, 4}) {
                        const Threads wanted(threads);
                        check::that(
                            same_bytes(run(experts, kind, shared, x, route, rows), expected),
                            std::string(matrices::name(type)) + ", activations " +
                                std::to_string(static_cast<int>(kind)) + ", " +
                                std::to_string(rows) + " rows, " + std::to_string(threads) +
                                " threads");
                    }
                }
    }
}

// Products of several rows add up in another order than those of one: they are checked against
// float64 in test_graph_ops.py.
TEST(float_matrices_give_the_same_bits_on_any_number_of_threads) {
    const Experts experts = random_experts(DType::f32);
    for (const std::size_t rows : {1u, 33u}) {
        Floats x = normal(rows * k, 1), route = random_route(rows);
        const auto on = [&](int threads) {
            const Threads wanted(threads);
            return run(experts, Activations::f32, true, x, route, rows);
        };
        const Floats expected = on(1);
        for (const int threads : {2, 4})
            check::that(same_bytes(on(threads), expected), std::to_string(threads) + " threads");
    }
}

TEST(a_route_to_no_expert_gives_nan_and_one_that_repeats_itself_is_followed) {
    const Experts experts = random_experts(DType::q8_0);
    const float nan = std::numeric_limits<float>::quiet_NaN();
    for (const std::size_t rows : {1u, 20u})
        for (const float wrong : {-1.0f, -0.5f, 5.0f, 1e30f, -1e30f, nan}) {
            Floats x = normal(rows * k, 1);
            Floats route = filled(rows * 2 * n_used, 2.0f);  // expert 2 for all, three times each
            for (std::size_t r = 0; r < rows; ++r) route[r * 2 * n_used + 1] = wrong;
            const Floats y = run(experts, Activations::q8, true, x, route, rows);
            for (std::size_t r = 0; r < rows; ++r) {
                const float* row = y.data() + r * n_used * n;
                for (std::size_t c = 0; c < n; ++c) {
                    check::that(std::isnan(row[n + c]), "no expert");
                    check::equal(row[2 * n + c], row[c], "the same expert");
                    check::that(std::isfinite(row[c]), "an expert");
                }
            }
        }
}

TEST(no_expert_has_a_bias_or_a_factor) {
    const float nan = std::numeric_limits<float>::quiet_NaN();
    const Worker alone(0, 1, nullptr);
    const Floats biases = normal(n_experts * n, 1), factors = normal(n_experts, 2);
    for (const float wrong : {-1.0f, -0.5f, 5.0f, 1e30f, nan}) {
        const Floats x = normal(2 * n, 3);
        Floats route = filled(4, 0.5f), y = filled(2 * n, 0.0f), scaled = filled(4, 0.0f);
        route[0] = 1.0f;
        route[1] = wrong;
        tensor_ops::expert_bias(alone, tensor_ops::kernels(),
                                {.x = x.data(),
                                 .route = route.data(),
                                 .biases = biases.data(),
                                 .rows = 1,
                                 .n_used = 2,
                                 .n_experts = n_experts,
                                 .n = n,
                                 .y = y.data()});
        for (std::size_t c = 0; c < n; ++c) {
            check::equal(y[c], x[c] + biases[n + c], "an expert's");
            check::that(std::isnan(y[n + c]), "no expert's");
        }
        tensor_ops::expert_scale(alone, {.x = x.data(),
                                         .route = route.data(),
                                         .factors = factors.data(),
                                         .rows = 1,
                                         .n_used = 2,
                                         .n_experts = n_experts,
                                         .n = n,
                                         .y = y.data()});
        for (std::size_t c = 0; c < n; ++c) {
            check::equal(y[c], factors[1] * x[c], "an expert's");
            check::that(std::isnan(y[n + c]), "no expert's");
        }
        tensor_ops::scale_shares(alone, route.data(), factors.data(), n_experts, 1, 2,
                                 scaled.data());
        check::equal(scaled[2], 0.5f * factors[1], "an expert's share");
        check::that(std::isnan(scaled[3]), "no expert's share");
    }
}

TEST(experts_that_differ_in_shape_are_refused) {
    Experts experts = random_experts(DType::q8_0);
    experts[3] = std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
        graphs::packed(matrices::random(DType::q8_0, n, 2 * k, 1)));
    Floats x = normal(k, 1), route = random_route(1);
    std::string said;
    try {
        run(experts, Activations::q8, true, x, route, 1);
    } catch (const std::invalid_argument& error) {
        said = error.what();
    }
    check::that(said.find("different shapes") != std::string::npos, "said: " + said);
}
