// Conversion of one row between float32 and the formats of GGUF files: halves and quantised blocks
// (formulas in dtype.h).  These are plain loops for packing and tests, not for the hot path.
#pragma once

#include <cmath>
#include <limits>

#include "kernels/codebook_blocks.h"

namespace tensor_ops {
namespace {

// The types whose blocks have 32 columns: scales, then bit 4 of each code (q5), then nibbles, or
// the bytes of q8_0.
inline void read_simple_block(DType type, const std::byte* p, Block& block) {
    const Format& format = format_of(type);
    if (format.scale == Scale::half) {
        block.d = read<std::uint16_t>(p);
        block.d_min = format.has_min ? read<std::uint16_t>(p + 2) : std::uint16_t{0};
        p += format.has_min ? 4 : 2;
    } else {
        block.s[0] = block.s[1] = static_cast<std::int8_t>(*p++);
    }
    const std::uint32_t fifth = format.bits == 5 ? read<std::uint32_t>(p) : 0;
    p += format.bits == 5 ? 4 : 0;
    if (format.bits == 8) {
        for (std::size_t i = 0; i < quant_block; ++i)
            block.code[i] = static_cast<std::uint8_t>(byte_at(p, i) ^ 0x80);
        return;
    }
    read_nibbles(p, block);
    for (std::size_t i = 0; fifth != 0 && i < quant_block; i += 8) {
        std::uint64_t code;
        std::memcpy(&code, block.code + i, 8);
        code |= spread_bits(fifth >> i & 0xff) << 4;
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

// Columns 32 b to 32 b + 31 of a block of iq4_xs: d, upper 2 bits of scales[8], low 4 bits of
// scales[8], nibbles[128].
inline void read_iq4_xs_block(const std::byte* p, std::size_t b, Block& block) {
    const unsigned low = byte_at(p, 4 + b / 2) >> 4 * (b % 2) & 15;
    const unsigned high = byte_at(p, 2 + b / 4) >> 2 * (b % 4) & 3;
    block.d = read<std::uint16_t>(p);
    block.s[0] = block.s[1] = static_cast<std::int8_t>(static_cast<int>(low | high << 4) - 32);
    read_nibbles(p + 8 + 16 * b, block);
}

// Columns 32 b to 32 b + 31 of a block of nvfp4: scales[4], nibbles[32], each for 16 columns.
inline void read_nvfp4_block(const std::byte* p, std::size_t b, Block& block) {
    for (std::size_t i = 0; i < 2; ++i) {
        const unsigned e = byte_at(p, 2 * b + i);
        // GGML ignores the uppermost bit, and takes the byte that is NaN without it for 0.
        block.s[i] = static_cast<std::int8_t>(e == 0x7f ? 0 : e & 0x7f);
        const auto word = read<std::uint64_t>(p + 4 + 16 * b + 8 * i);
        constexpr std::uint64_t nibbles = 0x0f0f0f0f0f0f0f0f;
        const std::uint64_t low = word & nibbles, high = word >> 4 & nibbles;
        std::memcpy(block.code + 16 * i, &low, 8);
        std::memcpy(block.code + 16 * i + 8, &high, 8);
    }
}

// Columns 32 b to 32 b + 31 of a block of 256 columns of three levels.
inline void read_ternary_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    if (type == DType::tq2_0) {  // 2 bits[64], d
        for (std::size_t l = 0; l < quant_block; ++l)
            block.code[l] =
                static_cast<std::uint8_t>(byte_at(p, 32 * (b / 4) + l) >> 2 * (b % 4) & 3);
        block.d = read<std::uint16_t>(p + 64);
        return;
    }
    // tq1_0: 5 levels[48], 4 levels[4], d.  A byte is a fraction of 256 in base 3, rounded up: its
    // digits are what multiplication by 3 carries over.  The digits of 32, of 16 and of 4 bytes are
    // columns side by side.
    const auto digit = [p](std::size_t at, std::size_t n) {
        constexpr std::uint8_t powers[] = {1, 3, 9, 27, 81};
        return static_cast<std::uint8_t>((byte_at(p, at) * powers[n] & 0xff) * 3 >> 8);
    };
    for (std::size_t l = 0; l < quant_block; ++l) {
        const std::size_t column = quant_block * b + l;
        block.code[l] = column < 160   ? digit(l, b)
                        : column < 240 ? digit(32 + l % 16, (column - 160) / 16)
                                       : digit(48 + l % 4, (column - 240) / 4);
    }
    block.d = read<std::uint16_t>(p + 52);
}

// Columns 32 b to 32 b + 31 of a block of a K type.
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
    const std::size_t blocks = block_size(type).elements / quant_block;  // of 32 in one of the file
    const std::byte* p = row + b / blocks * block_size(type).bytes;
    if (type == DType::iq4_xs)
        read_iq4_xs_block(p, b % blocks, block);
    else if (type == DType::nvfp4)
        read_nvfp4_block(p, b % blocks, block);
    else if (is_codebook(type))
        read_codebook_block(type, p, b % blocks, block);
    else if (type == DType::tq1_0 || type == DType::tq2_0)
        read_ternary_block(type, p, b % blocks, block);
    else if (blocks > 1)
        read_k_block(type, p, b % blocks, block);
    else
        read_simple_block(type, p, block);
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

// What decides a block's scale.
struct Range {
    float largest = 0.0f;  // of the largest magnitude, with its sign
    float low, high;
    bool finite = true;
};
inline Range range_of(const float* x) {
    Range range{.low = x[0], .high = x[0]};
    for (std::size_t i = 0; i < quant_block; ++i) {
        if (std::fabs(x[i]) > std::fabs(range.largest)) range.largest = x[i];
        if (x[i] < range.low) range.low = x[i];
        if (x[i] > range.high) range.high = x[i];
        range.finite &= std::fabs(x[i]) <= std::numeric_limits<float>::max();
    }
    return range;
}

inline void quantize_q8_0(const float* x, const Range& range, std::byte* p) {
    const float d = range.finite ? std::fabs(range.largest) / 127.0f : NAN;
    const float inverse = reciprocal(d);
    write_half(d, p);
    for (std::size_t i = 0; i < quant_block; ++i) {
        const float scaled = range.finite ? x[i] * inverse : 1.0f;
        p[2 + i] = static_cast<std::byte>(static_cast<std::int8_t>(std::round(scaled)));
    }
}

// A block of q4_0, q4_1, q5_0, q5_1 or iq4_nl with these codes.  m: of types with a minimum.
inline void write_scaled_block(DType type, float d, float m, std::uint8_t* code, std::byte* p) {
    const Format& format = format_of(type);
    write_half(d, p);
    if (format.has_min) write_half(m, p + 2);
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

// q4_0, q4_1, q5_0, q5_1.
inline void quantize_linear(DType type, const float* x, const Range& range, std::byte* p) {
    const Format& format = format_of(type);
    std::uint8_t code[quant_block];
    const int levels = 1 << format.bits;
    const auto top = static_cast<float>(levels - 1);
    // Without a minimum, the value of the largest magnitude becomes code 0, which means -8 or -16.
    const float offset = format.has_min ? range.low : 0.0f;
    const float bias = format.has_min ? 0.5f : static_cast<float>(format.zero) + 0.5f;
    const float d = !range.finite    ? NAN
                    : format.has_min ? (range.high - range.low) / top
                                     : range.largest / -static_cast<float>(format.zero);
    const float inverse = reciprocal(d);
    for (std::size_t i = 0; i < quant_block; ++i)
        code[i] = clamp_code((x[i] - offset) * inverse + bias, top);
    write_scaled_block(type, d, range.finite ? range.low : NAN, code, p);
}

// The codes are those of the nearest values where the largest magnitude is -127; d is then the
// scale with the least squared error, weighted by x^2.  Between two values, the upper one wins.
inline void quantize_iq4_nl(const float* x, const Range& range, std::byte* p) {
    std::uint8_t code[quant_block];
    // GGML counts what is smaller as zeros.
    const float d = std::fabs(range.largest) < 1e-15f ? 0.0f : range.largest / -127.0f;
    const float inverse = range.finite ? reciprocal(d) : 0.0f;
    float by_x = 0.0f, by_value = 0.0f;
    for (std::size_t i = 0; i < quant_block; ++i) {
        const float scaled = x[i] * inverse;
        int below = 0;
        for (std::size_t c = 1; c < 16; ++c)
            below += scaled >= static_cast<float>(iq4_values[c - 1] + iq4_values[c]) / 2;
        code[i] = static_cast<std::uint8_t>(below);
        const auto value = static_cast<float>(iq4_values[below]);
        const float weighted = x[i] * x[i] * value;
        by_x += weighted * x[i];
        by_value += weighted * value;
    }
    const float scale = !range.finite ? NAN : d == 0.0f ? 0.0f : by_x / by_value;
    write_scaled_block(DType::iq4_nl, scale, 0.0f, code, p);
}

// The scale is the power of two at which the largest magnitude is from 4 to 8 of E2M1's units,
// whose largest value is 6.  Between two values, the smaller magnitude wins.
inline void quantize_mxfp4(const float* x, const Range& range, std::byte* p) {
    std::uint8_t code[quant_block];
    const int exponent =  // of the largest magnitude, biased by 127; denormal numbers count as 0
        static_cast<int>(float_to_bits(range.largest) >> 23 & 255);
    const int e = !range.finite ? 255 : exponent > 2 ? exponent - 2 : 0;
    const double inverse = 1.0 / e8m0_to_float(static_cast<std::uint8_t>(e));
    for (std::size_t i = 0; i < quant_block; ++i) {
        const double scaled = range.finite ? std::fabs(x[i]) * inverse : INFINITY;
        int below = 0;
        for (std::size_t c = 1; c < 8; ++c)
            below += scaled > (e2m1_values[c - 1] + e2m1_values[c]) / 2.0;
        code[i] = static_cast<std::uint8_t>(below | (x[i] < 0.0f && below != 0 ? 8 : 0));
    }
    *p = static_cast<std::byte>(e);
    write_nibbles(code, p + 1);
}

// One block of a writable type.
inline void quantize_block(DType type, const float* x, std::byte* p) {
    const Range range = range_of(x);
    switch (type) {
        case DType::q8_0: return quantize_q8_0(x, range, p);
        case DType::iq4_nl: return quantize_iq4_nl(x, range, p);
        case DType::mxfp4: return quantize_mxfp4(x, range, p);
        default: return quantize_linear(type, x, range, p);
    }
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
