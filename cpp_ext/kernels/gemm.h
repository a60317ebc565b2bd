// Float matrix products: one register-tiled microkernel over packed panels, and the blocking around
// it (after Goto and van de Geijn 2008).
//
// A panel is [k][2 vectors] of f32, f16 or bf16: a group of the packed layout, or a piece of a
// plain matrix packed on the way.  A tile of x is [k][rows], so that its broadcasts come in order.
#pragma once

#include <algorithm>

#include "kernels/packed.h"

namespace tensor_ops {
namespace {

struct Bfloat16 {
    std::uint16_t bits;
};
struct Half {
    std::uint16_t bits;
};

template <class Isa>
inline Floats<Isa> load_as_float(const float* p) {
    return load<Isa>(p);
}
template <class Isa>
inline Floats<Isa> load_as_float(const Half* p) {
    return Isa::HalfLoad::load(reinterpret_cast<const std::uint16_t*>(p));
}
template <class Isa>
inline Floats<Isa> load_as_float(const Bfloat16* p) {
    std::int32_t lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i)
        lane[i] = static_cast<std::int32_t>(p[i].bits) << 16;
    return xsimd::bitwise_cast<float>(Ints<Isa>::load_unaligned(lane));
}

inline float load_one(const float* p) { return *p; }
inline float load_one(const Half* p) { return half_to_float(p->bits); }
inline float load_one(const Bfloat16* p) {
    return bits_to_float(static_cast<std::uint32_t>(p->bits) << 16);
}

// Calls f with a null pointer of the C++ type of a float DType.
template <class F>
inline void with_source(DType type, F&& f) {
    if (type == DType::f32)
        f(static_cast<const float*>(nullptr));
    else if (type == DType::f16)
        f(static_cast<const Half*>(nullptr));
    else
        f(static_cast<const Bfloat16*>(nullptr));
}

// Columns of a panel, and the blocking: a block of panels (256 x 512 floats, 512 KB) stays in L2
// while all tiles of x pass over it, a tile of x (12 x 256 floats, 12 KB) stays in L1.
template <class Isa>
inline constexpr std::size_t panel = 2 * lanes<Isa>;
inline constexpr std::size_t depth_block = 256;
inline constexpr std::size_t column_block = 512;
inline constexpr std::size_t max_tile = 17;  // 16 rows, and room for transpose_tile
inline constexpr std::size_t line_bytes = 64;

// The products of one row read the matrix in this many streams, which lie far apart: a Zen 4 core
// then reads 1.05 to 1.1 times as fast as in one stream.
inline constexpr std::size_t far_streams = 4;

// Calls f(i, apart, std::integral_constant<streams>) for all of [first, last).  A call works on i,
// i + apart, ... in far_streams streams; what is left over is done one by one.
template <class F>
inline void for_far_streams(std::size_t first, std::size_t last, F&& f) {
    const std::size_t apart = (last - first) / far_streams;
    for (std::size_t i = first; i < first + apart; ++i)
        f(i, apart, std::integral_constant<std::size_t, far_streams>{});
    for (std::size_t i = first + far_streams * apart; i < last; ++i)
        f(i, apart, std::integral_constant<std::size_t, 1>{});
}

// Lines of memory that a product asks for while it computes, spread over its time: some rows of a
// matrix that lie `row_bytes` apart.
struct Lines {
    const std::byte* row = nullptr;
    std::size_t row_bytes = 0, lines_of_row = 0;
    std::size_t left = 0;  // lines in all
    std::size_t in_row = 0;

    void fetch() {
        if (left == 0) return;
        --left;
        __builtin_prefetch(row + in_row * line_bytes);
        if (++in_row < lines_of_row) return;
        in_row = 0;
        row += row_bytes;
    }
};

// The panels of a matrix.  stride: elements from one panel to the next.  row_stride: elements from
// one k to the next.
template <class Source>
struct Panels {
    const Source* data;
    std::size_t stride, row_stride;
};

// c[rows][panel] (+)= x[k][Rows] * b[k][panel] for Streams panels of b.  The panels lie b_apart
// elements apart, and their columns of c c_apart; only `columns` of c's columns exist.  A sum runs
// along k in order, whatever Rows and Streams are, so that the result of a row does not depend on
// the rows beside it.  Meanwhile `lines` are fetched.
template <class Isa, std::size_t Rows, std::size_t Streams, class Source>
[[gnu::noinline]] void multiply_panel(const float* x, const Source* b, std::size_t b_stride,
                                      std::size_t b_apart, std::size_t k, float* c,
                                      std::size_t c_stride, std::size_t c_apart,
                                      std::size_t columns, bool accumulate, Lines lines = {}) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    F sum[Streams][Rows][2];
    unroll<Streams>(
        [&](auto s) { unroll<Rows>([&](auto r) { sum[s][r][0] = sum[s][r][1] = F(0.0f); }); });
    // c is far away if it is large: without this, 512 rows take a fifth more time.
    if (accumulate)
        unroll<Streams>([&](auto s) {
            unroll<Rows>([&](auto r) {
                __builtin_prefetch(c + r * c_stride + s * c_apart);
                __builtin_prefetch(c + r * c_stride + s * c_apart + 2 * w - 1);
            });
        });
    const std::size_t stretch = lines.left ? std::max<std::size_t>(k / lines.left, 1) : k;
    for (std::size_t i = 0; i < k;) {
        lines.fetch();
        for (const std::size_t end = std::min(i + stretch, k); i < end; ++i)
            unroll<Streams>([&](auto s) {
                const Source* at = b + i * b_stride + s * b_apart;
                // Far streams are as many as the hardware follows.
                if constexpr (Streams == 1) fetch_ahead<2 * w * sizeof(Source)>(at);
                const F b0 = load_as_float<Isa>(at);
                const F b1 = load_as_float<Isa>(at + w);
                unroll<Rows>([&](auto r) {
                    const F v(x[i * Rows + r]);
                    sum[s][r][0] = xsimd::fma(v, b0, sum[s][r][0]);
                    sum[s][r][1] = xsimd::fma(v, b1, sum[s][r][1]);
                });
            });
    }
    unroll<Streams>([&](auto s) {
        unroll<Rows>([&](auto r) {
            float* row = c + r * c_stride + s * c_apart;
            const std::size_t exist = columns - s * c_apart;
            unroll<2>([&](auto h) {
                F total = sum[s][r][h];
                if (exist >= (h + 1) * w) {
                    if (accumulate) total += load<Isa>(row + h * w);
                    total.store_unaligned(row + h * w);
                } else if (exist > h * w) {
                    const std::size_t left = exist - h * w;
                    if (accumulate) total += load_partial<Isa>(row + h * w, left, 0.0f);
                    store_partial<Isa>(total, row + h * w, left);
                }
            });
        });
    });
}

// Calls f(row, std::integral_constant<rows>) for tiles of the register tile's rows, then 4, 2, 1.
template <class Isa, class F>
inline void for_each_tile(std::size_t rows, F&& f) {
    std::size_t r = 0;
    for (; r + Isa::float_tile <= rows; r += Isa::float_tile)
        f(r, std::integral_constant<std::size_t, Isa::float_tile>{});
    for (; r + 4 <= rows; r += 4) f(r, std::integral_constant<std::size_t, 4>{});
    for (; r + 2 <= rows; r += 2) f(r, std::integral_constant<std::size_t, 2>{});
    if (r < rows) f(r, std::integral_constant<std::size_t, 1>{});
}

// Transposes x[Rows][k] to tile[k][Rows] in squares of a vector's width.  It writes up to one
// vector beyond the tile's end.
template <class Isa, std::size_t Rows>
inline void transpose_tile(const float* x, std::size_t x_stride, std::size_t k, float* tile) {
    constexpr std::size_t w = lanes<Isa>, count = std::min(Rows, w);
    static_assert(Rows % count == 0);
    for (std::size_t first = 0; first < Rows; first += count) {
        std::size_t i = 0;
        for (; i + w <= k; i += w) {
            Floats<Isa> square[w];
            unroll<w>([&](auto r) {
                square[r] = Floats<Isa>(0.0f);
                if constexpr (r < count) square[r] = load<Isa>(x + (first + r) * x_stride + i);
            });
            transpose<Isa>(square);
            // The lanes beyond `count` are overwritten by the next column.
            unroll<w>([&](auto l) { square[l].store_unaligned(tile + (i + l) * Rows + first); });
        }
        for (; i < k; ++i)
            for (std::size_t r = first; r < first + count; ++r)
                tile[i * Rows + r] = x[r * x_stride + i];
    }
}

// c[m][n] (+)= x[m][k] * panels, k at most depth_block.  `tile` holds depth_block * max_tile
// floats.
template <class Isa, class Source>
[[gnu::noinline]] void multiply_panels(const float* x, std::size_t x_stride, std::size_t m,
                                       std::size_t k, Panels<Source> panels, std::size_t n,
                                       float* c, std::size_t c_stride, bool accumulate,
                                       float* tile) {
    for_each_tile<Isa>(m, [&](std::size_t r, auto rows) {
        const float* source = x + r * x_stride;
        if (rows != 1) {
            transpose_tile<Isa, rows>(source, x_stride, k, tile);
            source = tile;
        }
        for (std::size_t j = 0; j < n; j += panel<Isa>)
            multiply_panel<Isa, rows, 1>(source, panels.data + j / panel<Isa> * panels.stride,
                                         panels.row_stride, 0, k, c + r * c_stride + j, c_stride, 0,
                                         n - j, accumulate);
    });
}

}  // namespace
}  // namespace tensor_ops
