// The types of elements that kernels read and write, and their values.
#pragma once

#include <cstdint>
#include <cstring>

#include "flash_attention/cuda/device.h"

namespace tensor_ops::flash::cuda {

struct Half {
    std::uint16_t bits;
};
struct Bfloat16 {
    std::uint16_t bits;
};
struct E4m3 {  // a sign, four bits of exponent (bias 7), three bits of fraction
    std::uint8_t bits;
};

__device__ inline float float_of_bits(std::uint32_t bits) {
    float x;
    std::memcpy(&x, &bits, sizeof x);
    return x;
}
__device__ inline std::uint32_t bits_of_float(float x) {
    std::uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits;
}

// By 2^112, which also normalises denormals; the largest exponent is infinity or NaN.
__device__ inline float value(Half x) {
    const std::uint32_t sign = (x.bits & 0x8000u) << 16, magnitude = (x.bits & 0x7fffu) << 13;
    const bool special = (x.bits & 0x7c00u) == 0x7c00u;
    const float number =
        special ? float_of_bits(magnitude | 0x7f800000u) : float_of_bits(magnitude) * 0x1p112f;
    return float_of_bits(bits_of_float(number) | sign);
}
__device__ inline float value(Bfloat16 x) {
    return float_of_bits(static_cast<std::uint32_t>(x.bits) << 16);
}
__device__ inline float value(E4m3 x) {
    const std::uint32_t magnitude = x.bits & 0x7fu, sign = (x.bits & 0x80u) << 24;
    float number = static_cast<float>(magnitude) * 0x1p-9f;  // below the normal numbers
    if (magnitude >= 8) number = float_of_bits((magnitude << 20) + (120u << 23));
    if (magnitude == 0x7f) number = float_of_bits(0x7fc00000u);
    return float_of_bits(bits_of_float(number) | sign);
}
__device__ inline float value(float x) { return x; }

// The nearest number, ties to even; beyond the largest, infinity.
__device__ inline Half half_of(float x) {
    const std::uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000u;
    const std::uint32_t magnitude = bits & 0x7fffffffu;
    std::uint32_t half;
    if (magnitude > 0x7f800000u) {
        half = 0x7e00u;
    } else if (magnitude >= 0x477ff000u) {
        half = 0x7c00u;
    } else if (magnitude < 0x38800000u) {  // a multiple of 2^-24, which this addition rounds to
        half = bits_of_float(float_of_bits(magnitude) + 0.5f) - bits_of_float(0.5f);
    } else {
        half = (magnitude - (112u << 23) + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    }
    return {static_cast<std::uint16_t>(half | sign)};
}
__device__ inline Bfloat16 bfloat16_of(float x) {
    const std::uint32_t bits = bits_of_float(x);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<std::uint16_t>(bits >> 16 | 0x40u)};
    return {static_cast<std::uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16)};
}

__device__ inline void set(Half& to, float x) { to = half_of(x); }
__device__ inline void set(Bfloat16& to, float x) { to = bfloat16_of(x); }
__device__ inline void set(float& to, float x) { to = x; }

}  // namespace tensor_ops::flash::cuda
