// Scores of an index: which earlier positions a token should see (arXiv:2512.02556).  The products
// are those of attention with many rows, see attention_tile.h: lanes hold heads.
#pragma once

#include "kernels/attention.h"

namespace tensor_ops {
namespace {

template <class Isa>
std::size_t index_scratch_floats(std::size_t n_heads, std::size_t head_dim) {
    return round_up(n_heads, panel<Isa>) * (head_dim + 1) +
           many_tile * (head_dim + panel<Isa> + lanes<Isa>);
}

template <class Isa>
void index_scores(const IndexTask& task, std::size_t first, std::size_t last, float* scratch) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>, width = panel<Isa>;
    const std::size_t d = task.head_dim, heads = round_up(task.n_heads, width);
    float* q = scratch;                          // panels [head_dim][width]
    float* weights = q + heads * d;              // [heads]
    float* unpacked = weights + heads;           // [position][head_dim]
    float* products = unpacked + many_tile * d;  // [position][width]
    float* sums = products + many_tile * width;  // [position][w]
    std::fill_n(q, heads * (d + 1), 0.0f);
    for (std::size_t h = 0; h < task.n_heads; ++h) {
        weights[h] = task.weights[h];
        float* to = q + h / width * width * d + h % width;
        for (std::size_t c = 0; c < d; ++c) to[c * width] = task.q[h * d + c];
    }
    with_kv_source(task.type, [&](auto source) {
        using Source = std::remove_cvref_t<decltype(*source)>;
        for (std::size_t p = first; p < last; p += many_tile) {
            const std::size_t n = std::min(many_tile, last - p);
            const float* keys = unpack_rows<Isa, Source>(task.keys, d, p, n, unpacked);
            for (std::size_t h = 0; h < heads; h += width) {
                score_many<Isa, 2>(keys, n, d, q + h * d, products);
                for (std::size_t j = 0; j < n; ++j) {
                    F sum = h == 0 ? F(0.0f) : load<Isa>(sums + j * w);
                    unroll<2>([&](auto v) {
                        const F product = load<Isa>(products + j * width + v * w);
                        const F seen = xsimd::select(product > F(0.0f), product, F(0.0f));
                        sum = xsimd::fma(load<Isa>(weights + h + v * w), seen, sum);
                    });
                    sum.store_unaligned(sums + j * w);
                }
            }
            for (std::size_t j = 0; j < n; ++j)
                task.scores[p + j] = xsimd::reduce_add(load<Isa>(sums + j * w));
        }
    });
}

}  // namespace
}  // namespace tensor_ops
