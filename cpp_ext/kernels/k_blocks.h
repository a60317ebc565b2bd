// Quantises rows to the K types: the search's result as the bytes of a file (formulas in dtype.h).
#pragma once

#include <limits>

#include "kernels/blocks.h"
#include "kernels/k_search.h"

namespace tensor_ops {
namespace {

// A block in whole numbers, in the order of its columns: the opposite of read_k_block.
struct KNumbers {
    float d, d_min;
    std::int8_t s[k_lanes];  // without the 32 that files add to those of q3_k
    std::uint8_t m[k_lanes], code[k_columns];
};

// q4_k and q5_k: 12 bytes hold 8 of s and m, of 6 bits, see read_k4_scales.
inline void write_k4_scales(const KNumbers& block, std::byte* p) {
    for (std::size_t j = 0; j < 4; ++j) {
        const unsigned s = static_cast<std::uint8_t>(block.s[j]), m = block.m[j];
        const unsigned later_s = static_cast<std::uint8_t>(block.s[j + 4]);
        const unsigned later_m = block.m[j + 4];
        p[j] = static_cast<std::byte>(s | later_s >> 4 << 6);
        p[j + 4] = static_cast<std::byte>(m | later_m >> 4 << 6);
        p[j + 8] = static_cast<std::byte>((later_s & 15) | (later_m & 15) << 4);
    }
}

// q3_k: 12 bytes hold 16 of s + 32, of 6 bits: the low 4 bits of all, then the upper 2 bits.
inline void write_q3_scales(const KNumbers& block, std::byte* p) {
    std::memset(p, 0, 12);
    for (std::size_t n = 0; n < 16; ++n) {
        const auto s = static_cast<unsigned>(block.s[n] + 32);
        p[n % 8] |= static_cast<std::byte>((s & 15) << (n < 8 ? 0 : 4));
        p[8 + n % 4] |= static_cast<std::byte>(s >> 4 << 2 * (n / 4));
    }
}

// Bits [from, from + bits) of the codes: a byte has those of columns `step` apart.
inline void write_planes(const KNumbers& block, unsigned from, unsigned bits, std::size_t step,
                         std::byte* p) {
    const std::size_t fields = 8 / bits;
    for (std::size_t first = 0; first < k_columns; first += fields * step, p += step) {
        for (std::size_t l = 0; l < step; ++l) {
            unsigned byte = 0;
            for (std::size_t j = 0; j < fields; ++j) {
                const unsigned field =
                    block.code[first + j * step + l] >> from & ((1u << bits) - 1);
                byte |= field << j * bits;
            }
            p[l] = static_cast<std::byte>(byte);
        }
    }
}

inline void write_k_block(DType type, const KNumbers& block, std::byte* p) {
    switch (type) {
        case DType::q2_k:  // scales[16], 2 bits[64], d, d_min
            for (std::size_t i = 0; i < 16; ++i)
                p[i] = static_cast<std::byte>(block.s[i] | block.m[i] << 4);
            write_planes(block, 0, 2, 32, p + 16);
            write_half(block.d, p + 80);
            write_half(block.d_min, p + 82);
            break;
        case DType::q3_k:  // third bit[32], 2 bits[64], scales[12], d
            write_planes(block, 2, 1, 32, p);
            write_planes(block, 0, 2, 32, p + 32);
            write_q3_scales(block, p + 96);
            write_half(block.d, p + 108);
            break;
        case DType::q4_k:  // d, d_min, scales[12], nibbles[128]
        case DType::q5_k:  // d, d_min, scales[12], fifth bit[32], nibbles[128]
            write_half(block.d, p);
            write_half(block.d_min, p + 2);
            write_k4_scales(block, p + 4);
            if (type == DType::q5_k) write_planes(block, 4, 1, 32, p + 16);
            write_planes(block, 0, 4, 32, p + (type == DType::q5_k ? 48 : 16));
            break;
        default:  // q6_k: nibbles[128], upper 2 bits[64], scales[16], d
            write_planes(block, 0, 4, 64, p);
            write_planes(block, 4, 2, 32, p + 128);
            std::memcpy(p + 192, block.s, 16);
            write_half(block.d, p + 208);
    }
}

template <class Isa, DType type>
void quantize_k_row(const float* x, const float* importance, std::byte* y, std::size_t n) {
    using Search = KSearch<Isa, type>;
    constexpr int zero = format_of(type).zero;
    for (std::size_t b = 0; b < n; b += k_columns, y += format_of(type).bytes) {
        KNumbers numbers{};
        std::memset(numbers.code, zero, k_columns);
        const float magnitude = magnitude_of(x + b, k_columns);
        if (has_scale(magnitude)) {
            const KBlock<type> block(x + b, importance != nullptr ? importance + b : nullptr);
            const Search search(block);
            const KFound found = search.find();
            const bool fits = found.error < INFINITY;
            numbers.d = fits ? found.d : NAN;
            numbers.d_min = found.d_min;
            float codes[Search::sub][k_lanes];
            for (std::size_t l = 0; fits && l < Search::n_subs; l += lanes<Isa>)
                search.codes(found, l, codes);
            for (std::size_t l = 0; fits && l < Search::n_subs; ++l) {
                numbers.s[l] = static_cast<std::int8_t>(found.scales.s[l]);
                numbers.m[l] = static_cast<std::uint8_t>(found.scales.m[l]);
                for (std::size_t c = 0; c < Search::sub; ++c)
                    numbers.code[l * Search::sub + c] =
                        static_cast<std::uint8_t>(static_cast<int>(codes[c][l]) + zero);
            }
        } else if (!(magnitude < least_magnitude)) {
            numbers.d = NAN;
        }
        write_k_block(type, numbers, y);
    }
}

template <class Isa>
void quantize_k(DType type, const float* x, const float* importance, std::byte* y, std::size_t n) {
    switch (type) {
        case DType::q2_k: return quantize_k_row<Isa, DType::q2_k>(x, importance, y, n);
        case DType::q3_k: return quantize_k_row<Isa, DType::q3_k>(x, importance, y, n);
        case DType::q4_k: return quantize_k_row<Isa, DType::q4_k>(x, importance, y, n);
        case DType::q5_k: return quantize_k_row<Isa, DType::q5_k>(x, importance, y, n);
        default: return quantize_k_row<Isa, DType::q6_k>(x, importance, y, n);
    }
}

}  // namespace
}  // namespace tensor_ops
