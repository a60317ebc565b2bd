// Conversion of one row between float32 and the formats of GGUF files: halves and quantised blocks
// (formulas in kernels.h).  These are plain loops for packing and tests, not for the hot path.
#pragma once

#include <cmath>
#include <limits>

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

// How a quantised type decodes: value = scale * (code - zero) + minimum, with one scale (and
// minimum) for `sub` columns.  For a K type, scale = d * s and minimum = -d_min * s_min.
struct Format {
    int bits;
    int zero;
    std::size_t sub;
    bool has_min;
    bool is_k;
};

constexpr Format format_of(DType type) {
    switch (type) {
        case DType::q8_0: return {8, 128, 32, false, false};  // signed in the file, unsigned here
        case DType::q4_0: return {4, 8, 32, false, false};
        case DType::q4_1: return {4, 0, 32, true, false};
        case DType::q5_0: return {5, 16, 32, false, false};
        case DType::q5_1: return {5, 0, 32, true, false};
        case DType::q2_k: return {2, 0, 16, true, true};
        case DType::q3_k: return {3, 4, 16, false, true};
        case DType::q4_k: return {4, 0, 32, true, true};
        case DType::q5_k: return {5, 0, 32, true, true};
        case DType::q6_k: return {6, 32, 16, false, true};
        default: return {};
    }
}

// 32 columns of a row, taken apart.  d and d_min are the file's halves.  s and s_min are 1 for the
// types without integer scales, whose minimum m is +d_min.
struct Block {
    std::uint16_t d, d_min;
    std::int8_t s[2], s_min[2];  // of columns 0 to 15, 16 to 31
    std::uint8_t code[quant_block];
};

inline float block_scale(const Block& block, std::size_t column) {
    return half_to_float(block.d) * block.s[column / 16];
}
inline float block_minimum(DType type, const Block& block, std::size_t column) {
    if (!format_of(type).has_min) return 0.0f;
    const float m = half_to_float(block.d_min) * block.s_min[column / 16];
    return format_of(type).is_k ? -m : m;
}

inline void block_values(DType type, const Block& block, float* y) {
    const int zero = format_of(type).zero;
    for (std::size_t i = 0; i < quant_block; ++i)
        y[i] = block_scale(block, i) * static_cast<float>(block.code[i] - zero) +
               block_minimum(type, block, i);
}

inline unsigned byte_at(const std::byte* p, std::size_t i) { return static_cast<unsigned>(p[i]); }

// q8_0, q4_0, q4_1, q5_0, q5_1: scales, then bit 4 of each code (q5), then 16 bytes of nibbles.
inline void read_simple_block(DType type, const std::byte* p, Block& block) {
    const Format format = format_of(type);
    block.d = read<std::uint16_t>(p);
    block.d_min = format.has_min ? read<std::uint16_t>(p + 2) : std::uint16_t{0};
    block.s[0] = block.s[1] = block.s_min[0] = block.s_min[1] = 1;
    p += format.has_min ? 4 : 2;
    const std::uint32_t fifth = format.bits == 5 ? read<std::uint32_t>(p) : 0;
    p += format.bits == 5 ? 4 : 0;
    if (format.bits == 8) {
        for (std::size_t i = 0; i < quant_block; ++i)
            block.code[i] = static_cast<std::uint8_t>(byte_at(p, i) ^ 0x80);
        return;
    }
    for (std::size_t i = 0; i < 16; i += 8) {  // by words: for bytes GCC makes hundreds of moves
        constexpr std::uint64_t nibbles = 0x0f0f0f0f0f0f0f0f;
        const auto word = read<std::uint64_t>(p + i);
        const std::uint64_t low = word & nibbles, high = word >> 4 & nibbles;
        std::memcpy(block.code + i, &low, 8);
        std::memcpy(block.code + 16 + i, &high, 8);
    }
    for (std::size_t i = 0; fifth != 0 && i < quant_block; i += 8) {
        constexpr std::uint64_t each_byte = 0x0101010101010101, each_bit = 0x8040201008040201;
        const std::uint64_t bits = (fifth >> i & 0xff) * each_byte & each_bit;
        const std::uint64_t spread = (bits + 0x7f * each_byte) >> 3 & 0x10 * each_byte;
        std::uint64_t code;
        std::memcpy(&code, block.code + i, 8);
        code |= spread;
        std::memcpy(block.code + i, &code, 8);
    }
}

// Scale and minimum j of q4_k and q5_k: 12 bytes hold 8 of each, of 6 bits.
inline void read_k4_scales(const std::byte* p, std::size_t j, Block& block) {
    const unsigned s =
        j < 4 ? byte_at(p, j) & 63 : (byte_at(p, j + 4) & 15) | byte_at(p, j - 4) >> 6 << 4;
    const unsigned m =
        j < 4 ? byte_at(p, j + 4) & 63 : byte_at(p, j + 4) >> 4 | byte_at(p, j) >> 6 << 4;
    block.s[0] = block.s[1] = static_cast<std::int8_t>(s);
    block.s_min[0] = block.s_min[1] = static_cast<std::int8_t>(m);
}

// Columns 32 b to 32 b + 31 of a block of 256.
inline void read_k_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    const std::size_t half = b / 4, j = b % 4;  // 128 columns share the bytes of their codes
    block.d_min = 0;
    block.s_min[0] = block.s_min[1] = 0;
    const auto set_codes = [&](auto code) {
        for (std::size_t l = 0; l < quant_block; ++l)
            block.code[l] = static_cast<std::uint8_t>(code(l));
    };
    const auto two_bits = [&](const std::byte* q, std::size_t l) {
        return byte_at(q, 32 * half + l) >> 2 * j & 3;
    };
    switch (type) {
        case DType::q2_k:  // scales[16], 2 bits[64], d, d_min
            for (std::size_t i = 0; i < 2; ++i) {
                block.s[i] = static_cast<std::int8_t>(byte_at(p, 2 * b + i) & 15);
                block.s_min[i] = static_cast<std::int8_t>(byte_at(p, 2 * b + i) >> 4);
            }
            set_codes([&](std::size_t l) { return two_bits(p + 16, l); });
            block.d = read<std::uint16_t>(p + 80);
            block.d_min = read<std::uint16_t>(p + 82);
            break;
        case DType::q3_k:  // third bit[32], 2 bits[64], scales[12], d
            for (std::size_t i = 0; i < 2; ++i) {
                const std::size_t n = 2 * b + i;
                const unsigned low = byte_at(p, 96 + n % 8) >> (n < 8 ? 0 : 4) & 15;
                const unsigned high = byte_at(p, 104 + n % 4) >> 2 * (n / 4) & 3;
                block.s[i] = static_cast<std::int8_t>(static_cast<int>(low | high << 4) - 32);
            }
            set_codes(
                [&](std::size_t l) { return two_bits(p + 32, l) | (byte_at(p, l) >> b & 1) << 2; });
            block.d = read<std::uint16_t>(p + 108);
            break;
        case DType::q4_k:    // d, d_min, scales[12], nibbles[128]
        case DType::q5_k: {  // d, d_min, scales[12], fifth bit[32], nibbles[128]
            block.d = read<std::uint16_t>(p);
            block.d_min = read<std::uint16_t>(p + 2);
            read_k4_scales(p + 4, b, block);
            const bool fifth = type == DType::q5_k;
            const std::byte* nibbles = p + (fifth ? 48 : 16) + 32 * (b / 2);
            set_codes([&](std::size_t l) {
                return (byte_at(nibbles, l) >> (b % 2 ? 4 : 0) & 15) |
                       (fifth ? byte_at(p + 16, l) >> b & 1 : 0) << 4;
            });
            break;
        }
        default:  // q6_k: nibbles[128], upper 2 bits[64], scales[16], d
            set_codes([&](std::size_t l) {
                const unsigned low =
                    byte_at(p, 64 * half + 32 * (j % 2) + l) >> (j < 2 ? 0 : 4) & 15;
                return low | two_bits(p + 128, l) << 4;
            });
            for (std::size_t i = 0; i < 2; ++i)
                block.s[i] = static_cast<std::int8_t>(byte_at(p, 192 + 2 * b + i));
            block.d = read<std::uint16_t>(p + 208);
    }
}

// Columns 32 b to 32 b + 31 of a row.
inline Block read_block(DType type, const std::byte* row, std::size_t b) {
    Block block;
    if (format_of(type).is_k)
        read_k_block(type, row + b / 8 * block_size(type).bytes, b % 8, block);
    else
        read_simple_block(type, row + b * block_size(type).bytes, block);
    return block;
}

inline void write_nibbles(const std::uint8_t* code, std::byte* p) {
    for (std::size_t i = 0; i < 16; ++i) p[i] = static_cast<std::byte>(code[i] | code[i + 16] << 4);
}

inline void write_half(float value, std::byte* p) {
    const std::uint16_t half = half_from_float(value);
    std::memcpy(p, &half, sizeof half);
}

// 1 / d, or 0 if that overflows: the f16 scale is 0 then, and any code will do.
inline float reciprocal(float d) {
    const float inverse = 1.0f / d;
    return std::fabs(inverse) <= std::numeric_limits<float>::max() ? inverse : 0.0f;
}

// To an integer in [0, top], truncating; NaN gives 0.
inline std::uint8_t clamp_code(float value, float top) {
    return static_cast<std::uint8_t>(value > 0.0f ? (value < top ? value : top) : 0.0f);
}

// One block of q8_0, q4_0, q4_1, q5_0 or q5_1.
inline void quantize_block(DType type, const float* x, std::byte* p) {
    const Format format = format_of(type);
    std::uint8_t code[quant_block];
    float largest = 0.0f;  // of the largest magnitude, with its sign
    float low = x[0], high = x[0];
    bool finite = true;
    for (std::size_t i = 0; i < quant_block; ++i) {
        if (std::fabs(x[i]) > std::fabs(largest)) largest = x[i];
        if (x[i] < low) low = x[i];
        if (x[i] > high) high = x[i];
        finite &= std::fabs(x[i]) <= std::numeric_limits<float>::max();
    }
    if (type == DType::q8_0) {
        const float d = finite ? std::fabs(largest) / 127.0f : NAN;
        const float inverse = reciprocal(d);
        write_half(d, p);
        for (std::size_t i = 0; i < quant_block; ++i) {
            const float scaled = finite ? x[i] * inverse : 1.0f;
            p[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(scaled)));
        }
        return;
    }
    const int levels = 1 << format.bits;
    const auto top = static_cast<float>(levels - 1);
    // Without a minimum, the value of the largest magnitude becomes code 0, which means -8 or -16.
    const float offset = format.has_min ? low : 0.0f;
    const float bias = format.has_min ? 0.5f : static_cast<float>(format.zero) + 0.5f;
    const float d = !finite          ? NAN
                    : format.has_min ? (high - low) / top
                                     : largest / -static_cast<float>(format.zero);
    const float inverse = reciprocal(d);
    for (std::size_t i = 0; i < quant_block; ++i)
        code[i] = clamp_code((x[i] - offset) * inverse + bias, top);
    write_half(d, p);
    if (format.has_min) write_half(finite ? low : NAN, p + 2);
    p += format.has_min ? 4 : 2;
    if (format.bits == 5) {
        std::uint32_t fifth = 0;
        for (std::size_t i = 0; i < quant_block; ++i) {
            fifth |= static_cast<std::uint32_t>(code[i] >> 4) << i;
            code[i] &= 15;
        }
        std::memcpy(p, &fifth, sizeof fifth);
        p += 4;
    }
    write_nibbles(code, p);
}

inline void from_float(DType type, const float* x, std::byte* y, std::size_t n) {
    if (type == DType::f32) {
        std::memcpy(y, x, n * sizeof(float));
    } else if (type == DType::f16 || type == DType::bf16) {
        for (std::size_t i = 0; i < n; ++i) {
            const std::uint16_t half =
                type == DType::f16 ? half_from_float(x[i]) : bfloat_from_float(x[i]);
            std::memcpy(y + 2 * i, &half, sizeof half);
        }
    } else {
        const std::size_t bytes = row_bytes(type, quant_block);
        for (std::size_t b = 0; b < n / quant_block; ++b)
            quantize_block(type, x + b * quant_block, y + b * bytes);
    }
}

inline void to_float(DType type, const std::byte* x, float* y, std::size_t n) {
    if (type == DType::f32) {
        std::memcpy(y, x, n * sizeof(float));
    } else if (type == DType::f16 || type == DType::bf16) {
        for (std::size_t i = 0; i < n; ++i) {
            const auto half = read<std::uint16_t>(x + 2 * i);
            y[i] = type == DType::f16 ? half_to_float(half)
                                      : bits_to_float(static_cast<std::uint32_t>(half) << 16);
        }
    } else {
        for (std::size_t b = 0; b < n / quant_block; ++b, y += quant_block)
            block_values(type, read_block(type, x, b), y);
    }
}

}  // namespace
}  // namespace tensor_ops
