// Products of heads: the same bits as one product for each row and head, on any number of threads.

#include "dispatch.h"
#include "graphs.h"
#include "threads.h"

using namespace arrays;
using graphs::Builder;
using graphs::OpKind;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Experts;
using tensor_ops::KernelTable;

namespace {

constexpr std::size_t n_heads = 3, n = 37, k = 64;

Experts random_heads(DType type) {
    Experts heads;
    for (unsigned h = 0; h < n_heads; ++h)
        heads.push_back(std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
            graphs::packed(matrices::random(type, n, k, h))));
    return heads;
}

// y[n] = x[k] w^T.
void plain_product(const tensor_ops::PackedMatrix& w, Activations kind, const float* x, float* y) {
    const auto& table = w.table();
    if (kind == Activations::f32) return table.linear_f32(w.view(), x, 1, 0, w.groups(), y, w.n());
    Array<std::byte> xq(w.k() / 32 * tensor_ops::quantized_block_bytes(kind));
    table.quantize_activations(kind, x, 1, w.k(), 0, 1, xq.data());
    table.linear_quantized(kind, w.view(), xq.data(), 1, 0, w.groups(), y, w.n());
}

// Two products of x in turn, which share their scratch memory.  Returns the second.
Floats run(const Experts& heads, Activations kind, Floats& x, std::size_t rows) {
    Builder b;
    const int in = b.external("x", n_heads * k), first = b.external("first", n_heads * n);
    const int out = b.external("y", n_heads * n), w = b.slot("w");
    for (const int to : {first, out}) {
        auto& op = b.op(OpKind::head_linear, {in}, to, w);
        op.n_heads = n_heads;
        op.activations = kind;
    }
    Floats before = filled(rows * n_heads * n, 0.0f), y = filled(rows * n_heads * n, 0.0f);
    Executor executor(b.graph, rows);
    graphs::run(executor, {heads}, {{in, x.data()}, {first, before.data()}, {out, y.data()}}, rows);
    check::that(same_bytes(before, y), "both products");
    return y;
}

}  // namespace

KERNEL_TEST(each_head_of_a_row_has_the_bits_of_a_product_of_its_own) {
    check::equal(table.isa, tensor_ops::kernels().isa, "the ISA");
    for (const DType type : {DType::q8_0, DType::q4_1, DType::mxfp4})
        for (const Activations kind : {Activations::q8, Activations::q16, Activations::f32})
            for (const std::size_t rows : {1u, 2u, 64u, 150u}) {
                const Experts heads = random_heads(type);
                Floats x = normal(rows * n_heads * k, 1), expected(rows * n_heads * n);
                for (std::size_t i = 0; i < rows * n_heads; ++i)
                    plain_product(*heads[i % n_heads], kind, x.data() + i * k,
                                  expected.data() + i * n);
                for (const int threads : {1, 2, 4}) {
                    const Threads wanted(threads);
                    check::that(same_bytes(run(heads, kind, x, rows), expected),
                                std::string(matrices::name(type)) + ", activations " +
                                    std::to_string(static_cast<int>(kind)) + ", " +
                                    std::to_string(rows) + " rows, " + std::to_string(threads) +
                                    " threads");
                }
            }
}

TEST(float_heads_give_the_same_bits_on_any_number_of_threads) {
    const Experts heads = random_heads(DType::f32);
    for (const std::size_t rows : {1u, 33u, 100u}) {
        Floats x = normal(rows * n_heads * k, 1);
        const auto on = [&](int threads) {
            const Threads wanted(threads);
            return run(heads, Activations::f32, x, rows);
        };
        const Floats expected = on(1);
        for (const int threads : {2, 4})
            check::that(same_bytes(on(threads), expected), std::to_string(threads) + " threads");
    }
}

TEST(a_product_after_heads_quantises_its_input_anew) {
    constexpr std::size_t rows = 2;
    Builder b;
    const int a = b.external("a", k), x = b.external("x", n_heads * k);
    const int first = b.external("first", n), y = b.external("y", n_heads * n);
    const int again = b.external("again", n), w = b.slot("w"), heads = b.slot("heads");
    b.op(OpKind::linear, {a}, first, w).activations = Activations::q8;
    auto& op = b.op(OpKind::head_linear, {x}, y, heads);
    op.n_heads = n_heads;
    op.activations = Activations::q8;
    b.op(OpKind::linear, {a}, again, w).activations = Activations::q8;
    Floats input = normal(rows * k, 1), others = normal(rows * n_heads * k, 2);
    Floats before(rows * n), between(rows * n_heads * n), after(rows * n);
    Executor executor(b.graph, rows);
    graphs::run(executor,
                {graphs::packed(matrices::random(DType::q8_0, n, k, 9)), random_heads(DType::q8_0)},
                {{a, input.data()},
                 {x, others.data()},
                 {first, before.data()},
                 {y, between.data()},
                 {again, after.data()}},
                rows);
    check::that(same_bytes(before, after), "the same product");
}
