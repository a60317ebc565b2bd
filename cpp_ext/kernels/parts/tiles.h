// Quantised products of many rows by tile registers, in place of those of the table that is
// filled in already.  These take the rows that are left.
#pragma once

#include "kernels/linear_tiles.h"

namespace tensor_ops {
namespace {

KernelTable without_tiles;

// Rows that are multiplied by tiles: all that fill some.
std::size_t tiled_rows(std::size_t rows) { return rows / tile_side * tile_side; }

template <class Isa>
void quantize_with_tiles(Activations kind, const float* x, std::size_t rows, std::size_t k,
                         std::size_t first, std::size_t last, std::byte* q) {
    const std::size_t end = std::clamp(tiled_rows(rows), first, last);
    quantize_tiles<Isa>(kind, x, k, first, end, q);
    if (end < last) without_tiles.quantize_activations(kind, x, rows, k, end, last, q);
}

template <class Isa, DType Type>
void linear_with_tiles(Activations kind, const PackedView& w, const std::byte* xq, std::size_t rows,
                       std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    const std::size_t tiled = tiled_rows(rows);
    if (tiled) linear_tiles<Isa, Type>(kind, w, xq, tiled, first, last, y, y_stride);
    if (tiled < rows)
        without_tiles.linear_quantized(
            kind, w, xq + tiled * (w.k / quant_block) * quantized_block_bytes(kind), rows - tiled,
            first, last, y + tiled * y_stride, y_stride);
}

template <class Isa>
void fill(KernelTable& table) {
    without_tiles = table;
    table.activation_tile = tile_side;
    table.quantize_activations = quantize_with_tiles<Isa>;
    for (const Format& format : formats) {
        if (!is_quantized(format.type)) continue;
        with_packed_form(format.type, [&](auto form) {
            table.linear_quantized_of[static_cast<std::size_t>(format.type)] =
                linear_with_tiles<Isa, form>;
        });
    }
}

}  // namespace
}  // namespace tensor_ops
