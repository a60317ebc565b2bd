// A block of 32 columns of a row, taken apart, and what it means (formulas in dtype.h); halves, and
// the scales of one byte.
#pragma once

#include "kernels.h"
#include "kernels/intrinsics.h"

namespace tensor_ops {
namespace {

inline std::uint16_t half_from_float(float value) {
    const std::uint32_t bits = float_to_bits(value);
    const std::uint32_t sign = bits >> 16 & 0x8000;
    const std::uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<std::uint16_t>(sign | 0x7e00);
    // 65520 and above round to infinity.
    if (magnitude >= 0x477ff000) return static_cast<std::uint16_t>(sign | 0x7c00);
    if (magnitude < 0x38800000) {
        // Denormal half: adding 0.5 leaves value / 2^-24, rounded to nearest even, in the low bits.
        const float shifted = bits_to_float(magnitude) + 0.5f;
        return static_cast<std::uint16_t>(sign | (float_to_bits(shifted) - 0x3f000000));
    }
    const std::uint32_t rounded = magnitude + 0xfff + (magnitude >> 13 & 1);
    return static_cast<std::uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

inline float half_to_float(std::uint16_t half) {
    const std::uint32_t sign = (half & 0x8000u) << 16;
    const std::uint32_t magnitude = (half & 0x7fffu) << 13;
    if ((half & 0x7c00) == 0x7c00) return bits_to_float(sign | magnitude | 0x7f800000);
    return bits_to_float(sign | float_to_bits(bits_to_float(magnitude) * 0x1p112f));
}

inline std::uint16_t bfloat_from_float(float value) {
    const std::uint32_t bits = float_to_bits(value);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<std::uint16_t>(bits >> 16 | 0x40);
    return static_cast<std::uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

template <class T>
inline T read(const std::byte* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

// The scale that a byte of Scale::e8m0 means: 2^(e - 128).  The two smallest are denormal.
inline float e8m0_to_float(std::uint8_t e) {
    return bits_to_float(e < 2 ? 0x00200000u << e : (e - 1u) << 23);
}

// The scale that a byte of Scale::ue4m3 means, 4 bits of exponent and 3 of mantissa, halved.
inline float ue4m3_to_float(std::uint8_t e) {
    const unsigned exponent = e >> 3 & 15, mantissa = e & 7;
    const unsigned units = exponent != 0 ? (8 + mantissa) << (exponent - 1) : mantissa;
    return static_cast<float>(units) * 0x1p-10f;
}

// 32 columns of a row, taken apart.  d and d_min are the file's halves.  s and s_min are the
// scales of a byte, of columns 0 to 15 and 16 to 31.  A code is an index where a type has values.
struct Block {
    std::uint16_t d, d_min;
    std::int8_t s[2], s_min[2];
    std::uint8_t code[quant_block];
};

inline float block_scale(DType type, const Block& block, std::size_t sub) {
    const Format& format = format_of(type);
    const auto byte = static_cast<std::uint8_t>(block.s[sub]);
    const auto d = [&] { return half_to_float(block.d) * format.unit; };
    switch (format.scale) {
        case Scale::half: return d();
        case Scale::half_by_int8:
        case Scale::half_by_pair: return d() * block.s[sub];
        case Scale::half_by_nibble: return d() * static_cast<float>(byte >> 4);
        case Scale::ue4m3: return ue4m3_to_float(byte);
        default: return e8m0_to_float(byte);
    }
}
inline float block_minimum(DType type, const Block& block, std::size_t sub) {
    const float d = half_to_float(block.d_min);
    return format_of(type).scale == Scale::half ? d : -(d * block.s_min[sub]);
}

inline void block_values(DType type, const Block& block, float* y) {
    const Format& format = format_of(type);
    std::int8_t value[quant_block];
    for (std::size_t i = 0; i < quant_block; ++i)
        value[i] = static_cast<std::int8_t>(format.step * block.code[i] - format.zero);
    for (std::size_t i = 0; format.values && i < quant_block; ++i)
        value[i] = format.values[block.code[i]];
    for (std::size_t i = 0; i < quant_block; ++i)
        y[i] = block_scale(type, block, i / 16) * static_cast<float>(value[i]);
    for (std::size_t i = 0; format.has_min && i < quant_block; ++i)
        y[i] += block_minimum(type, block, i / 16);
}

inline unsigned byte_at(const std::byte* p, std::size_t i) { return static_cast<unsigned>(p[i]); }

// 16 bytes of nibbles: the low ones are the codes of columns 0 to 15.
inline void read_nibbles(const std::byte* p, Block& block) {
    for (std::size_t i = 0; i < 16; i += 8) {  // by words: for bytes GCC makes hundreds of moves
        constexpr std::uint64_t nibbles = 0x0f0f0f0f0f0f0f0f;
        const auto word = read<std::uint64_t>(p + i);
        const std::uint64_t low = word & nibbles, high = word >> 4 & nibbles;
        std::memcpy(block.code + i, &low, 8);
        std::memcpy(block.code + 16 + i, &high, 8);
    }
}

// Bit i of a byte as byte i, 0 or 1.
inline std::uint64_t spread_bits(unsigned bits) {
    constexpr std::uint64_t each_byte = 0x0101010101010101, each_bit = 0x8040201008040201;
    return ((bits * each_byte & each_bit) + 0x7f * each_byte) >> 7 & each_byte;
}

}  // namespace
}  // namespace tensor_ops
