// The number formats of GGUF files, value by value, as GGML defines them; nothing of kernels/ is
// used but the numbers of the codebooks, which tests/test_ops_quantize.py holds against gguf-py.
#pragma once

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "kernels.h"
#include "kernels/codebooks.h"
#include "reference.h"

namespace reference {

using tensor_ops::block_size;
using tensor_ops::DType;

// IEEE 754 binary16: 1 sign, 5 exponent, 10 fraction bits.
inline double decode_half(std::uint16_t bits) {
    const double sign = bits >> 15 ? -1 : 1;
    const int exponent = bits >> 10 & 31, fraction = bits & 1023;
    if (exponent == 31) return fraction ? std::nan("") : sign * infinity;
    if (exponent == 0) return sign * std::ldexp(fraction, -24);
    return sign * std::ldexp(1024 + fraction, exponent - 25);
}

// The upper half of a binary32.
inline double decode_bfloat(std::uint16_t bits) {
    return std::bit_cast<float>(static_cast<std::uint32_t>(bits) << 16);
}

// To the nearest value of a 16-bit format, ties to even, overflow to infinity.  Not for NaN.
inline std::uint16_t encode(double value, int fraction_bits, int smallest_exponent,
                            int infinity_bits) {
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::abs(value);
    if (std::isinf(magnitude)) return static_cast<std::uint16_t>(sign | infinity_bits);
    int exponent = smallest_exponent;
    if (magnitude > 0) exponent = std::max(std::ilogb(magnitude), smallest_exponent);
    // In units of the last place.  For a normal number that is 2^fraction_bits or more, which adds
    // one to the exponent's field, just as rounding up to the next power of two does.
    const double units = std::nearbyint(std::ldexp(magnitude, fraction_bits - exponent));
    const int bits = ((exponent - smallest_exponent) << fraction_bits) + static_cast<int>(units);
    return static_cast<std::uint16_t>(sign | std::min(bits, infinity_bits));
}

inline std::uint16_t encode_half(double value) { return encode(value, 10, -14, 0x7c00); }
inline std::uint16_t encode_bfloat(double value) { return encode(value, 7, -126, 0x7f80); }

template <class T>
T read_as(const std::byte* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
    return value;
}

inline std::uint16_t read_bits(const std::byte* p) { return read_as<std::uint16_t>(p); }

inline void write_bits(std::uint16_t bits, std::byte* p) { std::memcpy(p, &bits, sizeof bits); }

inline int byte(const std::byte* p, int i) { return static_cast<int>(p[i]); }

// The scale and minimum of sub-block j of q4_k and q5_k, 6 bits each: the first four lie in bytes 0
// to 3 and 4 to 7, the others in the nibbles of bytes 8 to 11 and the upper bits of the first 8.
struct ScaleAndMinimum {
    int scale, minimum;
};
inline ScaleAndMinimum six_bits(const std::byte* p, int j) {
    if (j < 4) return {byte(p, j) & 63, byte(p, j + 4) & 63};
    return {(byte(p, j + 4) & 15) | byte(p, j - 4) >> 6 << 4,
            byte(p, j + 4) >> 4 | byte(p, j) >> 6 << 4};
}

// What the codes of iq4_nl and iq4_xs, and of mxfp4, stand for.
inline constexpr int iq4[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                              1,    13,   25,  38,  53,  69,  89,  113};
inline constexpr double e2m1[] = {0, 0.5, 1, 1.5, 2, 3, 4, 6, -0, -0.5, -1, -1.5, -2, -3, -4, -6};

// What the levels of the codebooks stand for; of iq1 less 1/8 or plus 1/8.
inline constexpr int iq2[] = {8, 25, 43}, iq3_xxs[] = {4, 12, 20, 28, 36, 44, 52, 62};

// The level of element n of an entry that has `bits` for each.
inline int level(int entry, int bits, int n) {
    return entry >> bits * (n % (16 / bits)) & ((1 << bits) - 1);
}

// The sign of element n: one of eight bits, or of seven, when the eighth makes the ones even.
inline int sign(int eight, int n) { return eight >> n % 8 & 1 ? -1 : 1; }
inline int even_sign(int seven, int n) {
    return sign(seven | std::popcount(static_cast<unsigned>(seven)) % 2 << 7, n);
}

// An unsigned E4M3 number.
inline double decode_e4m3(int bits) {
    if (bits == 0x7f) return 0;  // NaN
    const int exponent = bits >> 3 & 15, fraction = bits & 7;
    return exponent ? std::ldexp(8 + fraction, exponent - 10) : std::ldexp(fraction, -9);
}

// An element of a block is product + minimum, each exact.
struct Element {
    double product, minimum = 0;
};

// Element n of the quantised block at p.
inline Element decode_element(DType type, const std::byte* p, int n) {
    const auto half = [p](int at) { return decode_half(read_bits(p + at)); };
    // 16 bytes of nibbles, and 4 bytes of fifth bits.
    const auto nibble = [p, n](int at) { return byte(p + at, n % 16) >> (n < 16 ? 0 : 4) & 15; };
    const auto fifth = [p, n](int at) { return (byte(p + at, n / 8) >> n % 8 & 1) << 4; };
    // In a block of 256: 2 bits of four elements 32 apart in a byte; one bit of eight; a nibble of
    // two.
    const auto two_bits = [p, n](int at) {
        return byte(p + at, n / 128 * 32 + n % 32) >> n % 128 / 32 * 2 & 3;
    };
    const auto one_bit = [p, n](int at) { return byte(p + at, n % 32) >> n / 32 & 1; };
    const auto k_nibble = [p, n](int at) {
        return byte(p + at, n / 64 * 32 + n % 32) >> n % 64 / 32 * 4 & 15;
    };
    // Nibble i of bytes that hold two neighbours each.
    const auto neighbour = [p](int at, int i) { return byte(p + at, i / 2) >> i % 2 * 4 & 15; };
    switch (type) {
        case DType::q8_0: return {half(0) * static_cast<std::int8_t>(byte(p, 2 + n))};
        case DType::q4_0: return {half(0) * (nibble(2) - 8)};
        case DType::q4_1: return {half(0) * nibble(4), half(2)};
        case DType::q5_0: return {half(0) * (nibble(6) + fifth(2) - 16)};
        case DType::q5_1: return {half(0) * (nibble(8) + fifth(4)), half(2)};
        case DType::q2_k: {
            const int scales = byte(p, n / 16);
            return {half(80) * (scales & 15) * two_bits(16), -half(82) * (scales >> 4)};
        }
        case DType::q3_k: {
            const int j = n / 16;
            const int low = byte(p, 96 + j % 8) >> j / 8 * 4 & 15;
            const int high = byte(p, 104 + j % 4) >> j / 4 * 2 & 3;
            return {half(108) * (low + 16 * high - 32) * (two_bits(32) + 4 * one_bit(0) - 4)};
        }
        case DType::q4_k: {
            const auto [scale, minimum] = six_bits(p + 4, n / 32);
            return {half(0) * scale * k_nibble(16), -half(2) * minimum};
        }
        case DType::q5_k: {
            const auto [scale, minimum] = six_bits(p + 4, n / 32);
            return {half(0) * scale * (k_nibble(48) + 16 * one_bit(16)), -half(2) * minimum};
        }
        case DType::q6_k: {
            // Nibbles of elements 64 apart share a byte.
            const int low = byte(p, n / 128 * 64 + n % 64) >> n % 128 / 64 * 4 & 15;
            const int scale = static_cast<std::int8_t>(byte(p, 192 + n / 16));
            return {half(208) * scale * (low + 16 * two_bits(128) - 32)};
        }
        case DType::iq4_nl: return {half(0) * iq4[nibble(2)]};
        case DType::iq4_xs: {
            const int j = n / 32;
            const int low = byte(p, 4 + j / 2) >> j % 2 * 4 & 15;
            const int high = byte(p, 2 + j / 4) >> j % 4 * 2 & 3;
            const int code = byte(p, 8 + 16 * j + n % 16) >> (n % 32 < 16 ? 0 : 4) & 15;
            return {half(0) * (low + 16 * high - 32) * iq4[code]};
        }
        case DType::iq2_xxs:
        case DType::iq3_xxs: {  // 28 bits of signs and 4 of the scale
            const bool two = type == DType::iq2_xxs;
            const auto word = read_as<std::uint32_t>(p + (two ? 6 + n / 32 * 8 : 66 + n / 32 * 4));
            const double scale = half(0) * (0.5 + (word >> 28)) / (two ? 4 : 2);
            const int signs = static_cast<int>(word >> n % 32 / 8 * 7 & 127);
            const int magnitude =
                two ? iq2[level(tensor_ops::iq2_xxs_codebook[byte(p, 2 + n / 32 * 8 + n % 32 / 8)],
                                2, n)]
                    : iq3_xxs[level(tensor_ops::iq3_xxs_codebook[byte(p, 2 + n / 4)], 4, n)];
            return {scale * magnitude * even_sign(signs, n)};
        }
        case DType::iq2_xs: {
            const int word = read_bits(p + 2 + n / 8 * 2);
            const double scale = half(0) * (0.5 + neighbour(66, n / 16)) / 4;
            const int magnitude = iq2[level(tensor_ops::iq2_xs_codebook[word & 511], 2, n)];
            return {scale * magnitude * even_sign(word >> 9, n)};
        }
        case DType::iq2_s: {
            const int index = byte(p, 2 + n / 8) | (byte(p, 66 + n / 32) >> n % 32 / 8 * 2 & 3)
                                                       << 8;
            const double scale = half(0) * (0.5 + neighbour(74, n / 16)) / 4;
            const int magnitude = iq2[level(tensor_ops::iq2_s_codebook[index], 2, n)];
            return {scale * magnitude * sign(byte(p, 34 + n / 8), n)};
        }
        case DType::iq3_s: {
            const int index = byte(p, 2 + n / 4) | (byte(p, 66 + n / 32) >> n % 32 / 4 & 1) << 8;
            const int scale = 1 + 2 * neighbour(106, n / 32);
            const int magnitude = 1 + 2 * level(tensor_ops::iq3_s_codebook[index], 4, n);
            return {half(0) * scale * magnitude * sign(byte(p, 74 + n / 8), n)};
        }
        case DType::iq1_s: {
            const int word = read_bits(p + 34 + n / 32 * 2);
            const int index = byte(p, 2 + n / 8) | (word >> n % 32 / 8 * 3 & 7) << 8;
            const double shift = word >> 15 ? -0.125 : 0.125;
            const int scale = 2 * (word >> 12 & 7) + 1;
            return {half(0) * scale * (level(tensor_ops::iq1_codebook[index], 2, n) - 1 + shift)};
        }
        case DType::iq1_m: {
            int d = 0;
            for (int i = 0; i < 4; ++i) d |= read_bits(p + 48 + 2 * i) >> 12 << 4 * i;
            const int upper = neighbour(32, n / 8);
            const int index = byte(p, n / 8) | (upper & 7) << 8;
            const double shift = upper & 8 ? -0.125 : 0.125;
            const int scale = 2 * (read_bits(p + 48 + n / 64 * 2) >> n % 64 / 16 * 3 & 7) + 1;
            return {decode_half(static_cast<std::uint16_t>(d)) * scale *
                    (level(tensor_ops::iq1_codebook[index], 2, n) - 1 + shift)};
        }
        case DType::tq1_0: {
            // A byte is a fraction of 256 in base 3.
            int fraction = n < 160   ? byte(p, n % 32)
                           : n < 240 ? byte(p, 32 + n % 16)
                                     : byte(p, 48 + n % 4);
            const int digit = n < 160 ? n / 32 : n < 240 ? (n - 160) / 16 : (n - 240) / 4;
            for (int i = 0; i < digit; ++i) fraction = fraction * 3 % 256;
            return {half(52) * (fraction * 3 / 256 - 1)};
        }
        case DType::tq2_0: return {half(64) * (two_bits(0) - 1)};
        case DType::nvfp4: {
            const int code = byte(p, 4 + n / 16 * 8 + n % 8) >> n % 16 / 8 * 4 & 15;
            return {decode_e4m3(byte(p, n / 16)) * e2m1[code]};
        }
        case DType::mxfp4: return {std::ldexp(e2m1[nibble(1)], byte(p, 0) - 127)};
        default: return {};
    }
}

// Where the halves (scale, minimum) of a quantised block lie.
inline std::vector<std::size_t> halves_of_block(DType type) {
    switch (type) {
        case DType::q4_1:
        case DType::q5_1:
        case DType::q4_k:
        case DType::q5_k: return {0, 2};
        case DType::q2_k: return {80, 82};
        case DType::q3_k: return {108};
        case DType::q6_k: return {208};
        case DType::tq1_0: return {52};
        case DType::tq2_0: return {64};
        case DType::iq1_m:
        case DType::nvfp4:
        case DType::mxfp4: return {};
        default: return {0};
    }
}

// Writes d and the minimum of a quantised block; of mxfp4 the nearest power of two to |d|, of nvfp4
// the E4M3 number below |d|, and below a half, a third and a quarter of it.
inline void write_scales(DType type, double d, double minimum, std::byte* p) {
    const auto halves = halves_of_block(type);
    for (const std::size_t at : halves)
        write_bits(encode_half(at == halves[0] ? d : minimum), p + at);
    if (type == DType::mxfp4)
        *p = static_cast<std::byte>(std::lround(std::log2(std::abs(d) + 1e-30)) + 128);
    for (int i = 0; type == DType::nvfp4 && i < 4; ++i) {
        int bits = 0x7e;
        while (bits > 0 && decode_e4m3(bits) > std::abs(d) / (i + 1)) --bits;
        p[i] = static_cast<std::byte>(bits);
    }
    for (int i = 0; type == DType::iq1_m && i < 4; ++i) {
        const int nibble = encode_half(d) >> 4 * i & 15;
        p[49 + 2 * i] = static_cast<std::byte>((byte(p, 49 + 2 * i) & 15) | nibble << 4);
    }
}

// A row of n elements of any type.
inline std::vector<Element> decode_elements(DType type, const std::byte* p, std::size_t n) {
    const auto [in_block, bytes] = block_size(type);
    std::vector<Element> elements(n);
    for (std::size_t i = 0; i < n; ++i) {
        const std::byte* block = p + i / in_block * bytes;
        if (type == DType::f32)
            elements[i].product = std::bit_cast<float>(read_as<std::uint32_t>(block));
        else if (type == DType::f16)
            elements[i].product = decode_half(read_bits(block));
        else if (type == DType::bf16)
            elements[i].product = decode_bfloat(read_bits(block));
        else
            elements[i] = decode_element(type, block, static_cast<int>(i % in_block));
    }
    return elements;
}

inline Values decode_row(DType type, const std::byte* p, std::size_t n) {
    Values values;
    for (const auto& [product, minimum] : decode_elements(type, p, n))
        values.push_back(product + minimum);
    return values;
}

// iq4_nl: codes by d = largest / -127, ties upwards; then d with the least squared error, weighted
// by x^2.  GGML leaves the codes of a block of zeros open.
inline void encode_iq4_nl(const float* x, float largest, std::byte* p) {
    const bool zeros = std::abs(largest) < 1e-15f;
    const float d = largest / -127.0f, inverse = zeros ? 0.0f : 1 / d;
    int codes[32];
    float numerator = 0, denominator = 0;
    for (int i = 0; i < 32; ++i) {
        const float scaled = inverse * x[i];
        int code = 0;
        while (code < 15 && !(std::abs(scaled - static_cast<float>(iq4[code])) <
                              std::abs(scaled - static_cast<float>(iq4[code + 1]))))
            ++code;
        codes[i] = code;
        const auto value = static_cast<float>(iq4[code]);
        const float weight = x[i] * x[i];
        numerator += weight * value * x[i];
        denominator += weight * value * value;
    }
    write_bits(encode_half(zeros ? 0.0f : numerator / denominator), p);
    for (int i = 0; i < 16; ++i) p[2 + i] = static_cast<std::byte>(codes[i] | codes[i + 16] << 4);
}

// mxfp4: the largest magnitude's exponent, less 2, which is E2M1's largest; GGML leaves open what
// becomes of one below 2^-125.  The nearest value, of two the smaller magnitude.
inline void encode_mxfp4(const float* x, float largest, std::byte* p) {
    int e = 0;
    if (largest != 0) e = std::max(std::ilogb(largest) - 2 + 127, 0);
    int codes[32];
    for (int i = 0; i < 32; ++i) {
        codes[i] = 0;
        for (int code = 1; code < 16; ++code) {
            const auto error = [&](int c) { return std::abs(std::ldexp(e2m1[c], e - 127) - x[i]); };
            if (error(code) < error(codes[i])) codes[i] = code;
        }
    }
    p[0] = static_cast<std::byte>(e);
    for (int i = 0; i < 16; ++i) p[1 + i] = static_cast<std::byte>(codes[i] | codes[i + 16] << 4);
}

// A block's bytes from 32 finite floats, as ggml-quants.c's quantize_row_*_ref have it: every step
// is one float32 operation in GGML's order, because those decide which way a tie goes.  Where 1 / d
// overflows, the scale is zero as an f16 and the codes are those of zeros.
inline void encode_block(DType type, const float* x, std::byte* p) {
    const auto [lowest, highest] = std::minmax_element(x, x + 32);
    const float largest =
        *std::max_element(x, x + 32, [](float a, float b) { return std::abs(a) < std::abs(b); });
    if (type == DType::iq4_nl) return encode_iq4_nl(x, largest, p);
    if (type == DType::mxfp4) return encode_mxfp4(x, largest, p);
    const auto inverse = [](float d) { return std::isfinite(1 / d) ? 1 / d : 0.0f; };
    if (type == DType::q8_0) {
        const float d = std::abs(largest) / 127, id = inverse(d);
        write_bits(encode_half(d), p);
        for (int i = 0; i < 32; ++i) p[2 + i] = static_cast<std::byte>(std::lround(x[i] * id));
        return;
    }
    const bool has_minimum = type == DType::q4_1 || type == DType::q5_1;
    const bool five_bits = type == DType::q5_0 || type == DType::q5_1;
    const int top = five_bits ? 31 : 15;
    const auto middle = static_cast<float>(five_bits ? 16 : 8);
    const float d =
        has_minimum ? (*highest - *lowest) / static_cast<float>(top) : largest / -middle;
    const float id = inverse(d);
    write_bits(encode_half(d), p);
    p += 2;
    if (has_minimum) {
        write_bits(encode_half(*lowest), p);
        p += 2;
    }
    int codes[32];
    for (int i = 0; i < 32; ++i) {
        const float scaled = (has_minimum ? x[i] - *lowest : x[i]) * id;
        codes[i] = std::min(top, static_cast<int>(scaled + (has_minimum ? 0.5f : middle + 0.5f)));
    }
    for (int i = 0; five_bits && i < 32; i += 8) {
        int bits = 0;
        for (int j = 0; j < 8; ++j) bits |= codes[i + j] >> 4 << j;
        *p++ = static_cast<std::byte>(bits);
    }
    for (int i = 0; i < 16; ++i)
        p[i] = static_cast<std::byte>((codes[i] & 15) | (codes[i + 16] & 15) << 4);
}

// A row of n elements to any type that from_float makes.
inline void encode_row(DType type, const float* x, std::size_t n, std::byte* p) {
    if (tensor_ops::is_quantized(type)) {
        for (std::size_t b = 0; b < n / 32; ++b)
            encode_block(type, x + 32 * b, p + b * block_size(type).bytes);
    } else if (type == DType::f32) {
        std::memcpy(p, x, 4 * n);
    } else {
        for (std::size_t i = 0; i < n; ++i)
            write_bits(type == DType::f16 ? encode_half(x[i]) : encode_bfloat(x[i]), p + 2 * i);
    }
}

}  // namespace reference
