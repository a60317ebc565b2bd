// Products of quantised weights with many rows of activations of 8 bits, for an ISA that gains by
// unpacking weights first: see unpacked_products.h.
//
// Two groups of weights are unpacked to bytes, a piece at a time that stays in L1, and all tiles of
// activations pass over the piece.  So unpacking costs next to nothing, and an activation that is
// repeated in a vector meets two groups.  The inner loop knows the range of a type's codes and the
// form of its scales, and nothing else of the type.  A Zen 4 core multiplies Q4_K and Q3_K by 128
// rows 1.7 times as fast as by unpacking them for each tile of 4 rows.
//
// A row gets the same numbers as among few rows: linear_quantized.h adds floats in this order, too.
#pragma once

#include "kernels/unpacked_products.h"

namespace tensor_ops {
namespace {

// Rows from which unpacking pays.  With AVX2, 12 rows by Q4_K then take 0.82 of the time, 8 as
// long; 32 by Q8_0 0.98, 16 take 1.16.  With i8mm, 4 rows take 0.68 (Q4_0) and 0.75 (Q4_K) of the
// instructions.
template <class Isa, DType Type>
inline constexpr std::size_t unpacked_min_rows = has_signed_products<Isa> ? Isa::activation_tile
                                                 : unpacked_form<Isa>(Type).planes == 1 ? 12
                                                                                        : 32;
// Rows whose sums are kept while the pieces of two groups pass.
inline constexpr std::size_t unpacked_max_rows = 256;
// Blocks of a piece.  A piece and the same blocks of a tile of activations stay in L1.
inline constexpr std::size_t piece_blocks = 16;

// The sums of the codes of a tile's blocks: what a bias or a minimum is multiplied by.
template <std::size_t Tokens>
struct CodeSums {
    std::int32_t of[piece_blocks][Tokens];

    // As int16 [2 halves of a block] if there are factors, or else times -bias.
    template <UnpackedForm Form>
    void collect(const std::byte* x, std::size_t blocks, int bias) {
        for (std::size_t b = 0; b < blocks; ++b, x += (quant_block + 16) * Tokens) {
            std::int32_t all[Tokens], first[Tokens];
            std::memcpy(all, x + (quant_block + 8) * Tokens, sizeof all);
            std::memcpy(first, x + (quant_block + 12) * Tokens, sizeof first);
            for (std::size_t t = 0; t < Tokens; ++t)
                of[b][t] = Form.has_factor ? (first[t] & 0xffff) | (all[t] - first[t]) << 16
                                           : -bias * all[t];
        }
    }
};

// Unpacks `blocks` blocks from `first` on of some groups, to [blocks][piece_groups][vectors].
template <class Isa>
using UnpackBlocks = void(const PackedView& w, const std::size_t (&groups)[piece_groups],
                          std::size_t first, std::size_t blocks, Ints<Isa>* to);
template <class Isa, DType Type>
[[gnu::noinline]] void unpack_blocks(const PackedView& w, const std::size_t (&groups)[piece_groups],
                                     std::size_t first, std::size_t blocks, Ints<Isa>* to) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr Format format = product_format(Type);
    using Products = BlockProducts<Isa>;
    constexpr UnpackedForm form = unpacked_form<Isa>(Type);
    const auto halves = [](I low, I high) { return (low & I(0xffff)) | (high << 16); };
    for (std::size_t g = 0; g < piece_groups; ++g) {
        const GroupReader<Isa, Type> reader(w, groups[g]);
        I* at = to + g * form.vectors();
        for (std::size_t b = first; b < first + blocks; ++b, at += piece_groups * form.vectors()) {
            reader.fetch_blocks_ahead(b);
            const auto head = reader.load_head(b);
            const auto scales = reader.template load_scales<form.has_factor>(b, head);
            unroll<4>([&](auto pair) __attribute__((always_inline)) {
                I even, odd;
                reader.template codes<pair>(b, scales, even, odd);
                Products::template put<Type>(pair, even, odd, at);
            });
            const auto put_float = [&](std::size_t place, F number) {
                at[place] = xsimd::bitwise_cast<std::int32_t>(number);
            };
            put_float(form.scale(), form.has_factor ? head.d : scales.scale[0]);
            if constexpr (form.has_factor) {
                I s[form.subs];
                for (std::size_t i = 0; i < form.subs; ++i) s[i] = xsimd::to_int(scales.scale[i]);
                for (std::size_t i = 0; i < form.planes * form.subs; ++i) {
                    const I factor = s[i % form.subs] << static_cast<int>(i / form.subs * 4);
                    at[form.factor() + i] = Products::factor(factor);
                }
                if constexpr (form.has_bias) {
                    const I bias(-Products::bias(format));
                    at[form.bias()] = halves(s[0] * bias, s[form.subs - 1] * bias);
                }
            }
            if constexpr (form.has_min && form.subs == 2) {
                put_float(form.minimum(), -head.d_min);
                at[form.min_factor()] =
                    halves(xsimd::to_int(scales.minimum[0]), xsimd::to_int(scales.minimum[1]));
            } else if constexpr (form.has_min) {
                put_float(form.minimum(),
                          form.has_factor ? -(head.d_min * scales.minimum[0]) : scales.minimum[0]);
            }
        }
    }
}

// The sums of a tile of Tokens rows by the groups of a piece.  Its loops must be unrolled, so that
// the sums are registers.
template <class Isa, std::size_t Tokens>
struct TileSums {
    Floats<Isa> of[Tokens][piece_groups];

    [[gnu::always_inline]] void clear() {
        each([&](std::size_t t, std::size_t g)
                 __attribute__((always_inline)) { of[t][g] = Floats<Isa>(0.0f); });
    }
    template <class F>
    [[gnu::always_inline]] static void each(F&& f) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t)
#pragma GCC unroll 8
            for (std::size_t g = 0; g < piece_groups; ++g) f(t, g);
    }
};

// The products of one piece of unpacked weights with the same blocks of a tile of rows.
template <class Isa, UnpackedForm Form, std::size_t Tokens>
class UnpackedProduct {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;
    using Sums = TileSums<Isa, Tokens>;
    static constexpr std::size_t record = (quant_block + 16) * Tokens;

    static I load(const I* block, std::size_t g, std::size_t place) {
        return load_vector(block + g * Form.vectors() + place);
    }
    static F load_float(const I* block, std::size_t g, std::size_t place) {
        return F::load_aligned(reinterpret_cast<const float*>(block + g * Form.vectors() + place));
    }

 public:
    // total += products, minima += those of the minima.
    [[gnu::noinline]] static void add(const I* w, std::size_t blocks, const std::byte* x, int bias,
                                      Sums& total, [[maybe_unused]] Sums& minima) {
        CodeSums<Tokens> codes;
        if constexpr (Form.has_bias || (Form.has_min && Form.subs == 2))
            codes.template collect<Form>(x, blocks, bias);
        if constexpr (Form.has_min) add_minima(w, blocks, x, codes, minima);
        // The sums are registers, where an ISA has enough.
        std::conditional_t<has_signed_products<Isa>, Sums, Sums&> sums = total;
        for (std::size_t b = 0; b < blocks;) {
            const I* head = w;
            Sums run;
            run.clear();
            for (const std::size_t end = b + Form.run; b < end;
                 ++b, x += record, w += piece_groups * Form.vectors())
                add_block(w, x, codes.of[b], run);
            Sums::each([&](std::size_t t, std::size_t g) __attribute__((always_inline)) {
                sums.of[t][g] =
                    xsimd::fma(load_float(head, g, Form.scale()), run.of[t][g], sums.of[t][g]);
            });
        }
        if constexpr (has_signed_products<Isa>) total = sums;
    }

 private:
    // run += products of one block, without the float part of the weights' scale.
    [[gnu::always_inline]] static void add_block(const I* w, const std::byte* x,
                                                 const std::int32_t (&codes)[Tokens], Sums& run) {
        I sum[Tokens][piece_groups];
        BlockProducts<Isa>::template multiply<Form>(w, x, sum);
        Sums::each([&](std::size_t t, std::size_t g) __attribute__((always_inline)) {
            I exact = sum[t][g];
            if constexpr (Form.has_bias && Form.has_factor)
                exact += Int8::widen(load(w, g, Form.bias()), I(codes[t]));
            else if constexpr (Form.has_bias)
                exact += I(codes[t]);
            const F d(read<float>(x + quant_block * Tokens + 4 * t));
            run.of[t][g] = xsimd::fma(xsimd::to_float(exact), d, run.of[t][g]);
        });
    }

    // minima += minima * sums of activations.  In a loop of its own its sums are registers; between
    // the products of Q4_K, which take all registers, it costs 1.7 times as much.
    [[gnu::always_inline]] static void add_minima(const I* w, std::size_t blocks,
                                                  const std::byte* x, const CodeSums<Tokens>& codes,
                                                  Sums& minima) {
        Sums sums = minima;
        for (std::size_t b = 0; b < blocks;) {
            const I* head = w;
            if constexpr (Form.subs == 2) sums.clear();
            for (const std::size_t end = b + Form.run; b < end;
                 ++b, x += record, w += piece_groups * Form.vectors())
                Sums::each([&](std::size_t t, std::size_t g) __attribute__((always_inline)) {
                    const std::byte* tail = x + quant_block * Tokens;
                    F minimum, x_sum;
                    if constexpr (Form.subs == 2) {  // the sums are whole numbers times d
                        minimum = xsimd::to_float(
                            I(Int8::widen(load(w, g, Form.min_factor()), I(codes.of[b][t]))));
                        x_sum = F(read<float>(tail + 4 * t));
                    } else {
                        minimum = load_float(w, g, Form.minimum());
                        x_sum = F(read<float>(tail + 4 * Tokens + 4 * t));
                    }
                    sums.of[t][g] = xsimd::fma(minimum, x_sum, sums.of[t][g]);
                });
            if constexpr (Form.subs == 2)
                Sums::each([&](std::size_t t, std::size_t g) __attribute__((always_inline)) {
                    minima.of[t][g] = xsimd::fma(load_float(head, g, Form.minimum()), sums.of[t][g],
                                                 minima.of[t][g]);
                });
        }
        if constexpr (Form.subs == 1) minima = sums;
    }
};

// Full tiles of activations, at most unpacked_max_rows rows, by some groups.
template <class Isa, UnpackedForm Form>
[[gnu::noinline]] void multiply_unpacked(const PackedView& w,
                                         const std::size_t (&groups)[piece_groups],
                                         UnpackBlocks<Isa>* unpack, int bias, const std::byte* xq,
                                         std::size_t tiles, float* y, std::size_t y_stride) {
    constexpr std::size_t tokens = Isa::activation_tile;
    constexpr std::size_t record = (quant_block + 16) * tokens;
    const std::size_t blocks = w.k / quant_block;
    Ints<Isa> piece[piece_blocks * piece_groups * Form.vectors()];
    constexpr std::size_t most_tiles = unpacked_max_rows / tokens;
    TileSums<Isa, tokens> total[most_tiles], minima[Form.has_min ? most_tiles : 1];
    const auto minima_of = [&](std::size_t tile) -> auto& {
        return minima[Form.has_min ? tile : 0];
    };
    for (std::size_t tile = 0; tile < tiles; ++tile) {
        total[tile].clear();
        minima_of(tile).clear();
    }
    for (std::size_t b = 0; b < blocks; b += piece_blocks) {
        const std::size_t count = std::min(piece_blocks, blocks - b);
        unpack(w, groups, b, count, piece);
        for (std::size_t tile = 0; tile < tiles; ++tile)
            UnpackedProduct<Isa, Form, tokens>::add(piece, count, xq + (tile * blocks + b) * record,
                                                    bias, total[tile], minima_of(tile));
    }
    for (std::size_t r = 0; r < tiles * tokens; ++r)
        for (std::size_t g = 0; g < piece_groups; ++g) {
            const std::size_t column = groups[g] * lanes<Isa>;
            Floats<Isa> sum = total[r / tokens].of[r % tokens][g];
            if constexpr (Form.has_min) sum = sum + minima[r / tokens].of[r % tokens][g];
            float* to = y + r * y_stride + column;
            if (w.n - column >= lanes<Isa>)
                sum.store_unaligned(to);
            else
                store_partial<Isa>(sum, to, w.n - column);
        }
}

// The products of the full tiles of at most unpacked_max_rows rows.  Returns the rows of these.
template <class Isa, DType Type>
std::size_t linear_unpacked(const PackedView& w, const std::byte* xq, std::size_t rows,
                            std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    constexpr Format format = product_format(Type);
    const std::size_t tiles = rows / Isa::activation_tile;
    // The last of an odd number is multiplied twice: functions for one group alone would take the
    // compiler as much time and memory as those for two.
    for (std::size_t g = first; g < last; g += piece_groups)
        multiply_unpacked<Isa, unpacked_form<Isa>(Type)>(
            w, {g, std::min(g + 1, last - 1)}, unpack_blocks<Isa, Type>,
            BlockProducts<Isa>::bias(format), xq, tiles, y, y_stride);
    return tiles * Isa::activation_tile;
}

}  // namespace
}  // namespace tensor_ops
