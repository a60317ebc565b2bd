// Scores of an index: which earlier positions, or blocks of positions, a token should see
// (arXiv:2512.02556).  The products are those of attention with many rows, see attention_tile.h:
// lanes hold heads.
#pragma once

#include <limits>

#include "kernels/attention.h"

namespace tensor_ops {
namespace {

template <class Isa>
std::size_t index_scratch_floats(std::size_t n_heads, std::size_t head_dim) {
    return round_up(n_heads, panel<Isa>) * (head_dim + 1) +
           many_tile * (head_dim + panel<Isa> + lanes<Isa>);
}

// Writes queries, [n_heads][head_dim], as panels of heads, [head_dim][panel].
template <class Isa>
void query_panels(const float* q, std::size_t n_heads, std::size_t head_dim, float* panels) {
    constexpr std::size_t width = panel<Isa>;
    std::fill_n(panels, round_up(n_heads, width) * head_dim, 0.0f);
    for (std::size_t h = 0; h < n_heads; ++h) {
        float* to = panels + h / width * width * head_dim + h % width;
        for (std::size_t c = 0; c < head_dim; ++c) to[c * width] = q[h * head_dim + c];
    }
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
    query_panels<Isa>(task.q, task.n_heads, d, q);
    std::fill_n(std::copy_n(task.weights, task.n_heads, weights), heads - task.n_heads, 0.0f);
    with_kv_source(task.type, [&](auto source) {
        using Source = std::remove_cvref_t<decltype(*source)>;
        for (std::size_t p = first; p < last; p += many_tile) {
            const std::size_t n = std::min(many_tile, last - p);
            const float* keys = unpack_rows<Isa, Source>(task.keys, d, p, n, unpacked);
            for (std::size_t h = 0; h < heads; h += width) {
                score_many<Isa, 2>(keys, n, d, q + h * d, products, [] {});
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

template <class Isa>
void block_scores(const BlockTask& task, std::size_t first, std::size_t last, float* scratch) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>, width = panel<Isa>;
    const std::size_t d = task.head_dim, heads = round_up(task.n_heads, width);
    float* q = scratch;                          // panels [head_dim][width]
    float* best = q + heads * d;                 // [heads]
    float* unpacked = best + heads;              // [position][head_dim]
    float* products = unpacked + many_tile * d;  // [position][width]
    query_panels<Isa>(task.q, task.n_heads, d, q);
    with_kv_source(task.type, [&](auto source) {
        using Source = std::remove_cvref_t<decltype(*source)>;
        for (std::size_t b = first; b < last; ++b) {
            std::fill_n(best, heads, -std::numeric_limits<float>::infinity());
            const std::size_t end = std::min((b + 1) * task.block_size, task.n_positions);
            for (std::size_t p = b * task.block_size; p < end; p += many_tile) {
                const std::size_t n = std::min(many_tile, end - p);
                const float* keys = unpack_rows<Isa, Source>(task.keys, d, p, n, unpacked);
                for (std::size_t h = 0; h < heads; h += width) {
                    score_many<Isa, 2>(keys, n, d, q + h * d, products, [] {});
                    unroll<2>([&](auto v) {
                        F largest = load<Isa>(best + h + v * w);
                        for (std::size_t j = 0; j < n; ++j) {
                            const F product = load<Isa>(products + j * width + v * w);
                            largest = xsimd::select(product > largest, product, largest);
                        }
                        largest.store_unaligned(best + h + v * w);
                    });
                }
            }
            for (std::size_t h = 0; h < task.n_heads; ++h)
                task.scores[h * task.stride + b] = best[h];
        }
    });
}

}  // namespace
}  // namespace tensor_ops
