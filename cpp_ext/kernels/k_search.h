// The search for the scales of a block of a K type: 256 columns, whose sub-blocks of 16 or 32 share
// a scale s * d and, in some types, a minimum m * d_min (formulas in dtype.h).
//
// It minimises the sum of w * (x - value)^2 over the block, w being the importance of a column.
// First each sub-block is fitted by itself: from a few starts, the codes nearest to x and the scale
// and minimum with the least error for these codes are taken in turns.  Then the whole block: d and
// d_min in half precision and the integers s and m are taken in turns, s and m among their
// neighbours and with the codes that are nearest for them.  So the rounding of the scales is part
// of the error that is minimised, which matters most for the 4-bit scales of q2_k.
//
// A lane of a vector is a sub-block.  No sum crosses lanes: each runs from the first column of a
// sub-block to its last, without FMA, and has the same bits on every ISA and in NumPy
// (numpy_ops/k_search.py).
#pragma once

#include <cmath>

#include "kernels/block.h"
#include "kernels/importance.h"
#include "kernels/simd.h"

namespace tensor_ops {
namespace {

inline constexpr std::size_t k_columns = 256;  // of a block
inline constexpr std::size_t k_lanes = 16;     // sub-blocks that lie side by side, some unused

// The least and the greatest code, less the code of zero, and the same of s.
struct KRange {
    float code_low, code_high, s_low, s_high;
};
constexpr KRange k_range(DType type) {
    const Format& format = format_of(type);
    const auto low = static_cast<float>(-format.zero);
    const float high = low + static_cast<float>((1 << format.bits) - 1);
    switch (type) {
        case DType::q2_k: return {low, high, 0, 15};
        case DType::q3_k: return {low, high, -32, 31};
        case DType::q6_k: return {low, high, -128, 127};
        default: return {low, high, 0, 63};
    }
}

// Where the fit of a sub-block starts.  With a minimum: code 0 and the greatest code stand for the
// least and the greatest x, moved inwards by `low` and `high` of the distance of the two.  Without:
// the x of the largest magnitude is `low` times the scale.
struct KStart {
    float low, high;
};
// turns: how often codes and scales are taken in turns from each start.  tops: the integers s that
// the largest scale begins with.  rounds: the same turns for the whole block, from each top.
struct KEffort {
    std::size_t n_starts, turns;
    KStart starts[5];
    std::size_t n_tops, rounds;
    float tops[3];
};
// Chosen by measurement: the error is below that of llama.cpp's search for each type, with and
// without importance, on normal, Laplace, Student's t and trained weights.
constexpr KEffort k_effort(DType type) {
    switch (type) {
        case DType::q2_k:
            return {5, 2, {{0, 0}, {0.1f, 0.1f}, {0.2f, 0.2f}, {0, 0.2f}, {0.2f, 0}},
                    3, 2, {15, 14, 13}};
        case DType::q3_k:
            return {5, 2, {{-4, 0}, {-4.5f, 0}, {-3.5f, 0}, {3, 0}, {3.5f, 0}}, 2, 2, {-32, -31}};
        case DType::q4_k:
            return {5, 2, {{0, 0}, {0.03f, 0.03f}, {0.1f, 0}, {0, 0.1f}, {0, -0.06f}},
                    2, 1, {63, 60}};
        case DType::q5_k: return {3, 2, {{0, 0}, {0.02f, 0.02f}, {0, -0.033f}}, 2, 1, {63, 60}};
        default: return {5, 1, {{-32, 0}, {-31, 0}, {-33, 0}, {-34, 0}, {31, 0}}, 1, 1, {-128}};
    }
}

// A block with its sub-blocks side by side: column c of sub-block l is x[c][l].  Lanes without a
// sub-block are zeros.
template <DType type>
struct KBlock {
    static constexpr std::size_t sub = format_of(type).sub, n_subs = k_columns / sub;
    float x[sub][k_lanes], w[sub][k_lanes];
    float w_sum[k_lanes], wx_sum[k_lanes];  // of w and of w * x

    // importance: of the columns, null for 1 each.
    KBlock(const float* from, const float* importance) : x{}, w{}, w_sum{}, wx_sum{} {
        const float largest = importance ? largest_of(importance, k_columns) : 0.0f;
        for (std::size_t l = 0; l < n_subs; ++l) {
            for (std::size_t c = 0; c < sub; ++c) {
                const std::size_t i = l * sub + c;
                const float weight = importance ? weight_of(importance[i], largest) : 1.0f;
                x[c][l] = from[i];
                w[c][l] = weight;
                w_sum[l] += weight;
                wx_sum[l] += weight * from[i];
            }
        }
    }
};

// Values of the sub-blocks: scales and minima, or the integers s and m that the file has.
struct KScales {
    float s[k_lanes] = {}, m[k_lanes] = {};
};

// What the search finds.  Without a sum that is finite, d is too large for half precision.
struct KFound {
    float d = 0.0f, d_min = 0.0f;
    KScales scales;
    float error = INFINITY;
};

template <class Isa, DType type>
class KSearch {
 public:
    using V = Floats<Isa>;
    static constexpr bool has_min = format_of(type).has_min;
    static constexpr std::size_t sub = KBlock<type>::sub, n_subs = KBlock<type>::n_subs;
    static constexpr KRange range = k_range(type);
    static constexpr KEffort effort = k_effort(type);

    explicit KSearch(const KBlock<type>& block) : block_(block) {}

    KFound find() const {
        const KScales exact = fit();
        float largest_s = 0.0f, largest_m = 0.0f;
        for (std::size_t l = 0; l < n_subs; ++l) {
            if (std::fabs(exact.s[l]) > std::fabs(largest_s)) largest_s = exact.s[l];
            if (exact.m[l] > largest_m) largest_m = exact.m[l];
        }
        KFound best;
        for (std::size_t i = 0; i < effort.n_tops; ++i) {
            KFound found;
            found.d = up_to_half(largest_s / effort.tops[i]);
            found.d_min = up_to_half(largest_m / range.s_high);
            round_scales(exact, found);
            for (std::size_t round = 0;; ++round) {
                choose_neighbours(found);
                if (found.error < best.error) best = found;
                if (round == effort.rounds) break;
                refit_block(found);
            }
        }
        return best;
    }

    // The codes nearest to the columns of sub-blocks l and following, less the code of zero.
    void codes(const KFound& found, std::size_t l, float (*q)[k_lanes]) const {
        const V scale = V(found.d) * load<Isa>(found.scales.s + l);
        const V minimum = V(found.d_min) * load<Isa>(found.scales.m + l),
                inverse = inverse_of(scale);
        for (std::size_t c = 0; c < sub; ++c)
            nearest(load<Isa>(block_.x[c] + l), inverse, minimum).store_unaligned(q[c] + l);
    }

 private:
    const KBlock<type>& block_;

    // Sums over the columns of each sub-block, q being the nearest codes for its scale and minimum.
    struct Sums {
        V error{0.0f}, q{0.0f}, qq{0.0f}, xq{0.0f};  // w * (x - value)^2, w q, w q^2, w x q
    };

    // The nearest half that is not nearer to zero, so that the largest s stays within its range
    // where the steps between halves are wide: below 6e-5, which is the scale of weights of 0.25 in
    // q6_k.
    static float up_to_half(float value) {
        const std::uint16_t half = half_from_float(value);
        const bool nearer = std::fabs(half_to_float(half)) < std::fabs(value);
        return half_to_float(static_cast<std::uint16_t>(half + nearer));
    }
    static V clamp(V value, float low, float high) {
        return xsimd::min(xsimd::max(value, V(low)), V(high));
    }
    static V above_minimum(V x, V minimum) {
        if constexpr (has_min) return x + minimum;
        return x;
    }
    static V nearest(V x, V inverse, V minimum) {
        return xsimd::nearbyint(
            clamp(above_minimum(x, minimum) * inverse, range.code_low, range.code_high));
    }

    Sums sums(std::size_t l, V scale, V minimum) const {
        const V inverse = inverse_of(scale);
        Sums sums;
        for (std::size_t c = 0; c < sub; ++c) {
            const V x = load<Isa>(block_.x[c] + l), w = load<Isa>(block_.w[c] + l);
            const V q = nearest(x, inverse, minimum), wq = w * q;
            const V off = above_minimum(x, minimum) - scale * q;
            sums.error = sums.error + w * off * off;
            sums.qq = sums.qq + wq * q;
            sums.xq = sums.xq + wq * x;
            if constexpr (has_min) sums.q = sums.q + wq;
        }
        return sums;
    }
    V error(std::size_t l, V scale, V minimum) const {
        const V inverse = inverse_of(scale);
        V error(0.0f);
        for (std::size_t c = 0; c < sub; ++c) {
            const V x = load<Isa>(block_.x[c] + l), w = load<Isa>(block_.w[c] + l);
            const V off = above_minimum(x, minimum) - scale * nearest(x, inverse, minimum);
            error = error + w * off * off;
        }
        return error;
    }

    // The scale and minimum with the least error for given codes: the solution of two equations, or
    // of one where the minimum would be negative.  Where it has none, both stay.
    void refit(std::size_t l, const Sums& of, V& scale, V& minimum) const {
        const V alone = of.xq / of.qq;
        if constexpr (has_min) {
            const V w = load<Isa>(block_.w_sum + l), x = load<Isa>(block_.wx_sum + l);
            const V determinant = w * of.qq - of.q * of.q;
            const V below = (of.q * of.xq - of.qq * x) / determinant;
            const V both = (w * of.xq - x * of.q) / determinant;
            const auto solved = determinant > V(1e-6f) * (w * of.qq);
            const V fitted = xsimd::select(below < V(0.0f), alone, both);
            scale = xsimd::select(solved, fitted, scale);
            minimum = xsimd::select(solved, xsimd::max(below, V(0.0f)), minimum);
        } else {
            scale = xsimd::select(of.qq > V(0.0f), alone, scale);
        }
    }

    // The best scale and minimum of each sub-block by itself.
    KScales fit() const {
        KScales found;
        for (std::size_t l = 0; l < n_subs; l += lanes<Isa>) {
            V low = load<Isa>(block_.x[0] + l), high = low;
            for (std::size_t c = 1; c < sub; ++c) {
                const V x = load<Isa>(block_.x[c] + l);
                low = xsimd::min(low, x);
                high = xsimd::max(high, x);
            }
            const V extreme = xsimd::select(-low > high, low, high);
            if constexpr (has_min) low = xsimd::min(low, V(0.0f));
            const V width = high - low;
            V best_error(INFINITY), best_s(0.0f), best_m(0.0f);
            for (std::size_t i = 0; i < effort.n_starts; ++i) {
                const KStart start = effort.starts[i];
                V scale, minimum(0.0f);
                if constexpr (has_min) {
                    minimum = xsimd::max(-(low + width * V(start.low)), V(0.0f));
                    scale = (high - width * V(start.high) + minimum) / V(range.code_high);
                } else {
                    scale = extreme / V(start.low);
                }
                for (std::size_t turn = 0;; ++turn) {
                    const Sums now = sums(l, scale, minimum);
                    const auto better = now.error < best_error;
                    best_error = xsimd::select(better, now.error, best_error);
                    best_s = xsimd::select(better, scale, best_s);
                    best_m = xsimd::select(better, minimum, best_m);
                    if (turn == effort.turns) break;
                    refit(l, now, scale, minimum);
                }
            }
            best_s.store_unaligned(found.s + l);
            best_m.store_unaligned(found.m + l);
        }
        return found;
    }

    // The integers nearest to the scales and minima for the d and d_min of `found`.
    static void round_scales(const KScales& exact, KFound& found) {
        const V by_d = inverse_of(V(found.d)), by_d_min = inverse_of(V(found.d_min));
        for (std::size_t l = 0; l < n_subs; l += lanes<Isa>) {
            const V s = load<Isa>(exact.s + l) * by_d, m = load<Isa>(exact.m + l) * by_d_min;
            xsimd::nearbyint(clamp(s, range.s_low, range.s_high))
                .store_unaligned(found.scales.s + l);
            xsimd::nearbyint(clamp(m, 0.0f, range.s_high)).store_unaligned(found.scales.m + l);
        }
    }

    // Replaces s and m by those of their neighbours that have the least error.
    void choose_neighbours(KFound& found) const {
        constexpr int reach_m = has_min ? 1 : 0;
        float errors[k_lanes];
        for (std::size_t l = 0; l < n_subs; l += lanes<Isa>) {
            const V s = load<Isa>(found.scales.s + l), m = load<Isa>(found.scales.m + l);
            V best_error(INFINITY), best_s = s, best_m = m;
            for (int i = -1; i <= 1; ++i) {
                const V near_s = clamp(s + V(static_cast<float>(i)), range.s_low, range.s_high);
                for (int j = -reach_m; j <= reach_m; ++j) {
                    const V near_m = clamp(m + V(static_cast<float>(j)), 0.0f, range.s_high);
                    const V now = error(l, V(found.d) * near_s, V(found.d_min) * near_m);
                    const auto better = now < best_error;
                    best_error = xsimd::select(better, now, best_error);
                    best_s = xsimd::select(better, near_s, best_s);
                    best_m = xsimd::select(better, near_m, best_m);
                }
            }
            best_s.store_unaligned(found.scales.s + l);
            best_m.store_unaligned(found.scales.m + l);
            best_error.store_unaligned(errors + l);
        }
        found.error = 0.0f;
        for (std::size_t l = 0; l < n_subs; ++l) found.error += errors[l];
    }

    // The d and d_min with the least error for s, m and the codes that are nearest now, before they
    // are rounded to half precision.
    void refit_block(KFound& found) const {
        // Sums of w a^2, w a b, w b^2, w x a and w x b, a being s * q and b being m.
        double aa = 0, ab = 0, bb = 0, xa = 0, xb = 0;
        for (std::size_t l = 0; l < n_subs; l += lanes<Isa>) {
            const V s = load<Isa>(found.scales.s + l), m = load<Isa>(found.scales.m + l);
            const Sums now = sums(l, V(found.d) * s, V(found.d_min) * m);
            float q[lanes<Isa>], qq[lanes<Isa>], xq[lanes<Isa>];
            now.q.store_unaligned(q);
            now.qq.store_unaligned(qq);
            now.xq.store_unaligned(xq);
            for (std::size_t i = 0; i < lanes<Isa> && l + i < n_subs; ++i) {
                const double a = found.scales.s[l + i], b = found.scales.m[l + i];
                aa += a * a * qq[i];
                ab += a * b * q[i];
                bb += b * b * block_.w_sum[l + i];
                xa += a * xq[i];
                xb += b * block_.wx_sum[l + i];
            }
        }
        const double determinant = aa * bb - ab * ab;
        if (determinant > 1e-6 * (aa * bb)) {
            found.d = rounded_to_half(static_cast<float>((bb * xa - ab * xb) / determinant));
            found.d_min = rounded_to_half(static_cast<float>((ab * xa - aa * xb) / determinant));
        } else if (aa > 0) {
            found.d = rounded_to_half(static_cast<float>((xa + found.d_min * ab) / aa));
        }
    }
};

}  // namespace
}  // namespace tensor_ops
