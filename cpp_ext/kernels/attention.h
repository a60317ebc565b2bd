// Attention over tiles of KV positions with an online softmax (Milakov and Gimelshein 2018, Dao et
// al. 2022): scores never exist beyond one tile, and K and V are read once for all the query rows
// of a tile, that is for all heads that share them.
#pragma once

#include "kernels/plain_matrix.h"
#include "kernels/vmath.h"

namespace tensor_ops {
namespace {

inline constexpr std::size_t kv_tile = 64;     // positions at a time
inline constexpr std::size_t query_tile = 64;  // rows (tokens x heads) at a time
inline constexpr std::size_t max_head_dim = 256;
inline constexpr std::size_t padded_head_dim = max_head_dim + 32;  // up to a whole panel

struct AttentionScratch {
    float q[query_tile * max_head_dim];       // scaled queries [rows][head_dim]
    float scores[query_tile * kv_tile];       // [rows][kv_tile]
    float keys[kv_tile * max_head_dim];       // panels [kv_tile / panel][head_dim][panel]
    float values[kv_tile * padded_head_dim];  // panels, where V itself does not serve as such
    float out[query_tile * max_head_dim];     // [rows][head_dim], not yet divided by `sum`
    float top[query_tile], sum[query_tile];   // of the softmax so far
    float tile[depth_block * max_tile];
};
inline constexpr std::size_t attention_scratch_floats = sizeof(AttentionScratch) / sizeof(float);

// k[n][head_dim] to panels of positions, transposed, in squares of a vector's width.
template <class Isa, class Source>
void pack_keys(const Source* k, std::size_t n, std::size_t head_dim, float* panels) {
    constexpr std::size_t w = lanes<Isa>;
    std::size_t j = 0;
    for (; j + w <= n; j += w) {
        float* column = panels + j / panel<Isa> * head_dim * panel<Isa> + j % panel<Isa>;
        std::size_t c = 0;
        for (; c + w <= head_dim; c += w) {
            Floats<Isa> square[w];
            unroll<w>([&](auto i) { square[i] = load_as_float<Isa>(k + (j + i) * head_dim + c); });
            xsimd::transpose(square, square + w);
            unroll<w>([&](auto i) { square[i].store_unaligned(column + (c + i) * panel<Isa>); });
        }
        for (; c < head_dim; ++c)
            for (std::size_t i = 0; i < w; ++i)
                column[c * panel<Isa> + i] = load_one(k + (j + i) * head_dim + c);
    }
    for (; j < round_up(n, panel<Isa>); ++j) {
        float* column = panels + j / panel<Isa> * head_dim * panel<Isa> + j % panel<Isa>;
        for (std::size_t c = 0; c < head_dim; ++c)
            column[c * panel<Isa>] = j < n ? load_one(k + j * head_dim + c) : 0.0f;
    }
}

// Turns a row of scores into weights relative to the new maximum; returns the factor for what was
// summed under the old one.
template <class Isa>
inline float soften(float* scores, std::size_t visible, std::size_t n, float& top, float& sum) {
    using F = Floats<Isa>;
    constexpr float lowest = -std::numeric_limits<float>::infinity();
    const float largest = xsimd::reduce_max(fold<Isa>(
        scores, visible, lowest, lowest, [](F a, F b) { return xsimd::max(a, b); },
        [](F a, F b) { return xsimd::max(a, b); }));
    const float higher = std::max(top, largest);
    const F shift(higher == lowest ? 0.0f : higher);
    map<Isa>(visible, scores, [shift](F v) { return exp<Isa>(v - shift); }, scores);
    for (std::size_t i = visible; i < n; ++i) scores[i] = 0.0f;
    const float factor = higher == lowest ? 0.0f : std::exp(top - higher);
    const F weights = fold<Isa>(
        scores, visible, 0.0f, 0.0f, [](F a, F b) { return a + b; },
        [](F a, F b) { return a + b; });
    sum = sum * factor + xsimd::reduce_add(weights);
    top = higher;
    return factor;
}

// One tile of KV positions [p, p + n) for all rows of the query tile.
template <class Isa, class Source>
void attend_tile(const AttentionTask& task, const Source* k, const Source* v, std::size_t n,
                 std::size_t rows, const std::size_t* visible, AttentionScratch& s) {
    using F = Floats<Isa>;
    const std::size_t d = task.head_dim;
    // Transposing the keys pays from 4 rows on.
    if (rows < 4) {
        dot_rows<Isa>(task.kv_type, k, s.q, d, rows, d, 0, n, s.scores, kv_tile);
    } else {
        pack_keys<Isa>(k, n, d, s.keys);
        const Panels<float> keys{s.keys, d * panel<Isa>, panel<Isa>};
        multiply_panels<Isa>(s.q, d, rows, d, keys, n, s.scores, kv_tile, false, s.tile);
    }
    for (std::size_t r = 0; r < rows; ++r) {
        const float factor =
            soften<Isa>(s.scores + r * kv_tile, std::min(visible[r], n), n, s.top[r], s.sum[r]);
        if (factor != 1.0f)
            map<Isa>(d, s.out + r * d, [factor](F x) { return x * F(factor); }, s.out + r * d);
    }
    if (d % panel<Isa> == 0) {
        const Panels<Source> values{v, panel<Isa>, d};
        multiply_panels<Isa>(s.scores, kv_tile, rows, n, values, d, s.out, d, true, s.tile);
    } else {
        for (std::size_t i = 0; i < n; ++i)
            for (std::size_t c = 0; c < round_up(d, panel<Isa>); ++c)
                s.values[(c / panel<Isa> * n + i) * panel<Isa> + c % panel<Isa>] =
                    c < d ? load_one(v + i * d + c) : 0.0f;
        const Panels<float> values{s.values, n * panel<Isa>, panel<Isa>};
        multiply_panels<Isa>(s.scores, kv_tile, rows, n, values, d, s.out, d, true, s.tile);
    }
}

// Query tokens [first, last) by heads [head, head + heads) of the group.
template <class Isa, class Source>
void attend_rows(const AttentionTask& task, std::size_t first, std::size_t last, std::size_t head,
                 std::size_t heads, AttentionScratch& s) {
    using F = Floats<Isa>;
    const std::size_t d = task.head_dim, rows = (last - first) * heads;
    std::size_t reach[query_tile], visible[query_tile], furthest = 0;
    for (std::size_t r = 0; r < rows; ++r) {
        const std::size_t token = first + r / heads;
        const float* q = task.q + token * task.q_stride + (head + r % heads) * d;
        map<Isa>(d, s.q + r * d, [&](F x) { return x * F(task.scale); }, q);
        // With more queries than positions the first ones see nothing.
        const std::size_t ahead = task.n_q - 1 - token;
        reach[r] = !task.causal ? task.n_kv : task.n_kv > ahead ? task.n_kv - ahead : 0;
        furthest = std::max(furthest, reach[r]);
        s.top[r] = -std::numeric_limits<float>::infinity();
        s.sum[r] = 0.0f;
        std::memset(s.out + r * d, 0, d * sizeof(float));
    }
    const auto* k = static_cast<const Source*>(task.k);
    const auto* v = static_cast<const Source*>(task.v);
    for (std::size_t p = 0; p < furthest; p += kv_tile) {
        for (std::size_t r = 0; r < rows; ++r) visible[r] = reach[r] > p ? reach[r] - p : 0;
        attend_tile<Isa>(task, k + p * d, v + p * d, std::min(kv_tile, furthest - p), rows, visible,
                         s);
    }
    for (std::size_t r = 0; r < rows; ++r) {
        float* out = task.out + (first + r / heads) * task.out_stride + (head + r % heads) * d;
        const F scale(s.sum[r] == 0.0f ? 0.0f : 1.0f / s.sum[r]);
        map<Isa>(d, out, [scale](F x) { return x * scale; }, s.out + r * d);
    }
}

template <class Isa>
void attention(const AttentionTask& task, std::size_t first, std::size_t last, float* scratch) {
    auto& s = *reinterpret_cast<AttentionScratch*>(scratch);
    const std::size_t heads = std::min(task.group, query_tile);
    const std::size_t tokens = query_tile / std::max<std::size_t>(heads, 1);
    with_source(task.kv_type, [&](auto source) {
        using Source = std::remove_cvref_t<decltype(*source)>;
        for (std::size_t h = 0; h < task.group; h += heads)
            for (std::size_t t = first; t < last; t += tokens)
                attend_rows<Isa, Source>(task, t, std::min(t + tokens, last), h,
                                         std::min(heads, task.group - h), s);
    });
}

}  // namespace
}  // namespace tensor_ops
