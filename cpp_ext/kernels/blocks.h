// The block formats of GGUF files, one row at a time: float32 to and from halves and quantised
// blocks (layouts in kernels.h).  Plain loops: packing and tests use them, not the hot path.
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

// A quantised block taken apart: value[i] = d * (code[i] - zero) + m, codes unsigned (q8_0 too).
struct Block {
    float d, m;
    std::uint8_t code[quant_block];
};

inline constexpr int zero_point(DType type) {
    return type == DType::q8_0 ? 128 : type == DType::q4_0 ? 8 : 0;
}

inline Block read_block(DType type, const std::byte* p) {
    Block block;
    block.d = half_to_float(read<std::uint16_t>(p));
    block.m = type == DType::q4_1 ? half_to_float(read<std::uint16_t>(p + 2)) : 0.0f;
    const std::byte* codes = p + (type == DType::q4_1 ? 4 : 2);
    for (std::size_t i = 0; i < quant_block; ++i) {
        if (type == DType::q8_0)
            block.code[i] = static_cast<std::uint8_t>(codes[i]) ^ 0x80;
        else
            block.code[i] = static_cast<std::uint8_t>(codes[i % 16]) >> (i < 16 ? 0 : 4) & 15;
    }
    return block;
}

inline void write_nibbles(const std::uint8_t* code, std::byte* p) {
    for (std::size_t i = 0; i < 16; ++i) p[i] = static_cast<std::byte>(code[i] | code[i + 16] << 4);
}

inline void write_half(float value, std::byte* p) {
    const std::uint16_t half = half_from_float(value);
    std::memcpy(p, &half, sizeof half);
}

// 0 where 1 / d overflows: the f16 scale is 0 then, and any code will do.
inline float reciprocal(float d) {
    const float inverse = 1.0f / d;
    return std::fabs(inverse) <= std::numeric_limits<float>::max() ? inverse : 0.0f;
}

// To an integer in [0, top], truncating; NaN gives 0.
inline std::uint8_t clamp_code(float value, float top) {
    return static_cast<std::uint8_t>(value > 0.0f ? (value < top ? value : top) : 0.0f);
}

inline void quantize_block(DType type, const float* x, std::byte* p) {
    std::uint8_t code[quant_block];
    float largest = 0.0f;  // by magnitude, with its sign
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
    } else if (type == DType::q4_0) {
        const float d = finite ? largest / -8.0f : NAN;
        const float inverse = reciprocal(d);
        for (std::size_t i = 0; i < quant_block; ++i)
            code[i] = clamp_code(x[i] * inverse + 8.5f, 15.0f);
        write_half(d, p);
        write_nibbles(code, p + 2);
    } else {
        const float d = finite ? (high - low) / 15.0f : NAN;
        const float inverse = reciprocal(d);
        for (std::size_t i = 0; i < quant_block; ++i)
            code[i] = clamp_code((x[i] - low) * inverse + 0.5f, 15.0f);
        write_half(d, p);
        write_half(finite ? low : NAN, p + 2);
        write_nibbles(code, p + 4);
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
        const std::size_t bytes = row_bytes(type, quant_block);
        const int zero = zero_point(type);
        for (std::size_t b = 0; b < n / quant_block; ++b) {
            const Block block = read_block(type, x + b * bytes);
            for (std::size_t i = 0; i < quant_block; ++i)
                y[b * quant_block + i] =
                    block.d * static_cast<float>(block.code[i] - zero) + block.m;
        }
    }
}

}  // namespace
}  // namespace tensor_ops
