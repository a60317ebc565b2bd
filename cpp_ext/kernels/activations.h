// Activations as integers of 8 or 16 bits, for the products with quantised weights.
//
// They lie in tiles of T rows, where T is the largest of activation_tile, half of it, ..., 1 that
// the rows left fill.  A tile is [k / 32] records of { int8 [digits][8 quads][T][4 columns]; float
// d[T]; float sum[T], of the dequantised block; int32 sum[T], of the codes; int32 first[T], of the
// codes of columns 0 to 15 }.  A q8 code is one digit; a q16 code is two digits, 256 * high + low,
// each in [-127, 127].
#pragma once

#include "kernels/packed.h"

namespace tensor_ops {
namespace {

constexpr std::size_t smaller_tile(std::size_t tile) { return tile / 2; }

// Rows of the next tile of activations when `left` rows remain.
template <class Isa>
constexpr std::size_t tile_rows(std::size_t left) {
    std::size_t tile = Isa::activation_tile;
    while (tile > left) tile = smaller_tile(tile);
    return tile;
}

// Calls f with std::integral_constant<tile> for a tile of Tile rows, or one of the smaller sizes.
template <std::size_t Tile, class F>
inline void with_tile(std::size_t tile, F&& f) {
    if (tile == Tile) return f(std::integral_constant<std::size_t, Tile>{});
    if constexpr (Tile > 1) with_tile<smaller_tile(Tile)>(tile, static_cast<F&&>(f));
}

// Calls f with std::integral_constant<std::size_t, digits>.
template <class F>
inline void with_digits(Activations kind, F&& f) {
    if (kind == Activations::q16)
        f(std::integral_constant<std::size_t, 2>{});
    else
        f(std::integral_constant<std::size_t, 1>{});
}

// Blocks of a tile that are quantised together: as many as give activation_tile blocks of a row.
template <class Isa, std::size_t Tile>
inline constexpr std::size_t blocks_at_once = Isa::activation_tile / Tile;

// Quantises n_blocks blocks, at most blocks_at_once, of each row of a tile.
//
// They are transposed, so that a vector holds one column of several blocks and nothing goes across
// its lanes; that is 4.6 times as fast as block by block with AVX-512.  Lane p * activation_tile +
// i belongs to row i % Tile and block i / Tile, and holds columns from p * columns on.
template <class Isa, std::size_t Digits, std::size_t Tile>
void quantize_blocks(const float* x, std::size_t x_stride, std::size_t n_blocks,
                     std::byte* records) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr std::size_t w = lanes<Isa>, items = Isa::activation_tile, parts = w / items;
    constexpr std::size_t columns = quant_block / parts;
    static_assert(parts == 1 || parts == 2);
    constexpr float levels = Digits == 1 ? 127.0f : 127.0f * 256.0f;
    const auto other_part = [](auto v) { return xsimd::rotate_left<items>(v); };

    F column[columns];
    for (std::size_t c = 0; c < columns; c += w) {
        unroll<w>([&](auto lane) {
            constexpr std::size_t part = lane / items, item = lane % items;
            const std::size_t block = std::min<std::size_t>(item / Tile, n_blocks - 1);
            column[c + lane] =
                load<Isa>(x + item % Tile * x_stride + block * quant_block + part * columns + c);
        });
        transpose<Isa>(column + c);
    }

    // As integers, magnitudes are in the same order, with infinity and NaN above all.
    I top(0);
    for (const F& v : column)
        top = xsimd::max(top, xsimd::bitwise_cast<std::int32_t>(v) & I(0x7fffffff));
    if constexpr (parts == 2) top = xsimd::max(top, other_part(top));
    const auto is_finite = xsimd::batch_bool_cast<float>(top < I(0x7f800000));
    const F largest = xsimd::bitwise_cast<float>(top);
    // A block so small that float32 cannot hold the inverse of its scale counts as zeros.
    const F inverse =
        xsimd::select(largest > F(levels * 1e-37f), divide(F(levels), largest), F(0.0f));
    // NaN and infinity have no code: the second term makes the scale NaN.
    const F scale = divide(largest, F(levels)) + largest * F(0.0f);

    constexpr std::size_t record_bytes = (Digits * quant_block + 16) * Tile;
    // Writes a number of each row and block, from lane `first` on, to the same place of each
    // record.
    const auto put = [&](I numbers, std::size_t first, std::byte* to) {
        std::int32_t lane[w];
        numbers.store_unaligned(lane);
        for (std::size_t b = 0; b < n_blocks; ++b)
            std::memcpy(to + b * record_bytes, lane + first + b * Tile, 4 * Tile);
    };
    I sum(0), rest(0);  // of the codes of columns 0 to 15, and of columns 16 to 31 if parts is 1
    unroll<columns / 4>([&](auto quad) {
        I high(0), low(0);  // the digits of four columns, as bytes
        unroll<4>([&](auto i) {
            constexpr std::size_t c = 4 * quad + 3 - i;
            I code =
                xsimd::nearbyint_as_int(xsimd::select(is_finite, column[c] * inverse, F(0.0f)));
            I digit = code;
            if constexpr (Digits == 2) {
                const I upper = (code + I(128)) >> 8;
                // AVX2's dot product negates digits, and -128 has no negative in 8 bits.  The bound
                // costs 1/32512 of the largest value.
                digit = xsimd::max(code - (upper << 8), I(-127));
                high = high << 8 | (upper & I(255));
                code = (upper << 8) + digit;
            }
            low = low << 8 | (digit & I(255));
            (c < 16 ? sum : rest) += code;
        });
        for (std::size_t part = 0; part < parts; ++part) {
            std::byte* to = records + (part * columns / 4 + quad) * 4 * Tile;
            put(low, part * items, to + (Digits - 1) * quant_block * Tile);
            if constexpr (Digits == 2) put(high, part * items, to);
        }
    });
    if constexpr (parts == 2) rest = other_part(sum);
    const I all = sum + rest;
    std::byte* tail = records + Digits * quant_block * Tile;
    put(xsimd::bitwise_cast<std::int32_t>(scale), 0, tail);
    put(xsimd::bitwise_cast<std::int32_t>(scale * xsimd::to_float(all)), 0, tail + 4 * Tile);
    put(all, 0, tail + 8 * Tile);
    put(sum, 0, tail + 12 * Tile);
}

template <class Isa>
void quantize_activations(Activations kind, const float* x, std::size_t rows, std::size_t k,
                          std::size_t first, std::size_t last, std::byte* q) {
    const std::size_t blocks = k / quant_block, bytes = quantized_block_bytes(kind);
    with_digits(kind, [&](auto digits) {
        for (std::size_t r = first; r < last; r += tile_rows<Isa>(rows - r)) {
            with_tile<Isa::activation_tile>(tile_rows<Isa>(rows - r), [&](auto tile) {
                constexpr std::size_t most = blocks_at_once<Isa, tile>;
                for (std::size_t b = 0; b < blocks; b += most)
                    quantize_blocks<Isa, digits, tile>(x + r * k + b * quant_block, k,
                                                       std::min(most, blocks - b),
                                                       q + (r * blocks + b * tile) * bytes);
            });
        }
    });
}

}  // namespace
}  // namespace tensor_ops
