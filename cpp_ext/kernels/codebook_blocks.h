// Blocks of GGML's IQ types with codebooks, taken apart.
//
// Packing looks the indices up once, so that products find codes of 4 bits (iq3), 3 (iq2) or 2
// (iq1).  A matrix takes 1.3 (iq3_s) to 1.6 (iq2_xxs) times its bytes in the file.  Looking up in
// products is no choice for AVX2: on a Zen 3, gathers from a table in L1 bring 1.1e9 weights a
// second, the product of packed codes with 16-bit activations 2.1e10 (iq2) to 3.3e10 (iq3_s).
#pragma once

#include "kernels/block.h"
#include "kernels/codebooks.h"

namespace tensor_ops {
namespace {

constexpr bool is_codebook(DType type) {
    switch (type) {
        case DType::iq3_xxs:
        case DType::iq3_s:
        case DType::iq2_xxs:
        case DType::iq2_xs:
        case DType::iq2_s:
        case DType::iq1_s:
        case DType::iq1_m: return true;
        default: return false;
    }
}

// The levels of an entry, each in a byte.
inline std::uint64_t eight_levels(std::uint16_t entry) {
    std::uint64_t v = entry;
    v = (v | v << 24) & 0x000000ff000000ff;
    v = (v | v << 12) & 0x000f000f000f000f;
    return (v | v << 6) & 0x0303030303030303;
}
inline std::uint64_t four_levels(std::uint16_t entry) {
    std::uint64_t v = entry;
    v = (v | v << 8) & 0x00ff00ff;
    return (v | v << 4) & 0x0f0f0f0f;
}

// The signs of 8 columns, of which 7 are stored: the number of minus signs is even.
inline unsigned eight_signs(unsigned seven) {
    return seven | static_cast<unsigned>(__builtin_parity(seven)) << 7;
}

// Codes of columns 8 l to 8 l + 7: levels, and signs in the bit `sign_bit`.
inline void set_codes(Block& block, std::size_t l, std::uint64_t levels, unsigned signs,
                      int sign_bit) {
    const std::uint64_t codes = levels | spread_bits(signs) << sign_bit;
    std::memcpy(block.code + 8 * l, &codes, 8);
}

// Scales are odd numbers: 2 s + 1.
inline std::int8_t odd_scale(unsigned s) { return static_cast<std::int8_t>(2 * s + 1); }

// iq2_xxs: d, { index[4]; 7 signs[4] and 4 bits of scale }[8]
// iq2_xs:  d, 9 bits of index and 7 signs[32], 4 bits of scale[16]
// iq2_s:   d, low 8 bits of index[32], signs[32], upper 2 bits of index[32], 4 bits of scale[16]
inline void read_iq2_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    block.d = read<std::uint16_t>(p);
    if (type == DType::iq2_xxs) {
        const std::byte* indices = p + 2 + 8 * b;
        const auto signs = read<std::uint32_t>(indices + 4);
        block.s[0] = block.s[1] = odd_scale(signs >> 28);
        for (std::size_t l = 0; l < 4; ++l)
            set_codes(block, l, eight_levels(iq2_xxs_codebook[byte_at(indices, l)]),
                      eight_signs(signs >> 7 * l & 127), 2);
        return;
    }
    const bool xs = type == DType::iq2_xs;
    const unsigned scales = byte_at(p, (xs ? 66 : 74) + b);
    block.s[0] = odd_scale(scales & 15);
    block.s[1] = odd_scale(scales >> 4);
    for (std::size_t l = 0; l < 4; ++l) {
        if (xs) {
            const unsigned word = read<std::uint16_t>(p + 2 + 8 * b + 2 * l);
            set_codes(block, l, eight_levels(iq2_xs_codebook[word & 511]), eight_signs(word >> 9),
                      2);
        } else {
            const unsigned index = byte_at(p, 2 + 4 * b + l) | (byte_at(p, 66 + b) >> 2 * l & 3)
                                                                   << 8;
            set_codes(block, l, eight_levels(iq2_s_codebook[index]), byte_at(p, 34 + 4 * b + l), 2);
        }
    }
}

// iq3_xxs: d, index[64], { 7 signs[4] and 4 bits of scale }[8]
// iq3_s:   d, low 8 bits of index[64], ninth bit of index[64], signs[32], 4 bits of scale[8]
inline void read_iq3_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    block.d = read<std::uint16_t>(p);
    const std::byte* indices = p + 2 + 8 * b;
    const bool xxs = type == DType::iq3_xxs;
    const auto packed_signs = xxs ? read<std::uint32_t>(p + 66 + 4 * b) : 0;
    const unsigned ninth = xxs ? 0 : byte_at(p, 66 + b);
    block.s[0] = block.s[1] =
        odd_scale(xxs ? packed_signs >> 28 : byte_at(p, 106 + b / 2) >> 4 * (b % 2) & 15);
    const auto levels = [&](std::size_t i) {
        const unsigned index = byte_at(indices, i) | (ninth >> i & 1) << 8;
        return four_levels(xxs ? iq3_xxs_codebook[index] : iq3_s_codebook[index]);
    };
    for (std::size_t l = 0; l < 4; ++l) {
        const std::uint64_t eight = levels(2 * l) | levels(2 * l + 1) << 32;
        if (xxs) {
            set_codes(block, l, eight, eight_signs(packed_signs >> 7 * l & 127), 3);
        } else {  // 1, 3, ..., 15 are codes 8 to 15, and -1, -3, ..., -15 are codes 7 to 0
            const std::uint64_t minus = spread_bits(byte_at(p, 74 + 4 * b + l)) * 0x0f;
            const std::uint64_t codes = (eight | 0x0808080808080808) ^ minus;
            std::memcpy(block.code + 8 * l, &codes, 8);
        }
    }
}

// iq1_s: d, low 8 bits of index[32], { upper 3 bits of index[4], 3 bits of scale, shift }[8]
// iq1_m: low 8 bits of index[32], { upper 3 bits of index, shift }[32], { 3 bits of scale[4], a
//        nibble of d }[4]
inline void read_iq1_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    unsigned upper[4], minus[4], scale[2];  // minus: whether 1/8 is subtracted
    if (type == DType::iq1_s) {
        const unsigned word = read<std::uint16_t>(p + 34 + 2 * b);
        block.d = read<std::uint16_t>(p);
        scale[0] = scale[1] = word >> 12 & 7;
        for (std::size_t l = 0; l < 4; ++l) {
            upper[l] = word >> 3 * l & 7;
            minus[l] = word >> 15;
        }
        p += 2;
    } else {
        unsigned d = 0;
        for (std::size_t i = 0; i < 4; ++i)
            d |= static_cast<unsigned>(read<std::uint16_t>(p + 48 + 2 * i)) >> 12 << 4 * i;
        block.d = static_cast<std::uint16_t>(d);
        const unsigned scales = read<std::uint16_t>(p + 48 + b / 2 * 2);
        for (std::size_t i = 0; i < 2; ++i) scale[i] = scales >> (b % 2 * 6 + 3 * i) & 7;
        for (std::size_t l = 0; l < 4; ++l) {
            const unsigned nibble = byte_at(p, 32 + 2 * b + l / 2) >> 4 * (l % 2) & 15;
            upper[l] = nibble & 7;
            minus[l] = nibble >> 3;
        }
    }
    for (std::size_t l = 0; l < 4; ++l)
        set_codes(block, l, eight_levels(iq1_codebook[byte_at(p, 4 * b + l) | upper[l] << 8]) << 2,
                  minus[l] ? 0 : 0xff, 0);
    for (std::size_t i = 0; i < 2; ++i)
        block.s[i] = static_cast<std::int8_t>((2 * scale[i] + 1) << 4 |
                                              (1 - minus[2 * i + 1]) << 1 | (1 - minus[2 * i]));
}

// Columns 32 b to 32 b + 31 of a block of 256.
inline void read_codebook_block(DType type, const std::byte* p, std::size_t b, Block& block) {
    switch (type) {
        case DType::iq3_xxs:
        case DType::iq3_s: return read_iq3_block(type, p, b, block);
        case DType::iq1_s:
        case DType::iq1_m: return read_iq1_block(type, p, b, block);
        default: return read_iq2_block(type, p, b, block);
    }
}

}  // namespace
}  // namespace tensor_ops
