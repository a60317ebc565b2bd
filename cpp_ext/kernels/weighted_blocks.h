// Quantises blocks of 32 columns that have a scale, and in some types a minimum, of their own,
// where columns have an importance.  Without it, from_float rounds them.
//
// The search minimises the sum of w * (x - value)^2 over a block, w being the importance of a
// column: from a few starts, the levels nearest to x and the scale and minimum with the least error
// for these levels are taken in turns.  It is what k_search.h does for a sub-block, but scales are
// not rounded to integers, and minima have either sign.
//
// A lane of a vector is a block.  No sum crosses lanes: each runs from the first column of a block
// to its last, without FMA, and has the same bits on every ISA and in NumPy
// (numpy_ops/weighted_blocks.py).
#pragma once

#include <cmath>

#include "kernels/blocks.h"
#include "kernels/importance.h"

namespace tensor_ops {
namespace {

inline constexpr std::size_t weighted_lanes = 16;  // blocks side by side

// Blocks side by side: column c of block l is x[c][l].
struct WeightedBlocks {
    float x[quant_block][weighted_lanes] = {}, w[quant_block][weighted_lanes] = {};
};
// What the search finds for each.
struct BlockScales {
    float d[weighted_lanes] = {}, m[weighted_lanes] = {};
};

template <class Isa, DType type>
class BlockSearch {
    using V = Floats<Isa>;
    static constexpr const Format& format = format_of(type);
    static constexpr bool has_min = format.has_min;
    static constexpr std::size_t n_levels = std::size_t{1} << format.bits;
    static constexpr std::size_t n_turns = 3;
    // Where the fit starts.  Without a minimum: the x of the largest magnitude is the lowest or the
    // highest level times these.  With: the lowest and the highest level stand for the least and
    // the greatest x, moved inwards by so many steps between levels.  Chosen by measurement: the
    // error is below that of llama.cpp's search for each type, see tests/test_ops_importance.py.
    static constexpr float to_low[] = {1.0f, 1.06f, 0.94f, 0.88f}, to_high[] = {1.0f, 1.07f};
    static constexpr float inwards[][2] = {{0, 0}, {0.4f, 0.4f}, {0.8f, 0}, {0, 0.8f},
                                           {1, 1}, {2, 0},       {0, 2}};

 public:
    explicit BlockSearch(const WeightedBlocks& blocks) : blocks_(blocks) {}

    BlockScales find() const {
        BlockScales found;
        for (std::size_t l = 0; l < weighted_lanes; l += lanes<Isa>) {
            Best best;
            V low = column(blocks_.x, 0, l), high = low;
            for (std::size_t c = 1; c < quant_block; ++c) {
                low = xsimd::min(low, column(blocks_.x, c, l));
                high = xsimd::max(high, column(blocks_.x, c, l));
            }
            if constexpr (has_min) {
                const V step = (high - low) / V(level(n_levels - 1));
                for (const auto& [of_low, of_high] : inwards) {
                    const V minimum = low + step * V(of_low);
                    fit(l, (high - step * V(of_high) - minimum) / V(level(n_levels - 1)), minimum,
                        best);
                }
            } else {
                const V extreme = xsimd::select(-low > high, low, high);
                for (const float share : to_low) fit(l, extreme / V(level(0) * share), V(0), best);
                for (const float share : to_high)
                    fit(l, extreme / V(level(n_levels - 1) * share), V(0), best);
            }
            best.scale.store_unaligned(found.d + l);
            best.minimum.store_unaligned(found.m + l);
        }
        for (std::size_t l = 0; l < weighted_lanes; ++l) {
            found.d[l] = rounded_to_half(found.d[l]);
            found.m[l] = rounded_to_half(found.m[l]);
        }
        return found;
    }

    // The codes of all blocks, whose levels are nearest to the columns.
    void codes(const BlockScales& found, std::uint8_t (*code)[weighted_lanes]) const {
        for (std::size_t l = 0; l < weighted_lanes; l += lanes<Isa>) {
            const V minimum = load<Isa>(found.m + l), inverse = inverse_of(load<Isa>(found.d + l));
            for (std::size_t c = 0; c < quant_block; ++c) {
                float at[lanes<Isa>];
                nearest(column(blocks_.x, c, l), inverse, minimum).store_unaligned(at);
                for (std::size_t i = 0; i < lanes<Isa>; ++i) code[c][l + i] = code_of(at[i]);
            }
        }
    }

 private:
    const WeightedBlocks& blocks_;

    struct Best {
        V error{INFINITY}, scale{0.0f}, minimum{0.0f};
    };

    static constexpr float level(std::size_t code) {
        return format.values ? format.values[code]
                             : static_cast<float>(code) - static_cast<float>(format.zero);
    }
    static std::uint8_t code_of(float of_level) {
        if constexpr (format.values == nullptr)
            return static_cast<std::uint8_t>(static_cast<int>(of_level) + format.zero);
        std::uint8_t code = 0;
        while (static_cast<float>(format.values[code]) < of_level) ++code;
        return code;
    }
    static V column(const float (*of)[weighted_lanes], std::size_t c, std::size_t l) {
        return load<Isa>(of[c] + l);
    }
    // The nearest level; between two values of a table, the upper one.
    static V nearest(V x, V inverse, V minimum) {
        if constexpr (has_min) x = x - minimum;
        const V scaled = x * inverse;
        if constexpr (format.values == nullptr) {
            return xsimd::nearbyint(
                xsimd::min(xsimd::max(scaled, V(level(0))), V(level(n_levels - 1))));
        } else {
            V found(level(0));
            for (std::size_t i = 1; i < n_levels; ++i) {
                const float middle = (level(i - 1) + level(i)) / 2;
                found = xsimd::select(scaled >= V(middle), V(level(i)), found);
            }
            return found;
        }
    }

    void fit(std::size_t l, V scale, V minimum, Best& best) const {
        for (std::size_t turn = 0;; ++turn) {
            const V inverse = inverse_of(scale);
            // Over the columns: w (x - value)^2, w, w q, w q^2, w x, w x q.
            V error(0.0f), w_sum(0.0f), wq(0.0f), wqq(0.0f), wx(0.0f), wxq(0.0f);
            for (std::size_t c = 0; c < quant_block; ++c) {
                const V x = column(blocks_.x, c, l), w = column(blocks_.w, c, l);
                const V q = nearest(x, inverse, minimum), weighted = w * q;
                V off = x - scale * q;
                if constexpr (has_min) off = off - minimum;
                error = error + w * off * off;
                wqq = wqq + weighted * q;
                wxq = wxq + weighted * x;
                if constexpr (has_min) {
                    w_sum = w_sum + w;
                    wq = wq + weighted;
                    wx = wx + w * x;
                }
            }
            const auto better = error < best.error;
            best.error = xsimd::select(better, error, best.error);
            best.scale = xsimd::select(better, scale, best.scale);
            best.minimum = xsimd::select(better, minimum, best.minimum);
            if (turn == n_turns) return;
            if constexpr (has_min) {
                const V determinant = w_sum * wqq - wq * wq;
                const auto solved = determinant > V(1e-6f) * (w_sum * wqq);
                scale = xsimd::select(solved, (w_sum * wxq - wx * wq) / determinant, scale);
                minimum = xsimd::select(solved, (wqq * wx - wq * wxq) / determinant, minimum);
            } else {
                scale = xsimd::select(wqq > V(0.0f), wxq / wqq, scale);
            }
        }
    }
};

// Up to weighted_lanes blocks; importance(i): of the columns of block i.
template <class Isa, DType type, class Importance>
void quantize_weighted_blocks(const float* x, std::size_t n, Importance&& importance,
                              std::byte* y) {
    constexpr const Format& format = format_of(type);
    WeightedBlocks blocks;
    float magnitude[weighted_lanes] = {};
    for (std::size_t l = 0; l < n; ++l) {
        const float *from = x + l * quant_block, *weights = importance(l);
        magnitude[l] = magnitude_of(from, quant_block);
        if (!has_scale(magnitude[l])) continue;
        const float largest = largest_of(weights, quant_block);
        for (std::size_t c = 0; c < quant_block; ++c) {
            blocks.x[c][l] = from[c];
            blocks.w[c][l] = weight_of(weights[c], largest);
        }
    }
    const BlockSearch<Isa, type> search(blocks);
    const BlockScales found = search.find();
    std::uint8_t codes[quant_block][weighted_lanes];
    search.codes(found, codes);
    for (std::size_t l = 0; l < n; ++l, y += format.bytes) {
        std::uint8_t code[quant_block];
        for (std::size_t c = 0; c < quant_block; ++c) code[c] = codes[c][l];
        const bool none = !has_scale(magnitude[l]);
        const float nothing = magnitude[l] < least_magnitude ? 0.0f : NAN;
        write_scaled_block(type, none ? nothing : found.d[l], none ? nothing : found.m[l], code, y);
    }
}

// n elements of rows of k columns, from column `at` of the first on.
template <class Isa>
void quantize_weighted(DType type, const float* x, const float* importance, std::size_t k,
                       std::size_t at, std::byte* y, std::size_t n) {
    const auto quantize = [&](auto of) {
        for (std::size_t i = 0; i < n; i += weighted_lanes * quant_block) {
            const std::size_t blocks = std::min(weighted_lanes, (n - i) / quant_block);
            quantize_weighted_blocks<Isa, of>(
                x + i, blocks,
                [&](std::size_t l) { return importance + (at + i + l * quant_block) % k; },
                y + i / quant_block * format_of(type).bytes);
        }
    };
    switch (type) {
        case DType::q4_0: return quantize(std::integral_constant<DType, DType::q4_0>{});
        case DType::q4_1: return quantize(std::integral_constant<DType, DType::q4_1>{});
        case DType::q5_0: return quantize(std::integral_constant<DType, DType::q5_0>{});
        case DType::q5_1: return quantize(std::integral_constant<DType, DType::q5_1>{});
        default: return quantize(std::integral_constant<DType, DType::iq4_nl>{});
    }
}

}  // namespace
}  // namespace tensor_ops
