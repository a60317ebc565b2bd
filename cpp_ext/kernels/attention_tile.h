// One tile of attention: the products of a panel of query rows with a tile of K and V, and the
// softmax between them.
//
// Scores are [position][width]: rows stand side by side, so that a vector holds one position of
// several rows (or several positions, where `width` is less than a vector), and the softmax needs
// no sum or maximum across lanes.  The product with V broadcasts from the same layout.
//
// The products come in two forms.  With many rows, lanes hold rows and K is broadcast: K and V are
// packed once for several panels, and the arithmetic is the limit.  With few rows, most lanes would
// be idle that way, so the lanes run along head_dim: K and V are used as they lie in the cache, and
// memory is the limit.
#pragma once

#include <limits>

#include "kernels/attention_kv.h"
#include "kernels/vmath.h"

namespace tensor_ops {
namespace {

inline constexpr std::size_t max_width = 32;  // rows of a panel
inline constexpr float minus_infinity = -std::numeric_limits<float>::infinity();
inline constexpr float log2_e = 1.44269504f;

// Whether a panel of rows counts as few, see above.
template <class Isa>
bool are_few(std::size_t rows, const AttentionTask& task) {
    return rows <= std::max<std::size_t>(4, lanes<Isa> / 2) && task.head_dim % lanes<Isa> == 0 &&
           task.value_dim % lanes<Isa> == 0;
}

// How many rows stand side by side: a divisor or a multiple of the lanes of a vector.
template <class Isa>
std::size_t panel_width(std::size_t rows, const AttentionTask& task) {
    if (are_few<Isa>(rows, task)) return rows == 1 ? 1 : rows <= 4 ? 4 : 8;
    return rows <= lanes<Isa> ? lanes<Isa> : 2 * lanes<Isa>;
}

// Calls f with the width of a panel of few rows as a std::integral_constant.
template <class Isa, class F>
inline void with_width(std::size_t width, F&& f) {
    if (width == 1) return f(std::integral_constant<std::size_t, 1>{});
    if (width == 4) return f(std::integral_constant<std::size_t, 4>{});
    if constexpr (lanes<Isa> >= 16) f(std::integral_constant<std::size_t, 8>{});
}

// sum(r, v) = sum_i x[r * x_row + i * x_step] * b(i, v) for Rows x Vectors sums, which stay in
// registers; then store(r, v, sum).
template <class Isa, std::size_t Rows, std::size_t Vectors, class B, class Store>
inline void multiply(const float* x, std::size_t x_row, std::size_t x_step, std::size_t depth, B b,
                     Store store) {
    using F = Floats<Isa>;
    F sum[Rows][Vectors];
    unroll<Rows>([&](auto r) { unroll<Vectors>([&](auto v) { sum[r][v] = F(0.0f); }); });
    for (std::size_t i = 0; i < depth; ++i) {
        const float* at = x + i * x_step;
        if constexpr (Rows < Vectors) {  // the smaller set of operands waits in registers
            F factor[Rows];
            unroll<Rows>([&](auto r) { factor[r] = F(at[r * x_row]); });
            unroll<Vectors>([&](auto v) {
                const F column = b(i, v);
                unroll<Rows>([&](auto r) { sum[r][v] = xsimd::fma(factor[r], column, sum[r][v]); });
            });
        } else {
            F column[Vectors];
            unroll<Vectors>([&](auto v) { column[v] = b(i, v); });
            unroll<Rows>([&](auto r) {
                const F factor(at[r * x_row]);
                unroll<Vectors>(
                    [&](auto v) { sum[r][v] = xsimd::fma(factor, column[v], sum[r][v]); });
            });
        }
    }
    unroll<Rows>([&](auto r) { unroll<Vectors>([&](auto v) { store(r, v, sum[r][v]); }); });
}

// ---- many rows ----------------------------------------------------------------------------------

// scores[j][r] = k[j] . q[r] for positions [0, n); q: [head_dim][Vectors vectors of rows].  It
// calls fetch() between its products.
template <class Isa, std::size_t Vectors, class Fetch>
void score_many(const float* k, std::size_t n, std::size_t head_dim, const float* q, float* scores,
                Fetch&& fetch) {
    constexpr std::size_t w = lanes<Isa>;
    for_each_tile<Isa>(n, [&](std::size_t j, auto positions) {
        fetch();
        multiply<Isa, positions, Vectors>(
            k + j * head_dim, head_dim, 1, head_dim,
            [&](std::size_t c, auto v) { return load<Isa>(q + (c * Vectors + v) * w); },
            [&](auto p, auto v, Floats<Isa> sum) {
                sum.store_unaligned(scores + ((j + p) * Vectors + v) * w);
            });
    });
}

// out[r] = out[r] * factor[r] + sum_j weights[j][r] * v[j]; v in panels of columns.
template <class Isa>
void add_values_many(const float* weights, std::size_t width, std::size_t rows, std::size_t n,
                     const float* v, std::size_t panel_floats, std::size_t value_dim,
                     const float* factor, float* out, std::size_t out_stride) {
    constexpr std::size_t w = lanes<Isa>;
    for (std::size_t c = 0; c < value_dim; c += panel<Isa>, v += panel_floats)
        for_each_tile<Isa>(rows, [&](std::size_t first, auto count) {
            multiply<Isa, count, 2>(
                weights + first, 1, width, n,
                [&](std::size_t j, auto i) { return load<Isa>(v + (2 * j + i) * w); },
                [&](auto r, auto i, Floats<Isa> sum) {
                    float* at = out + (first + r) * out_stride + c + i * w;
                    xsimd::fma(load<Isa>(at), Floats<Isa>(factor[first + r]), sum)
                        .store_unaligned(at);
                });
        });
}

// ---- few rows -----------------------------------------------------------------------------------

// Reading memory in order counts most here.  One Zen 4 core reads 33 GB/s in order, but 12 GB/s
// from four rows side by side, unless lines are prefetched in order.

// scores[j][r] = k[j] . q[r] for n rows of K; q: [Width][head_dim].  A vector of dot products is
// computed at a time, with one sum across lanes for all of them.  Past the end, the last row is
// repeated up to a whole vector.  It calls fetch(i) once for each line of K, in order; i: elements.
template <class Isa, std::size_t Width, class Source, class Fetch>
void score_few(const Source* k, std::size_t n, std::size_t head_dim, const float* q, float* scores,
               Fetch fetch) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>, positions = w / Width;
    constexpr std::size_t vectors_per_line = std::max<std::size_t>(1, 64 / sizeof(Source) / w);
    std::size_t vector = 0;  // vectors of K read so far
    for (std::size_t j = 0; j < n; j += positions) {
        const Source* row[positions];
        unroll<positions>([&](auto p) { row[p] = k + std::min(j + p, n - 1) * head_dim; });
        F sum[w];
        unroll<w>([&](auto i) { sum[i] = F(0.0f); });
        for (std::size_t c = 0; c < head_dim; c += w, vector += positions) {
            F query[Width];
            unroll<Width>([&](auto r) { query[r] = load<Isa>(q + r * head_dim + c); });
            unroll<positions>([&](auto p) {
                if constexpr (p % vectors_per_line == 0) fetch((vector + p) * w);
                const F key = load_as_float<Isa>(row[p] + c);
                unroll<Width>([&](auto r) {
                    F& total = sum[p * Width + r];
                    total = xsimd::fma(key, query[r], total);
                });
            });
        }
        sum_each<Isa>(sum).store_unaligned(scores + j * Width);
    }
}

// out[r] += sum_j weights[j][r] * v[j] for n rows of V, v_stride apart, few enough to stay in the
// nearest cache.  If the registers cannot hold the sums of all r, the first of them read V from
// memory, and the others from that cache.  fetch: as for score_few, in the order of reading.
template <class Isa, std::size_t Width, class Source, class Fetch>
void add_values_few(const float* weights, std::size_t n, const Source* v, std::size_t v_stride,
                    std::size_t value_dim, float* out, std::size_t out_stride, Fetch fetch) {
    constexpr std::size_t w = lanes<Isa>;
    constexpr std::size_t vectors_per_line = std::max<std::size_t>(1, 64 / sizeof(Source) / w);
    const auto columns = [&](std::size_t c, auto vectors) {
        constexpr std::size_t rows = std::max<std::size_t>(1, 2 * Isa::float_tile / vectors);
        unroll<(Width + rows - 1) / rows>([&](auto part) {
            constexpr std::size_t first = part * rows, count = std::min(rows, Width - first);
            multiply<Isa, count, vectors>(
                weights + first, 1, Width, n,
                [&](std::size_t j, auto u) {
                    const std::size_t at = j * v_stride + c + u * w;
                    if constexpr (part == 0 && u % vectors_per_line == 0) fetch(at);
                    return load_as_float<Isa>(v + at);
                },
                [&](auto r, auto u, Floats<Isa> sum) {
                    float* at = out + (first + r) * out_stride + c + u * w;
                    (load<Isa>(at) + sum).store_unaligned(at);
                });
        });
    };
    std::size_t c = 0;
    for (; c + 8 * w <= value_dim; c += 8 * w) columns(c, std::integral_constant<std::size_t, 8>{});
    for (; c + 4 * w <= value_dim; c += 4 * w) columns(c, std::integral_constant<std::size_t, 4>{});
    for (; c < value_dim; c += w) columns(c, std::integral_constant<std::size_t, 1>{});
}

// ---- softmax ------------------------------------------------------------------------------------

// The state of the softmax of a panel's rows.  If the width is less than a vector, lane i belongs
// to row i % width: `top` is the same in all lanes of a row, `sum` is spread over them.
struct PanelState {
    float top[max_width];  // largest score so far, in units of log 2
    float sum[max_width];  // of 2^(score - top)
};

// Which positions of a tile the rows of a panel see: lane i sees position j if
// low[i] <= j + ahead[i] < high[i].
struct Visible {
    float low[max_width], high[max_width];
    float ahead[max_width];  // with few rows, some lanes hold later positions
    bool all;                // every row sees every position; the rest is not filled in then
};

// What is added to the scores of a panel's rows: to lane i, at position j of the tile,
// slope[i] * (j + ahead[i]).  The sum is a whole number, so that near positions lose no precision.
struct Slant {
    float slope[max_width], ahead[max_width];
    bool any;  // otherwise nothing is added, and the rest is not filled in
};

// Turns a tile of scores into weights relative to the rows' new maxima.  Sums of row r that are
// relative to its old maximum must be multiplied by factor[r].  width: of the panel, at most
// Vectors vectors.
template <class Isa, std::size_t Vectors>
void weigh(float* scores, std::size_t width, std::size_t n, float softcap, const Slant& slant,
           const Visible& visible, PanelState& state, float* factor) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    const std::size_t positions = std::max<std::size_t>(1, w / width);
    const bool changed = softcap != 0.0f || slant.any || !visible.all;
    F top[Vectors];
    unroll<Vectors>([&](auto v) { top[v] = load<Isa>(state.top + v * w); });
    for (std::size_t j = 0; j < n; j += positions)
        unroll<Vectors>([&](auto v) {
            float* at = scores + j * width + v * w;
            F score = load<Isa>(at);
            if (softcap != 0.0f) score = F(softcap) * xsimd::tanh(score);
            if (slant.any) {
                const F distance = load<Isa>(slant.ahead + v * w) + static_cast<float>(j);
                score = xsimd::fma(load<Isa>(slant.slope + v * w), distance, score);
            }
            if (!visible.all) {
                const F position = load<Isa>(visible.ahead + v * w) + static_cast<float>(j);
                const auto seen = (position >= load<Isa>(visible.low + v * w)) &
                                  (position < load<Isa>(visible.high + v * w));
                score = xsimd::select(seen, score, F(minus_infinity));
            }
            if (changed) score.store_unaligned(at);
            top[v] = xsimd::max(top[v], score);
        });
    if (width < w) {
        float lane[w];
        top[0].store_unaligned(lane);
        for (std::size_t i = width; i < w; ++i)
            lane[i % width] = std::max(lane[i % width], lane[i]);
        for (std::size_t i = width; i < w; ++i) lane[i] = lane[i % width];
        top[0] = load<Isa>(lane);
    }
    F shift[Vectors], sum[Vectors];
    unroll<Vectors>([&](auto v) {
        // Where nothing has been seen yet, -inf - 0 gives weights of 0; -inf - -inf would be NaN.
        shift[v] = xsimd::select(top[v] == F(minus_infinity), F(0.0f), top[v]);
        const F scale = exp2_to_one<Isa>(load<Isa>(state.top + v * w) - shift[v]);
        sum[v] = load<Isa>(state.sum + v * w) * scale;
        scale.store_unaligned(factor + v * w);
        top[v].store_unaligned(state.top + v * w);
    });
    for (std::size_t j = 0; j < n; j += positions)
        unroll<Vectors>([&](auto v) {
            float* at = scores + j * width + v * w;
            const F weight = exp2_to_one<Isa>(load<Isa>(at) - shift[v]);
            weight.store_unaligned(at);
            sum[v] += weight;
        });
    unroll<Vectors>([&](auto v) { sum[v].store_unaligned(state.sum + v * w); });
}

}  // namespace
}  // namespace tensor_ops
