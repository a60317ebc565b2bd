// Products with plain row-major matrices: many rows through panels that are packed on the way, few
// rows straight from memory, which they read once.
#pragma once

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

// Up to this many rows, packing a matrix costs more than it saves: b of matmul, and w of linear,
// whose rows the dot products read as they lie.  With 16 sums in registers, AVX-512 reaches
// 88 GFLOP/s at 128 rows; with packing, 81.
inline constexpr std::size_t few_rows_by_b = 8;
template <class Isa>
inline constexpr std::size_t few_rows_by_w = Isa::float_tile >= 8 ? 128 : 32;

// Packs b[k][n] to panels [n / panel][k][panel]; the last panel is padded with zeros.  It goes
// through b in the order of memory.  It asks early for what comes a row later, because prefetchers
// stop at the end of a page.
template <class Isa>
void pack_panels(const float* b, std::size_t b_stride, std::size_t k, std::size_t n,
                 float* panels) {
    constexpr std::size_t line = 16;  // floats
    for (std::size_t i = 0; i < k; ++i, b += b_stride) {
        float* to = panels + i * panel<Isa>;
        for (std::size_t j = 0; j < n; j += panel<Isa>, to += k * panel<Isa>) {
            for (std::size_t l = 0; l < panel<Isa>; l += line)
                __builtin_prefetch(b + 2 * b_stride + j + l);
            const std::size_t columns = std::min(panel<Isa>, n - j);
            if (columns < panel<Isa>) std::memset(to, 0, panel<Isa> * sizeof(float));
            std::memcpy(to, b + j, columns * sizeof(float));
        }
    }
}

// Packs w[n][k] to panels [n / panel][k][panel], transposed in squares of a vector's width; the
// last panel is padded with zeros.
template <class Isa, class Source>
void pack_transposed(const Source* w, std::size_t w_stride, std::size_t n, std::size_t k,
                     float* panels) {
    constexpr std::size_t width = lanes<Isa>;
    for (std::size_t j = 0; j < round_up(n, panel<Isa>); j += width) {
        float* column = panels + j / panel<Isa> * k * panel<Isa> + j % panel<Isa>;
        std::size_t i = 0;
        if (j + width <= n) {
            for (; i + width <= k; i += width) {
                Floats<Isa> square[width];
                unroll<width>([&](auto r) {
                    const Source* at = w + (j + r) * w_stride + i;
                    __builtin_prefetch(at + width * w_stride);
                    square[r] = load_as_float<Isa>(at);
                });
                transpose<Isa>(square);
                unroll<width>(
                    [&](auto r) { square[r].store_unaligned(column + (i + r) * panel<Isa>); });
            }
        }
        for (; i < k; ++i)
            for (std::size_t r = 0; r < width; ++r)
                column[i * panel<Isa> + r] =
                    j + r < n ? load_one(w + (j + r) * w_stride + i) : 0.0f;
    }
}

// c[rows][n] += a[rows][Depth] * b[Depth][n] without packing, for few rows: b is read once, in
// Depth streams, and c stays in a near cache.  Rows of b, and columns of a, are `apart`.
template <class Isa, std::size_t Depth, class Apart>
void accumulate_outer(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                      Apart apart, float* c, std::size_t c_stride, std::size_t rows,
                      std::size_t n) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    const auto columns_at = [&](std::size_t j, auto&& load_at, auto&& store_at) {
        F v[Depth];
        unroll<Depth>([&](auto i) { v[i] = load_at(b + i * apart * b_stride + j); });
        for (std::size_t r = 0; r < rows; ++r) {
            float* sums = c + r * c_stride + j;
            F even = load_at(sums), odd(0.0f);
            unroll<Depth>([&](auto i) {
                F& sum = i % 2 ? odd : even;
                sum = xsimd::fma(F(a[r * a_stride + i * apart]), v[i], sum);
            });
            store_at(even + odd, sums);
        }
    };
    std::size_t j = 0;
    for (; j + w <= n; j += w)
        columns_at(
            j, [](const float* p) { return load<Isa>(p); },
            [](F v, float* p) { v.store_unaligned(p); });
    if (j < n)
        columns_at(
            j, [&](const float* p) { return load_partial<Isa>(p, n - j, 0.0f); },
            [&](F v, float* p) { store_partial<Isa>(v, p, n - j); });
}

// matmul for few rows.  A run of columns is long enough for the prefetchers, and short enough that
// c stays in a near cache.
template <class Isa>
void matmul_few_rows(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                     float* c, std::size_t c_stride, std::size_t m, std::size_t k,
                     std::size_t first, std::size_t last) {
    constexpr std::integral_constant<std::size_t, 1> one;
    const std::size_t run = m == 1 ? 16384 : 4096;
    for (std::size_t j = first; j < last; j += run) {
        const std::size_t n = std::min(run, last - j);
        for (std::size_t r = 0; r < m; ++r) std::memset(c + r * c_stride + j, 0, n * sizeof(float));
        std::size_t i = 0;
        const auto add = [&](auto depth, auto apart) {
            accumulate_outer<Isa, depth>(a + i, a_stride, b + i * b_stride + j, b_stride, apart,
                                         c + j, c_stride, m, n);
        };
        // Far columns of a would share few sets of L1: that slows 4 rows down, and does not help 2.
        const std::size_t quarter = k / far_streams;
        if (m == 1) {
            for (; i < quarter; ++i)
                add(std::integral_constant<std::size_t, far_streams>{}, quarter);
            i = far_streams * quarter;
        }
        constexpr std::integral_constant<std::size_t, 8> depth;
        for (; i + depth <= k; i += depth) add(depth, one);
        for (; i < k; ++i) add(one, one);
    }
}

template <class Isa>
void matmul(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, float* c,
            std::size_t c_stride, std::size_t m, std::size_t k, std::size_t first, std::size_t last,
            float* scratch) {
    if (m <= few_rows_by_b)
        return matmul_few_rows<Isa>(a, a_stride, b, b_stride, c, c_stride, m, k, first, last);
    multiply_blocks<Isa>(a, a_stride, m, k, c, c_stride, first, last, column_block, scratch,
                         [&](auto i, auto depth, auto j, auto n, float* panels) {
                             pack_panels<Isa>(b + i * b_stride + j, b_stride, depth, n, panels);
                         });
}

// Rows x Tokens dot products along k, with rows of w `apart` from each other.
template <class Isa, std::size_t Rows, std::size_t Tokens, class Source>
inline void dot_block(const Source* w, std::size_t apart, std::size_t k, const float* x,
                      std::size_t x_stride, float* y, std::size_t y_stride) {
    using F = Floats<Isa>;
    constexpr std::size_t width = lanes<Isa>;
    F sum[Rows][Tokens];
    unroll<Rows>([&](auto r) { unroll<Tokens>([&](auto t) { sum[r][t] = F(0.0f); }); });
    std::size_t i = 0;
    for (; i + width <= k; i += width) {
        F v[Tokens];
        unroll<Tokens>([&](auto t) { v[t] = load<Isa>(x + t * x_stride + i); });
        unroll<Rows>([&](auto r) {
            const F weight = load_as_float<Isa>(w + r * apart * k + i);
            unroll<Tokens>([&](auto t) { sum[r][t] = xsimd::fma(weight, v[t], sum[r][t]); });
        });
    }
    unroll<Rows>([&](auto r) {
        unroll<Tokens>([&](auto t) {
            float total = xsimd::reduce_add(sum[r][t]);
            for (std::size_t l = i; l < k; ++l)
                total += load_one(w + r * apart * k + l) * x[t * x_stride + l];
            y[t * y_stride + r * apart] = total;
        });
    });
}

// dot_rows of kernels.h for one type: 4 rows of w at a time, which lie far apart, meet all rows of
// x while they are in a near cache.
template <class Isa, class Source>
void dot_rows_of(const Source* w, const float* x, std::size_t x_stride, std::size_t rows,
                 std::size_t k, std::size_t first, std::size_t last, float* y,
                 std::size_t y_stride) {
    for_far_streams(first, last, [&](std::size_t j, std::size_t apart, auto columns) {
        std::size_t t = 0;
        const auto block = [&](auto tokens) {
            dot_block<Isa, columns, tokens>(w + j * k, apart, k, x + t * x_stride, x_stride,
                                            y + t * y_stride + j, y_stride);
            t += tokens;
        };
        if constexpr (Isa::float_tile >= 8)  // registers for 16 sums
            while (t + 4 <= rows) block(std::integral_constant<std::size_t, 4>{});
        while (t + 2 <= rows) block(std::integral_constant<std::size_t, 2>{});
        if (t < rows) block(std::integral_constant<std::size_t, 1>{});
    });
}

template <class Isa>
void dot_rows(DType type, const void* w, const float* x, std::size_t x_stride, std::size_t rows,
              std::size_t k, std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    with_source(type, [&](auto source) {
        dot_rows_of<Isa>(static_cast<decltype(source)>(w), x, x_stride, rows, k, first, last, y,
                         y_stride);
    });
}

template <class Isa>
void linear_plain(DType type, const void* w, const float* x, std::size_t rows, std::size_t k,
                  std::size_t first, std::size_t last, float* y, std::size_t y_stride,
                  float* scratch) {
    if (rows <= few_rows_by_w<Isa>)
        return dot_rows<Isa>(type, w, x, k, rows, k, first, last, y, y_stride);
    with_source(type, [&](auto source) {
        const auto* weights = static_cast<decltype(source)>(w);
        multiply_blocks<Isa>(x, k, rows, k, y, y_stride, first, last, column_block, scratch,
                             [&](auto i, auto depth, auto j, auto n, float* panels) {
                                 pack_transposed<Isa>(weights + j * k + i, k, n, depth, panels);
                             });
    });
}

}  // namespace
}  // namespace tensor_ops
