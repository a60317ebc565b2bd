// Products of many rows with a plain matrix.  While one block of the matrix is multiplied, the next
// is fetched and packed to panels, a slice at a time, so that arithmetic does not wait for memory:
// 64 rows by 4096 x 4096 take a Zen 4 core with AVX2 22 ms this way, and 30 without the fetching,
// where arithmetic alone takes 20.
//
// A slice is packed as soon as it is there: rows that lie a power of two apart share few sets of
// the caches, which cannot hold a block of them.
#pragma once

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

// Rows of x whose tiles are kept at a time, 512 KB.
inline constexpr std::size_t row_block = 512;
// Columns that are packed at a time, and floats between panels, so that their lines at equal depth
// do not share a set of L1.
inline constexpr std::size_t packed_columns = 128;
inline constexpr std::size_t panel_gap = 16;
template <class Isa>
inline constexpr std::size_t panel_stride = depth_block * panel<Isa> + panel_gap;
template <class Isa>
inline constexpr std::size_t packed_floats = packed_columns / panel<Isa> * panel_stride<Isa>;
// Tiles, room for the end of transpose_tile, and two blocks of panels.
template <class Isa>
inline constexpr std::size_t pack_ahead_floats =
    row_block * depth_block + depth_block + 2 * packed_floats<Isa>;

// Rows [i, i + depth) and columns [j, j + n) of the right-hand matrix.
struct MatrixPart {
    std::size_t i, depth, j, n;
};

// `rows` rows of n elements each, `stride` elements apart.
template <class Source>
inline Lines lines_of(const Source* first, std::size_t stride, std::size_t rows, std::size_t n) {
    const std::size_t of_row = (n * sizeof(Source) + line_bytes - 1) / line_bytes;
    return {reinterpret_cast<const std::byte*>(first), stride * sizeof(Source), of_row,
            rows * of_row};
}

// c[m][n] = a[m][k] b for columns [first, last) and at most row_block rows.  The matrix b packs
// itself, with
//     units(part): into how many units its packing is divided;
//     lines(part, from, to): the memory of units [from, to);
//     pack(part, from, to, panels): packs them to panels that lie panel_stride apart.
template <class Isa, class Matrix>
void multiply_row_block(const float* a, std::size_t a_stride, std::size_t m, std::size_t k,
                        const Matrix& b, float* c, std::size_t c_stride, std::size_t first,
                        std::size_t last, float* scratch) {
    float* tiles = scratch;
    float* packed = tiles + row_block * depth_block + depth_block;
    float* next_packed = packed + packed_floats<Isa>;
    std::size_t n_tiles = 0;
    for_each_tile<Isa>(m, [&](std::size_t, auto) { ++n_tiles; });
    // Multiplies a part, and packs the next between its panels, unless it is the last.
    const auto multiply = [&](const MatrixPart& part, const MatrixPart* next) {
        const std::size_t panels = (part.n + panel<Isa> - 1) / panel<Isa>;
        const std::size_t units = next ? b.units(*next) : 0;
        // How much of the next is packed when so many panels have been multiplied.
        const auto units_after = [&](std::size_t n) {
            return std::min(units * n / (n_tiles * panels), units);
        };
        std::size_t done = 0;
        const auto multiply_one = [&](std::size_t r, std::size_t p, auto rows, auto streams) {
            const std::size_t begin = units_after(done), end = units_after(done + streams);
            const std::size_t after = units_after(done + 2 * streams);
            const Lines lines = end < after ? b.lines(*next, end, after) : Lines{};
            multiply_panel<Isa, rows, streams>(
                tiles + r * depth_block, packed + p * panel_stride<Isa>, panel<Isa>,
                panel_stride<Isa>, part.depth, c + r * c_stride + part.j + p * panel<Isa>, c_stride,
                panel<Isa>, part.n - p * panel<Isa>, part.i > 0, lines);
            if (begin < end) b.pack(*next, begin, end, next_packed);
            done += streams;
        };
        for_each_tile<Isa>(m, [&](std::size_t r, auto rows) {
            // One panel by one or two rows has too few sums for the latency of an FMA.
            constexpr std::integral_constant<std::size_t, rows <= 2 ? 2 : 1> streams;
            std::size_t p = 0;
            for (; p + streams <= panels; p += streams) multiply_one(r, p, rows, streams);
            if (p < panels) multiply_one(r, p, rows, std::integral_constant<std::size_t, 1>{});
        });
    };
    const auto part_at = [&](std::size_t i, std::size_t j) {
        return MatrixPart{i, std::min(depth_block, k - i), j, std::min(packed_columns, last - j)};
    };
    MatrixPart part = part_at(0, first);
    b.pack(part, 0, b.units(part), packed);
    for (;;) {
        if (part.j == first)
            for_each_tile<Isa>(m, [&](std::size_t r, auto rows) {
                transpose_tile<Isa, rows>(a + r * a_stride + part.i, a_stride, part.depth,
                                          tiles + r * depth_block);
            });
        const bool row_ends = part.j + part.n == last;
        if (row_ends && part.i + part.depth == k) return multiply(part, nullptr);
        const MatrixPart next =
            row_ends ? part_at(part.i + part.depth, first) : part_at(part.i, part.j + part.n);
        multiply(part, &next);
        part = next;
        std::swap(packed, next_packed);
    }
}

// The same for any number of rows.
template <class Isa, class Matrix>
void multiply_packing(const float* a, std::size_t a_stride, std::size_t m, std::size_t k,
                      const Matrix& b, float* c, std::size_t c_stride, std::size_t first,
                      std::size_t last, float* scratch) {
    if (first == last) return;
    for (std::size_t r = 0; r < m; r += row_block)
        multiply_row_block<Isa>(a + r * a_stride, a_stride, std::min(row_block, m - r), k, b,
                                c + r * c_stride, c_stride, first, last, scratch);
}

}  // namespace
}  // namespace tensor_ops
