// Activations for products by tiles: as activations.h has them, but that a tile has 16 rows, and
// the digits of a row lie together, as tile registers read them: int8 [16 rows][digits][32
// columns].  The rows that fill no tile lie as the ISA without tiles has them.
#pragma once

#include "kernels/activations.h"
#include "kernels/amx.h"

namespace tensor_ops {
namespace {

// From int8 [digits][8 quads][16 rows][4 columns], at the same place.
template <class Isa, std::size_t Digits>
void digits_by_rows(std::byte* record) {
    static_assert(lanes<Isa> == tile_side);
    Floats<Isa> quads[tile_side] = {};
    constexpr std::size_t vector = 4 * tile_side, row = Digits * quant_block;
    for (std::size_t i = 0; i < 8 * Digits; ++i)
        quads[i] = load<Isa>(reinterpret_cast<const float*>(record + i * vector));
    transpose<Isa>(quads);
    for (std::size_t r = 0; r < tile_side; ++r) {
        float digits[lanes<Isa>];
        quads[r].store_unaligned(digits);
        std::memcpy(record + r * row, digits, row);
    }
}

template <class Isa>
void quantize_tiles(Activations kind, const float* x, std::size_t k, std::size_t first,
                    std::size_t last, std::byte* q) {
    static_assert(Isa::activation_tile == tile_side);
    const std::size_t blocks = k / quant_block, bytes = quantized_block_bytes(kind);
    with_digits(kind, [&](auto digits) {
        for (std::size_t r = first; r < last; r += tile_side)
            for (std::size_t b = 0; b < blocks; ++b) {
                std::byte* record = q + (r * blocks + b * tile_side) * bytes;
                quantize_blocks<Isa, digits, tile_side>(x + r * k + b * quant_block, k, 1, record);
                digits_by_rows<Isa, digits>(record);
            }
    });
}

}  // namespace
}  // namespace tensor_ops
