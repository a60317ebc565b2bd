// The packed layouts: how weights and activations lie in memory for the matrix kernels.
//
// Weights, floating types (f32, f16, bf16): groups of 2 vectors of rows; a group is [k][rows].
// Weights, quantised: groups of one vector of rows (16 for AVX-512).  A group is
//     codes   [k / 32][8 quads of columns][rows][4 columns]     one byte a code (q8_0), or
//             [k / 32][4 pairs of quads][rows][4 columns]       a byte holds the code of quad 2p in
//                                                               its low half, of 2p + 1 in its high
//     d       [k / 32][rows] f16;   m  [k / 32][rows] f16 (q4_1)
// so that 32 columns of a group are 8 (4) loads, 8 dot products and one scaling for all its rows.
// Each part starts on 64 bytes: two streams (three for q4_1), every load of codes aligned.
//
// Activations: tiles of T rows, T the largest of activation_tile, ..., 4, 2, 1 that still fits; a
// tile is [k / 32] records of { int8 [digits][8 quads][T][4 columns]; float d[T]; float sum[T] (of
// the dequantised block); int32 sum[T] (of the codes) }.  A q8 code is one digit; a q16 code is
// two, 256 * high + low, each in [-127, 127].
#pragma once

#include <algorithm>

#include "kernels/blocks.h"

namespace tensor_ops {
namespace {

constexpr std::size_t round_up(std::size_t n, std::size_t unit) {
    return (n + unit - 1) / unit * unit;
}

template <class Isa>
std::size_t group_rows(DType type) {
    return is_quantized(type) ? lanes<Isa> : 2 * lanes<Isa>;
}

// Offsets of a quantised group's parts.
template <class Isa>
struct GroupLayout {
    std::size_t block_bytes;  // of codes, per 32 columns
    std::size_t scales, minima, total;

    GroupLayout(DType type, std::size_t k) {
        const std::size_t blocks = k / quant_block;
        block_bytes = quant_block * lanes<Isa> / (type == DType::q8_0 ? 1 : 2);
        const std::size_t halves = round_up(blocks * lanes<Isa> * 2, 64);
        scales = round_up(blocks * block_bytes, 64);
        minima = scales + halves;
        total = minima + (type == DType::q4_1 ? halves : 0);
    }
};

template <class Isa>
std::size_t group_bytes(DType type, std::size_t k) {
    if (is_quantized(type)) return GroupLayout<Isa>(type, k).total;
    return round_up(row_bytes(type, k) * group_rows<Isa>(type), 64);
}

// Byte and shift of the code of column c (of 32) and row r (of the group) within a block's codes.
template <class Isa>
inline std::size_t code_offset(DType type, std::size_t c, std::size_t r) {
    const std::size_t quad = type == DType::q8_0 ? c / 4 : c / 8;
    return (quad * lanes<Isa> + r) * 4 + c % 4;
}
template <class Isa>
inline int code_shift(DType type, std::size_t c) {
    return type != DType::q8_0 && c / 4 % 2 ? 4 : 0;
}

template <class Isa>
void pack_quantized_row(DType type, const std::byte* src, std::size_t k, std::size_t r,
                        std::byte* group) {
    const GroupLayout<Isa> at(type, k);
    const std::size_t bytes = row_bytes(type, quant_block);
    // Codes are unsigned here; ISAs whose dot product wants them signed take 128 off again.
    const std::uint8_t flip = type == DType::q8_0 && Isa::Int8::byte_bias == 0 ? 0x80 : 0;
    for (std::size_t b = 0; b < k / quant_block; ++b, src += bytes) {
        const Block block = read_block(type, src);
        std::byte* codes = group + b * at.block_bytes;
        for (std::size_t c = 0; c < quant_block; ++c) {
            const int code = (block.code[c] ^ flip) << code_shift<Isa>(type, c);
            codes[code_offset<Isa>(type, c, r)] |= static_cast<std::byte>(code);
        }
        const std::size_t half = (b * lanes<Isa> + r) * 2;
        std::memcpy(group + at.scales + half, src, 2);
        if (type == DType::q4_1) std::memcpy(group + at.minima + half, src + 2, 2);
    }
}

template <class Isa>
void pack(DType type, const std::byte* src, std::size_t n, std::size_t k, std::size_t first,
          std::size_t last, std::byte* dst) {
    const std::size_t rows = group_rows<Isa>(type), bytes = group_bytes<Isa>(type, k);
    const std::size_t source_bytes = row_bytes(type, k), element = row_bytes(type, 1);
    for (std::size_t g = first; g < last; ++g) {
        std::byte* group = dst + g * bytes;
        std::memset(group, 0, bytes);
        for (std::size_t r = 0; r < rows && g * rows + r < n; ++r) {
            const std::byte* row = src + (g * rows + r) * source_bytes;
            if (is_quantized(type)) {
                pack_quantized_row<Isa>(type, row, k, r, group);
                continue;
            }
            for (std::size_t c = 0; c < k; ++c)
                std::memcpy(group + (c * rows + r) * element, row + c * element, element);
        }
    }
}

template <class Isa>
void unpack(const PackedView& w, std::size_t first, std::size_t last, float* y) {
    const std::size_t rows = group_rows<Isa>(w.type), bytes = group_bytes<Isa>(w.type, w.k);
    const std::size_t element = row_bytes(w.type, 1);
    const GroupLayout<Isa> at(w.type, w.k);
    const std::uint8_t flip = w.type == DType::q8_0 && Isa::Int8::byte_bias == 0 ? 0x80 : 0;
    for (std::size_t j = first; j < last; ++j, y += w.k) {
        const std::byte* group = w.data + j / rows * bytes;
        const std::size_t r = j % rows;
        for (std::size_t c = 0; c < w.k; ++c) {
            if (!is_quantized(w.type)) {
                to_float(w.type, group + (c * rows + r) * element, y + c, 1);
                continue;
            }
            const std::size_t b = c / quant_block, half = (b * lanes<Isa> + r) * 2;
            const auto byte = static_cast<std::uint8_t>(
                group[b * at.block_bytes + code_offset<Isa>(w.type, c % quant_block, r)]);
            const int code = w.type == DType::q8_0
                                 ? byte ^ flip
                                 : byte >> code_shift<Isa>(w.type, c % quant_block) & 15;
            const float d = half_to_float(read<std::uint16_t>(group + at.scales + half));
            const float m = w.type == DType::q4_1
                                ? half_to_float(read<std::uint16_t>(group + at.minima + half))
                                : 0.0f;
            y[c] = d * static_cast<float>(code - zero_point(w.type)) + m;
        }
    }
}

// Rows of the next tile of activations when `left` rows remain.
template <class Isa>
constexpr std::size_t tile_rows(std::size_t left) {
    std::size_t tile = Isa::activation_tile;
    while (tile > left) tile /= 2;
    return tile;
}

template <class Isa, std::size_t Digits>
void quantize_block_of_activations(const float* x, std::size_t tile, std::size_t row,
                                   std::byte* record) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    constexpr float levels = Digits == 1 ? 127.0f : 127.0f * 256.0f;
    F top(0.0f), poison(0.0f);  // poison: 0, or NaN where x is NaN or infinite
    for (std::size_t i = 0; i < quant_block; i += w) {
        const F v = load<Isa>(x + i);
        top = xsimd::max(top, xsimd::abs(v));
        poison = xsimd::fma(v, F(0.0f), poison);
    }
    const float largest = xsimd::reduce_max(top);
    // Too small a block has no scale that float32 can hold the inverse of: it counts as zeros.
    const float inverse = largest > levels * 1e-37f ? levels / largest : 0.0f;
    std::int32_t code[quant_block];
    for (std::size_t i = 0; i < quant_block; i += w)
        xsimd::nearbyint_as_int(load<Isa>(x + i) * F(inverse)).store_unaligned(code + i);
    std::int32_t sum = 0;
    std::byte* digits = record + row * 4;
    for (std::size_t i = 0; i < quant_block; ++i) {
        const std::size_t at = i / 4 * tile * 4 + i % 4;
        if constexpr (Digits == 1) {
            digits[at] = static_cast<std::byte>(code[i]);
        } else {
            const std::int32_t high = (code[i] + 128) >> 8;
            // AVX2's dot product negates, and -128 has no negative in 8 bit: -127 is off by
            // 1/32512 of the largest.
            const std::int32_t low = std::max(code[i] - (high << 8), -127);
            code[i] = (high << 8) + low;
            digits[at] = static_cast<std::byte>(high);
            digits[at + quant_block * tile] = static_cast<std::byte>(low);
        }
        sum += code[i];
    }
    const float scale = largest / levels + xsimd::reduce_add(poison);
    const float scaled_sum = scale * static_cast<float>(sum);
    std::byte* tail = record + Digits * quant_block * tile + row * 4;
    std::memcpy(tail, &scale, 4);
    std::memcpy(tail + 4 * tile, &scaled_sum, 4);
    std::memcpy(tail + 8 * tile, &sum, 4);
}

// Calls f with std::integral_constant<std::size_t, digits>.
template <class F>
inline void with_digits(Activations kind, F&& f) {
    if (kind == Activations::q16)
        f(std::integral_constant<std::size_t, 2>{});
    else
        f(std::integral_constant<std::size_t, 1>{});
}

template <class Isa>
void quantize_activations(Activations kind, const float* x, std::size_t rows, std::size_t k,
                          std::size_t first, std::size_t last, std::byte* q) {
    const std::size_t blocks = k / quant_block, bytes = quantized_block_bytes(kind);
    with_digits(kind, [&](auto digits) {
        for (std::size_t r = first; r < last;) {
            const std::size_t tile = tile_rows<Isa>(rows - r);
            std::byte* record = q + r * blocks * bytes;
            for (std::size_t b = 0; b < blocks; ++b, record += tile * bytes)
                for (std::size_t t = 0; t < tile; ++t)
                    quantize_block_of_activations<Isa, digits>(x + (r + t) * k + b * quant_block,
                                                               tile, t, record);
            r += tile;
        }
    });
}

}  // namespace
}  // namespace tensor_ops
