// A decoder layer as the engine builds it, on the executor, against its formulas in float64.

#include "dispatch.h"
#include "graphs.h"
#include "threads.h"

using namespace arrays;
using graphs::OpKind;
using matrices::Matrix;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::KernelTable;

namespace {

constexpr std::size_t hidden = 96, n_heads = 6, n_kv_heads = 2, head_dim = 16, n_dims = 12,
                      ffn = 160, kv_width = n_kv_heads * head_dim, capacity = 20;
constexpr float eps = 1e-5f;
const float attention_scale = 0.25f;

struct LayerWeights {
    Floats attn_norm = normal(hidden, 11), ffn_norm = normal(hidden, 12);
    Matrix q, k, v, o, gate, up, down;

    explicit LayerWeights(DType type)
        : q(scaled(type, hidden, hidden, 1)),
          k(scaled(type, kv_width, hidden, 2)),
          v(scaled(type, kv_width, hidden, 3)),
          o(scaled(type, hidden, hidden, 4)),
          gate(scaled(type, ffn, hidden, 5)),
          up(scaled(type, ffn, hidden, 6)),
          down(scaled(type, hidden, ffn, 7)) {}

 private:
    static Matrix scaled(DType type, std::size_t n, std::size_t k, unsigned seed) {
        return matrices::normal(type, n, k, seed, 1 / std::sqrt(static_cast<double>(k)));
    }
};

// The residual stream goes in and out in one buffer; table: cos and sin for each token.
struct LayerGraph : graphs::Builder {
    int residual = external("residual", hidden), table = external("table", n_dims);

    explicit LayerGraph(Activations activations) {
        const int h = internal("h", hidden), q = internal("q", hidden), k = internal("k", kv_width),
                  v = internal("v", kv_width), a = internal("a", hidden), o = internal("o", hidden);
        op(OpKind::rms_norm, {residual}, h, slot("attn_norm")).eps = eps;
        linear(h, q, "q", activations);
        linear(h, k, "k", activations);
        linear(h, v, "v", activations);
        for (const int x : {q, k}) {
            auto& rope = op(OpKind::rope, {x, table}, x);
            rope.n_heads = x == q ? n_heads : n_kv_heads;
            rope.head_dim = head_dim;
        }
        auto& append = op(OpKind::kv_append, {k, v});
        append.n_kv_heads = n_kv_heads;
        append.head_dim = head_dim;
        auto& attention = op(OpKind::attention, {q}, a);
        attention.n_heads = n_heads;
        attention.n_kv_heads = n_kv_heads;
        attention.head_dim = head_dim;
        attention.scale = attention_scale;
        linear(a, o, "o", activations);
        op(OpKind::add, {residual, o}, residual);
        const int gate = internal("gate", ffn), up = internal("up", ffn), f = internal("f", ffn),
                  down = internal("down", hidden);
        op(OpKind::rms_norm, {residual}, h, slot("ffn_norm")).eps = eps;
        linear(h, gate, "gate", activations);
        linear(h, up, "up", activations);
        op(OpKind::swiglu, {gate, up}, f);
        linear(f, down, "down", activations);
        op(OpKind::add, {residual, down}, residual);
    }

    void linear(int x, int y, const char* name, Activations activations) {
        op(OpKind::linear, {x}, y, slot(name)).activations = activations;
    }
};

std::vector<tensor_ops::Weight> bind(const LayerWeights& w) {
    using namespace graphs;
    return {vector(w.attn_norm), packed(w.q),    packed(w.k),  packed(w.v),   packed(w.o),
            vector(w.ffn_norm),  packed(w.gate), packed(w.up), packed(w.down)};
}

Floats angles(std::size_t first, std::size_t n) {
    Floats table(n * n_dims);
    for (std::size_t t = 0; t < n; ++t) {
        for (std::size_t j = 0; j < n_dims / 2; ++j) {
            const double angle = static_cast<double>(first + t) *
                                 std::pow(100.0, -2.0 * static_cast<double>(j) / n_dims);
            table[t * n_dims + j] = static_cast<float>(std::cos(angle));
            table[t * n_dims + n_dims / 2 + j] = static_cast<float>(std::sin(angle));
        }
    }
    return table;
}

// ---- the same in float64, one token after the other --------------------------------------------

using reference::Values;

Values multiply(const Matrix& w, const Values& x) {
    Values y(w.n);
    for (std::size_t j = 0; j < w.n; ++j) y[j] = reference::dot(x.data(), &w.values[j * w.k], w.k);
    return y;
}

void rotate(Values& x, const float* table) {
    for (std::size_t head = 0; head < x.size(); head += head_dim) {
        for (std::size_t j = 0; j < n_dims / 2; ++j) {
            double &a = x[head + j], &b = x[head + n_dims / 2 + j];
            const double c = table[j], s = table[n_dims / 2 + j], turned = a * c - b * s;
            b = b * c + a * s;
            a = turned;
        }
    }
}

// keys, values: [n_kv_heads][positions so far][head_dim], which the token's own join.
Values layer(const LayerWeights& w, const Values& residual, const float* table,
             Values (&keys)[n_kv_heads], Values (&values)[n_kv_heads]) {
    Values h = reference::rms_norm(residual.data(), w.attn_norm.data(), eps, hidden);
    Values q = multiply(w.q, h), k = multiply(w.k, h), a;
    const Values v = multiply(w.v, h);
    rotate(q, table);
    rotate(k, table);
    for (std::size_t head = 0; head < n_kv_heads; ++head) {
        const auto part = [&](const Values& x) { return x.begin() + head * head_dim; };
        keys[head].insert(keys[head].end(), part(k), part(k) + head_dim);
        values[head].insert(values[head].end(), part(v), part(v) + head_dim);
    }
    for (std::size_t head = 0; head < n_heads; ++head) {
        const std::size_t kv = head / (n_heads / n_kv_heads);
        const Values out =
            reference::attend(&q[head * head_dim], keys[kv].data(), values[kv].data(),
                              keys[kv].size() / head_dim, head_dim, attention_scale)
                .out;
        a.insert(a.end(), out.begin(), out.end());
    }
    const Values o = multiply(w.o, a);
    Values x(hidden), f(ffn);
    for (std::size_t i = 0; i < hidden; ++i) x[i] = residual[i] + o[i];
    h = reference::rms_norm(x.data(), w.ffn_norm.data(), eps, hidden);
    const Values gate = multiply(w.gate, h), up = multiply(w.up, h);
    for (std::size_t i = 0; i < ffn; ++i) f[i] = reference::swiglu(gate[i], up[i]);
    const Values down = multiply(w.down, f);
    for (std::size_t i = 0; i < hidden; ++i) x[i] += down[i];
    return x;
}

// A prompt of 5 tokens, one token, 7 tokens: runs the layer in three batches and returns the
// largest error of a token, as a share of its norm.
double worst_error(const LayerWeights& w, Activations activations, DType kv_type) {
    constexpr std::size_t batches[] = {5, 1, 7};
    const LayerGraph g(activations);
    tensor_ops::Executor executor(g.graph, 7);
    const auto weights = bind(w);
    const std::size_t cache_bytes =
        n_kv_heads * capacity * head_dim * tensor_ops::row_bytes(kv_type, 1);
    Array<std::byte> k_cache(cache_bytes), v_cache(cache_bytes);
    const tensor_ops::KvCache cache{k_cache.data(), v_cache.data(), kv_type,
                                    n_kv_heads,     capacity,       head_dim};
    Values keys[n_kv_heads], values[n_kv_heads];
    double worst = 0;
    std::size_t past = 0;
    for (const std::size_t n : batches) {
        Floats residual = normal(n * hidden, static_cast<unsigned>(past));
        Floats table = angles(past, n);
        std::vector<Values> exact;
        for (std::size_t t = 0; t < n; ++t) {
            const Values x(residual.begin() + t * hidden, residual.begin() + (t + 1) * hidden);
            exact.push_back(layer(w, x, table.data() + t * n_dims, keys, values));
        }
        graphs::run(executor, weights, {{g.residual, residual.data()}, {g.table, table.data()}}, n,
                    past, cache);
        for (std::size_t t = 0; t < n; ++t) {
            double error = 0, norm = 0;
            for (std::size_t i = 0; i < hidden; ++i) {
                error += std::pow(residual[t * hidden + i] - exact[t][i], 2);
                norm += exact[t][i] * exact[t][i];
            }
            worst = std::max(worst, std::sqrt(error / norm));
        }
        past += n;
    }
    return worst;
}

}  // namespace

KERNEL_TEST(a_decoder_layer_with_exact_activations_is_as_good_as_float32) {
    check::equal(std::string(tensor_ops::kernels().isa), std::string(table.isa), "ISA");
    for (const DType type : {DType::f32, DType::f16, DType::bf16, DType::q8_0, DType::q4_0}) {
        const LayerWeights w(type);
        for (const int threads : {1, 2, 3}) {
            const Threads wanted(threads);
            const double error = worst_error(w, Activations::f32, DType::f32);
            check::that(error < 1e-5,
                        std::string(matrices::name(type)) + ": " + check::text(error));
        }
    }
}

KERNEL_TEST(a_decoder_layer_with_quantised_activations_is_within_their_error) {
    check::equal(std::string(tensor_ops::kernels().isa), std::string(table.isa), "ISA");
    const struct {
        Activations kind;
        double share;
    } kinds[] = {{Activations::q8, 3e-2}, {Activations::q16, 3e-4}};
    for (const DType type : matrices::simple_types) {
        const LayerWeights w(type);
        for (const auto& [kind, share] : kinds) {
            for (const int threads : {1, 3}) {
                const Threads wanted(threads);
                const double error = worst_error(w, kind, DType::f32);
                check::that(error < share,
                            std::string(matrices::name(type)) + ": " + check::text(error));
            }
        }
    }
}

KERNEL_TEST(a_cache_of_halves_costs_their_rounding) {
    check::equal(std::string(tensor_ops::kernels().isa), std::string(table.isa), "ISA");
    const double error = worst_error(LayerWeights(DType::f32), Activations::f32, DType::f16);
    check::that(error < 1e-3 && error > 1e-6, check::text(error));
}
