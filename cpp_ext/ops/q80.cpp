#include "ops/q80.h"

#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>

namespace tensor_ops {
namespace {

constexpr std::size_t most = 16;  // blocks at a time; their scales are converted together

// Blocks as integers and scales, before they are packed.
struct Unpacked {
    std::int32_t q[most * quant_block];
    float scale[most];  // rounded to half precision
    std::uint16_t half[most];
};

void unpack(const KernelTable& table, const float* x, std::size_t blocks, Unpacked& out) {
    for (std::size_t b = 0; b < blocks; ++b) {
        const float* v = x + b * quant_block;
        // The bits of magnitudes compare like integers, with NaN above infinity.  Compilers
        // vectorise this loop and the one below with the flags of any ISA; with floats they may
        // not.
        std::int32_t largest = 0;
        for (std::size_t i = 0; i < quant_block; ++i)
            largest = std::max(largest, std::bit_cast<std::int32_t>(v[i]) & 0x7fffffff);
        const float d = std::bit_cast<float>(largest) / 127.0f;
        const float inverse = d != 0.0f ? 1.0f / d : 0.0f;
        out.scale[b] = d;
        // Adding 1.5 * 2^23 leaves the nearest integer, ties to even, in the lowest bits.
        for (std::size_t i = 0; i < quant_block; ++i)
            out.q[b * quant_block + i] =
                std::bit_cast<std::int32_t>(v[i] * inverse + 12582912.0f) - 0x4b400000;
    }
    table.from_float(DType::f16, out.scale, reinterpret_cast<std::byte*>(out.half), blocks);
    table.to_float(DType::f16, reinterpret_cast<const std::byte*>(out.half), out.scale, blocks);
}

template <class F>
void in_pieces(std::size_t n, F&& f) {
    for (std::size_t i = 0; i < n; i += most * quant_block)
        f(i, std::min(most, (n - i) / quant_block));
}

}  // namespace

void quantize_q80(const KernelTable& table, const float* x, std::byte* blocks, std::size_t n) {
    Unpacked u;
    in_pieces(n, [&](std::size_t first, std::size_t count) {
        unpack(table, x + first, count, u);
        for (std::size_t b = 0; b < count; ++b) {
            std::byte* block = blocks + (first / quant_block + b) * q80_bytes;
            std::int8_t narrow[quant_block];
            for (std::size_t i = 0; i < quant_block; ++i)
                narrow[i] = static_cast<std::int8_t>(u.q[b * quant_block + i]);
            std::memcpy(block, &u.half[b], 2);
            std::memcpy(block + 2, narrow, quant_block);
        }
    });
}

void dequantize_q80(const KernelTable& table, const std::byte* blocks, float* y, std::size_t n) {
    std::uint16_t halves[most];
    float scales[most];
    in_pieces(n, [&](std::size_t first, std::size_t count) {
        const std::byte* from = blocks + first / quant_block * q80_bytes;
        for (std::size_t b = 0; b < count; ++b) std::memcpy(&halves[b], from + b * q80_bytes, 2);
        table.to_float(DType::f16, reinterpret_cast<const std::byte*>(halves), scales, count);
        for (std::size_t b = 0; b < count; ++b) {
            std::int8_t q[quant_block];
            std::memcpy(q, from + b * q80_bytes + 2, quant_block);
            float* out = y + first + b * quant_block;
            for (std::size_t i = 0; i < quant_block; ++i)
                out[i] = static_cast<float>(q[i]) * scales[b];
        }
    });
}

void round_q80(const KernelTable& table, const float* x, float* y, std::size_t n) {
    Unpacked u;
    in_pieces(n, [&](std::size_t first, std::size_t count) {
        unpack(table, x + first, count, u);
        for (std::size_t b = 0; b < count; ++b)
            for (std::size_t i = 0; i < quant_block; ++i)
                y[first + b * quant_block + i] =
                    static_cast<float>(u.q[b * quant_block + i]) * u.scale[b];
    });
}

}  // namespace tensor_ops
