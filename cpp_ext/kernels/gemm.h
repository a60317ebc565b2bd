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
inline constexpr std::size_t few_panels = 4;  // that one row is multiplied with at once
inline constexpr std::size_t max_tile = 17;   // 16 rows, and room for transpose_tile

inline constexpr std::size_t gemm_scratch_floats = depth_block * (column_block + max_tile);

// Where the panels of a matrix lie: elements from one panel to the next, from one k to the next.
template <class Source>
struct Panels {
    const Source* data;
    std::size_t stride, row_stride;
};

// c[rows][Count panels] (+)= x[k][Rows] * b[k][panel] of panels that lie `stride` elements apart;
// only `columns` of c's columns exist.
//
// Each sum takes its terms in their order, whatever Rows and Count are: a row's numbers do not
// depend on how many rows it is multiplied with.
template <class Isa, std::size_t Rows, std::size_t Count, class Source>
inline void multiply_panel(const float* x, Panels<Source> b, std::size_t k, float* c,
                           std::size_t c_stride, std::size_t columns, bool accumulate) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    F sum[Count][Rows][2];
    unroll<Count>(
        [&](auto p) { unroll<Rows>([&](auto r) { sum[p][r][0] = sum[p][r][1] = F(0.0f); }); });
    for (std::size_t i = 0; i < k; ++i) {
        unroll<Count>([&](auto p) {
            const Source* at = b.data + p * b.stride + i * b.row_stride;
            const F b0 = load_as_float<Isa>(at);
            const F b1 = load_as_float<Isa>(at + w);
            unroll<Rows>([&](auto r) {
                const F v(x[i * Rows + r]);
                sum[p][r][0] = xsimd::fma(v, b0, sum[p][r][0]);
                sum[p][r][1] = xsimd::fma(v, b1, sum[p][r][1]);
            });
        });
    }
    unroll<Rows>([&](auto r) {
        unroll<2 * Count>([&](auto h) {
            float* at = c + r * c_stride + h * w;
            F total = sum[h / 2][r][h % 2];
            if (columns >= (h + 1) * w) {
                if (accumulate) total += load<Isa>(at);
                total.store_unaligned(at);
            } else if (columns > h * w) {
                const std::size_t left = columns - h * w;
                if (accumulate) total += load_partial<Isa>(at, left, 0.0f);
                store_partial<Isa>(total, at, left);
            }
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

// x[Rows][k] to tile[k][Rows], in squares of a vector's width.  Writes up to a vector beyond that.
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
            xsimd::transpose(square, square + w);
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
void multiply_panels(const float* x, std::size_t x_stride, std::size_t m, std::size_t k,
                     Panels<Source> panels, std::size_t n, float* c, std::size_t c_stride,
                     bool accumulate, float* tile) {
    for_each_tile<Isa>(m, [&](std::size_t r, auto rows) {
        const float* source = x + r * x_stride;
        if (rows != 1) {
            transpose_tile<Isa, rows>(source, x_stride, k, tile);
            source = tile;
        }
        std::size_t j = 0;
        const auto next = [&](auto count) {
            const Panels<Source> some{panels.data + j / panel<Isa> * panels.stride, panels.stride,
                                      panels.row_stride};
            multiply_panel<Isa, rows, count>(source, some, k, c + r * c_stride + j, c_stride, n - j,
                                             accumulate);
            j += count * panel<Isa>;
        };
        // Few rows: several panels at once, to cover the FMA's latency.
        constexpr std::size_t several = std::max<std::size_t>(few_panels / rows, 1);
        while (j + several * panel<Isa> <= n) next(std::integral_constant<std::size_t, several>{});
        while (j < n) next(std::integral_constant<std::size_t, 1>{});
    });
}

// linear_f32 of kernels.h for the float types: the groups of the packed layout are the panels.
template <class Isa, class Source>
void linear_float(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                  std::size_t last, float* y, std::size_t y_stride) {
    float tile[depth_block * max_tile];
    const std::size_t stride = group_bytes<Isa>(w.type, w.k) / sizeof(Source);
    const auto* groups = reinterpret_cast<const Source*>(w.data);
    // One row reads each weight once anyway: then panels are read whole.
    const std::size_t step = rows == 1 ? few_panels : column_block / panel<Isa>;
    for (std::size_t g = first; g < last; g += step) {
        const std::size_t column = g * panel<Isa>;
        const std::size_t end = std::min(std::min(g + step, last) * panel<Isa>, w.n);
        std::size_t i = 0;
        do {  // once for k = 0, too: the outputs are zeros then
            const Panels<Source> panels{groups + g * stride + i * panel<Isa>, stride, panel<Isa>};
            multiply_panels<Isa>(x + i, w.k, rows, std::min(depth_block, w.k - i), panels,
                                 end - column, y + column, y_stride, i > 0, tile);
            i += depth_block;
        } while (i < w.k);
    }
}

}  // namespace
}  // namespace tensor_ops
