// Products with plain row-major matrices: many rows through panels that are packed on the way, few
// rows straight from memory, which they read once.
#pragma once

#include "kernels/pack_ahead.h"

namespace tensor_ops {
namespace {

// Up to this many rows, packing w costs linear more than it saves: dot products read its rows as
// they lie.  With 16 sums in registers, AVX-512 reaches 88 GFLOP/s at 128 rows; with packing, 81.
template <class Isa>
inline constexpr std::size_t few_rows_by_w = Isa::float_tile >= 8 ? 128 : 24;

// b[k][n], in units of a row.
template <class Isa>
struct RowsOfB {
    const float* b;
    std::size_t stride;

    const float* row(const MatrixPart& part, std::size_t unit) const {
        return b + (part.i + unit) * stride + part.j;
    }
    std::size_t units(const MatrixPart& part) const { return part.depth; }
    Lines lines(const MatrixPart& part, std::size_t from, std::size_t to) const {
        return lines_of(row(part, from), stride, to - from, part.n);
    }
    // The last panel is padded with zeros.
    void pack(const MatrixPart& part, std::size_t from, std::size_t to, float* panels) const {
        constexpr std::size_t w = lanes<Isa>;
        for (std::size_t i = from; i < to; ++i) {
            const float* at = row(part, i);
            float* panel_row = panels + i * panel<Isa>;
            std::size_t j = 0;
            for (; j + panel<Isa> <= part.n; j += panel<Isa>, panel_row += panel_stride<Isa>) {
                load<Isa>(at + j).store_unaligned(panel_row);
                load<Isa>(at + j + w).store_unaligned(panel_row + w);
            }
            if (j == part.n) continue;
            std::memset(panel_row, 0, panel<Isa> * sizeof(float));
            std::memcpy(panel_row, at + j, (part.n - j) * sizeof(float));
        }
    }
};

// w[n][k], which is b transposed, in units of as many rows as a vector has floats.
template <class Isa, class Source>
struct RowsOfW {
    const Source* w;
    std::size_t stride;

    const Source* row(const MatrixPart& part, std::size_t r) const {
        return w + (part.j + r) * stride + part.i;
    }
    std::size_t units(const MatrixPart& part) const {
        return round_up(part.n, panel<Isa>) / lanes<Isa>;
    }
    Lines lines(const MatrixPart& part, std::size_t from, std::size_t to) const {
        const std::size_t first = std::min(from * lanes<Isa>, part.n);
        const std::size_t last = std::min(to * lanes<Isa>, part.n);
        return lines_of(row(part, first), stride, last - first, part.depth);
    }
    // Transposes in squares of a vector's width; the last panel is padded with zeros.
    void pack(const MatrixPart& part, std::size_t from, std::size_t to, float* panels) const {
        constexpr std::size_t width = lanes<Isa>;
        for (std::size_t j = from * width; j < to * width; j += width) {
            float* column = panels + j / panel<Isa> * panel_stride<Isa> + j % panel<Isa>;
            std::size_t i = 0;
            if (j + width <= part.n) {
                for (; i + width <= part.depth; i += width) {
                    Floats<Isa> square[width];
                    unroll<width>(
                        [&](auto r) { square[r] = load_as_float<Isa>(row(part, j + r) + i); });
                    transpose<Isa>(square);
                    unroll<width>(
                        [&](auto r) { square[r].store_unaligned(column + (i + r) * panel<Isa>); });
                }
            }
            for (; i < part.depth; ++i)
                for (std::size_t r = 0; r < width; ++r)
                    column[i * panel<Isa> + r] =
                        j + r < part.n ? load_one(row(part, j + r) + i) : 0.0f;
        }
    }
};

// c[n] += a[Depth] * b[Depth][n] for rows of b, and numbers of a, that are `apart`.
template <class Isa, std::size_t Depth>
void accumulate_one_row(const float* a, const float* b, std::size_t b_stride, std::size_t apart,
                        float* c, std::size_t n) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    F v[Depth];
    unroll<Depth>([&](auto i) { v[i] = F(a[i * apart]); });
    const auto columns_at = [&](std::size_t j, auto&& load_at, auto&& store_at) {
        F even = load_at(c + j), odd(0.0f);
        unroll<Depth>([&](auto i) {
            F& sum = i % 2 ? odd : even;
            sum = xsimd::fma(v[i], load_at(b + i * apart * b_stride + j), sum);
        });
        store_at(even + odd, c + j);
    };
    std::size_t j = 0;
    for (; j + w <= n; j += w)
        columns_at(
            j, [](const float* p) { return load<Isa>(p); },
            [](F sum, float* p) { sum.store_unaligned(p); });
    if (j < n)
        columns_at(
            j, [&](const float* p) { return load_partial<Isa>(p, n - j, 0.0f); },
            [&](F sum, float* p) { store_partial<Isa>(sum, p, n - j); });
}

// matmul for one row.  A run of columns is long enough for the prefetchers, and short enough that c
// stays in a near cache.
template <class Isa>
void matmul_one_row(const float* a, const float* b, std::size_t b_stride, float* c, std::size_t k,
                    std::size_t first, std::size_t last) {
    constexpr std::size_t run = 16384;
    for (std::size_t j = first; j < last; j += run) {
        const std::size_t n = std::min(run, last - j);
        std::memset(c + j, 0, n * sizeof(float));
        const std::size_t quarter = k / far_streams;
        for (std::size_t i = 0; i < quarter; ++i)
            accumulate_one_row<Isa, far_streams>(a + i, b + i * b_stride + j, b_stride, quarter,
                                                 c + j, n);
        for (std::size_t i = far_streams * quarter; i < k; ++i)
            accumulate_one_row<Isa, 1>(a + i, b + i * b_stride + j, b_stride, 1, c + j, n);
    }
}

// Sums that stay in L2 while b passes: 128 KB.
inline constexpr std::size_t few_rows_sums = 32 * 1024;
inline constexpr std::size_t few_rows_floats = few_rows_sums + matmul_few_rows * 8;
// Rows of b that are added at once: two vectors of each fill half of the registers.
template <class Isa>
inline constexpr std::size_t few_rows_depth = Isa::float_tile >= 8 ? 8 : 4;

// sums[n / panel][m][panel] += x b[Depth][n], with x as [m][Depth].  Meanwhile the same columns of
// the rows `ahead` are fetched to L2: to L1, which holds few rows that lie a power of two apart, 8
// rows by 4096 x 4096 take 4.3 ms in place of 3.7.
template <class Isa, std::size_t Depth>
[[gnu::noinline]] void accumulate_few_rows(const float* x, const float* b, std::size_t b_stride,
                                           std::size_t ahead, float* sums, std::size_t m,
                                           std::size_t n) {
    using F = Floats<Isa>;
    constexpr std::size_t w = lanes<Isa>;
    for (std::size_t j = 0; j < n; j += panel<Isa>, sums += m * panel<Isa>) {
        F v[Depth][2];
        unroll<Depth>([&](auto i) {
            const float* at = b + i * b_stride + j;
            for (std::size_t l = 0; l < panel<Isa>; l += line_bytes / sizeof(float))
                __builtin_prefetch(at + ahead * b_stride + l, 0, 2);
            unroll<2>([&](auto h) {
                if (j + panel<Isa> <= n)
                    v[i][h] = load<Isa>(at + h * w);
                else
                    v[i][h] = load_partial<Isa>(
                        at + h * w, n - j > h * w ? std::min(n - j - h * w, w) : 0, 0.0f);
            });
        });
        for (std::size_t r = 0; r < m; ++r) {
            float* to = sums + r * panel<Isa>;
            F sum[2] = {load<Isa>(to), load<Isa>(to + w)};
            unroll<Depth>([&](auto i) {
                const F number(x[r * Depth + i]);
                unroll<2>([&](auto h) { sum[h] = xsimd::fma(number, v[i][h], sum[h]); });
            });
            unroll<2>([&](auto h) { sum[h].store_unaligned(to + h * w); });
        }
    }
}

// matmul for few rows: b is read once, as it lies.
template <class Isa>
void multiply_unpacked(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride,
                       float* c, std::size_t c_stride, std::size_t m, std::size_t k,
                       std::size_t first, std::size_t last, float* scratch) {
    constexpr std::size_t depth = few_rows_depth<Isa>;
    float* sums = scratch;
    float* x = scratch + few_rows_sums;  // [m][depth]
    const std::size_t run = few_rows_sums / m / panel<Isa> * panel<Isa>;
    for (std::size_t j = first; j < last; j += run) {
        const std::size_t n = std::min(run, last - j);
        std::memset(sums, 0, m * round_up(n, panel<Isa>) * sizeof(float));
        const auto add = [&](std::size_t i, auto rows) {
            for (std::size_t r = 0; r < m; ++r)
                std::memcpy(x + r * rows, a + r * a_stride + i, rows * sizeof(float));
            const std::size_t ahead = i + 2 * rows <= k ? rows : 0;
            accumulate_few_rows<Isa, rows>(x, b + i * b_stride + j, b_stride, ahead, sums, m, n);
        };
        std::size_t i = 0;
        for (; i + depth <= k; i += depth) add(i, std::integral_constant<std::size_t, depth>{});
        for (; i < k; ++i) add(i, std::integral_constant<std::size_t, 1>{});
        for (std::size_t p = 0; p < n; p += panel<Isa>)
            for (std::size_t r = 0; r < m; ++r)
                std::memcpy(c + r * c_stride + j + p, sums + p * m + r * panel<Isa>,
                            std::min(panel<Isa>, n - p) * sizeof(float));
    }
}

template <class Isa>
inline constexpr std::size_t plain_scratch_floats =
    std::max(pack_ahead_floats<Isa>, few_rows_floats);

template <class Isa>
void matmul(const float* a, std::size_t a_stride, const float* b, std::size_t b_stride, float* c,
            std::size_t c_stride, std::size_t m, std::size_t k, std::size_t first, std::size_t last,
            float* scratch) {
    if (m == 0) return;
    if (m == 1) return matmul_one_row<Isa>(a, b, b_stride, c, k, first, last);
    if (m <= matmul_few_rows)
        return multiply_unpacked<Isa>(a, a_stride, b, b_stride, c, c_stride, m, k, first, last,
                                      scratch);
    multiply_packing<Isa>(a, a_stride, m, k, RowsOfB<Isa>{b, b_stride}, c, c_stride, first, last,
                          scratch);
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
        using Source = std::remove_cvref_t<decltype(*source)>;
        const RowsOfW<Isa, Source> matrix{static_cast<const Source*>(w), k};
        multiply_packing<Isa>(x, k, rows, k, matrix, y, y_stride, first, last, scratch);
    });
}

}  // namespace
}  // namespace tensor_ops
