#include "ops/fused.h"

#include <algorithm>

namespace tensor_ops {
namespace {

// Up to this many rows, the columns of a product are combined as soon as a chunk of them is
// computed.  The rows often lie a large power of two apart, so that more rows would compete for too
// few sets of the L2 cache: with 512 rows of 8192, combining by chunks took 6 % longer than
// combining everything afterwards, in order.
constexpr std::size_t few_rows = 32;

// Calls f(offset, count) for each row's stretch of the columns of groups [first, last) of w.
template <class F>
void for_columns(const PackedMatrix& w, std::size_t rows, std::size_t first, std::size_t last,
                 F&& f) {
    const std::size_t group = w.table().group_rows(w.type());
    const std::size_t from = first * group, to = std::min(last * group, w.n());
    for (std::size_t r = 0; r < rows; ++r) f(r * w.n() + from, to - from);
}

void combine(const KernelTable& table, Glu activation, const float* gate, const float* up, float* y,
             std::size_t n) {
    if (activation == Glu::silu) return table.swiglu(gate, up, y, n);
    constexpr std::size_t step = 256;  // stays in the L1 cache
    float gelu[step];
    for (std::size_t i = 0; i < n; i += step) {
        const std::size_t m = std::min(step, n - i);
        table.gelu_tanh(gate + i, gelu, m);
        for (std::size_t j = 0; j < m; ++j) y[i + j] = gelu[j] * up[i + j];
    }
}

}  // namespace

void linear_many(const Worker& worker, std::span<const PackedMatrix* const> w,
                 const LinearInput& input, std::span<float* const> y) {
    std::size_t groups = 0;
    for (const PackedMatrix* matrix : w) groups += matrix->groups();
    Deal deal(worker, groups, dealt_groups);
    std::size_t at = 0;  // groups of the matrices before
    for (std::size_t i = 0; i < w.size(); ++i) {
        deal.within(at, at + w[i]->groups(), [&](std::size_t first, std::size_t last) {
            linear_groups(*w[i], input, first - at, last - at, y[i]);
        });
        at += w[i]->groups();
    }
}

void linear_add(const Worker& worker, const PackedMatrix& w, const LinearInput& input,
                const float* a, float* product, float* y) {
    if (input.rows > few_rows) {
        linear(worker, w, input.x, input.kind, input.xq, input.rows, product);
        worker.barrier();
        return for_elements(worker, input.rows * w.n(), [&](std::size_t first, std::size_t n) {
            w.table().add(a + first, product + first, y + first, n);
        });
    }
    deal(worker, w.groups(), dealt_groups, [&](std::size_t first, std::size_t last) {
        linear_groups(w, input, first, last, product);
        for_columns(w, input.rows, first, last, [&](std::size_t at, std::size_t n) {
            w.table().add(a + at, product + at, y + at, n);
        });
    });
}

bool alike(const PackedMatrix& a, const PackedMatrix& b) {
    return &a.table() == &b.table() &&
           a.table().group_rows(a.type()) == b.table().group_rows(b.type());
}

void glu_linear(const Worker& worker, const PackedMatrix& gate, const PackedMatrix& up,
                Glu activation, const LinearInput& input, float* product, float* y) {
    if (input.rows > few_rows) {
        const PackedMatrix* const both[] = {&gate, &up};
        float* const products[] = {y, product};
        linear_many(worker, both, input, products);
        worker.barrier();
        return glu(worker, gate.table(), activation, y, product, y, input.rows * gate.n());
    }
    deal(worker, gate.groups(), dealt_groups, [&](std::size_t first, std::size_t last) {
        linear_groups(gate, input, first, last, y);
        linear_groups(up, input, first, last, product);
        for_columns(gate, input.rows, first, last, [&](std::size_t at, std::size_t n) {
            combine(gate.table(), activation, y + at, product + at, y + at, n);
        });
    });
}

void glu(const Worker& worker, const KernelTable& table, Glu activation, const float* gate,
         const float* up, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        combine(table, activation, gate + first, up + first, y + first, count);
    });
}

void norm_and_quantize(const Worker& worker, const KernelTable& table, const KernelTable& matrices,
                       const float* x, const float* weight, float eps, float* y, Activations kind,
                       std::size_t rows, std::size_t n, std::byte* xq) {
    const std::size_t tile = matrices.activation_tile;
    deal(worker, rows, tile, [&](std::size_t first, std::size_t last) {
        for (std::size_t r = first; r < last; r += tile) {
            const std::size_t end = std::min(r + tile, last);
            table.rms_norm(x + r * n, weight, eps, y + r * n, end - r, n, false);
            matrices.quantize_activations(kind, y, rows, n, r, end, xq);
        }
    });
}

void rope_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
                 const float* angles, std::size_t n_dims, bool interleaved, std::size_t n_tokens,
                 std::size_t past, const KvCache& cache) {
    const std::size_t heads = cache.n_kv_heads, d = cache.head_dim, row = heads * d;
    auto* rotated = static_cast<float*>(thread_scratch(row * sizeof(float)));
    for_rows(worker, n_tokens, row, [&](std::size_t first, std::size_t count) {
        for (std::size_t t = first; t < first + count; ++t) {
            table.rope(k + t * row, angles + t * n_dims, rotated, 1, heads, d, n_dims, interleaved);
            write_kv(table, rotated, v + t * heads * cache.value_dim, past + t, cache);
        }
    });
}

}  // namespace tensor_ops
