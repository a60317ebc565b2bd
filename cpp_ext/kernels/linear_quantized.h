// Products with quantised weights: activations as integers (linear_quantized), or exact
// (linear_f32).  Layouts in packed.h.
#pragma once

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

// The parts of one group, block by block.
template <class Isa>
struct GroupCursor {
    const std::byte *codes, *scales, *minima;
    std::size_t block_bytes;

    GroupCursor(const PackedView& w, std::size_t group) {
        const GroupLayout<Isa> at(w.type, w.k);
        codes = w.data + group * at.total;
        scales = codes + at.scales;
        minima = codes + at.minima;
        block_bytes = at.block_bytes;
    }
    static Floats<Isa> halves(const std::byte* p) {
        return Isa::HalfLoad::load(reinterpret_cast<const std::uint16_t*>(p));
    }
    void next() {
        codes += block_bytes;
        scales += 2 * lanes<Isa>;
        minima += 2 * lanes<Isa>;
    }
};

template <class Isa>
inline Ints<Isa> load_codes(const std::byte* p) {
    return Ints<Isa>::load_aligned(reinterpret_cast<const std::int32_t*>(p));
}
template <class Isa>
inline Ints<Isa> low_nibbles(Ints<Isa> v) {
    return v & Ints<Isa>(0x0f0f0f0f);
}
template <class Isa>
inline Ints<Isa> high_nibbles(Ints<Isa> v) {
    return (v >> 4) & Ints<Isa>(0x0f0f0f0f);
}

// One group of weights by one tile of activations.
template <class Isa, DType Type, std::size_t Digits, std::size_t Tokens>
inline void multiply_group(GroupCursor<Isa> w, const std::byte* x, std::size_t blocks, float* y,
                           std::size_t y_stride, std::size_t columns) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;
    // What the codes carry too much, times the sum of the activations' codes, is taken off.
    constexpr int bias = Type == DType::q8_0 ? Int8::byte_bias : zero_point(Type);
    constexpr std::size_t codes_bytes = Digits * quant_block * Tokens;
    F total[Tokens];
    unroll<Tokens>([&](auto t) { total[t] = F(0.0f); });
    for (std::size_t b = 0; b < blocks; ++b, w.next(), x += codes_bytes + 12 * Tokens) {
        const std::byte* tail = x + codes_bytes;
        typename Int8::Acc sum[Tokens], high[Tokens];  // of the lowest digit, and of the other
        unroll<Tokens>([&](auto t) {
            sum[t] =
                Int8::start(bias ? I(-bias * read<std::int32_t>(tail + 8 * Tokens + 4 * t)) : I(0));
            high[t] = Int8::start(I(0));
        });
        const auto digit = [&](std::size_t d, std::size_t quad, std::size_t t) {
            return I(read<std::int32_t>(x + ((d * 8 + quad) * Tokens + t) * 4));
        };
        if constexpr (Type == DType::q8_0) {
            unroll<8>([&](auto quad) {
                const I codes = load_codes<Isa>(w.codes + quad * 4 * lanes<Isa>);
                unroll<Tokens>([&](auto t) {
                    sum[t] = Int8::dot_bytes(sum[t], codes, digit(Digits - 1, quad, t));
                    if constexpr (Digits == 2)
                        high[t] = Int8::dot_bytes(high[t], codes, digit(0, quad, t));
                });
            });
        } else {
            unroll<4>([&](auto pair) {
                const I codes = load_codes<Isa>(w.codes + pair * 4 * lanes<Isa>);
                const I even = low_nibbles<Isa>(codes), odd = high_nibbles<Isa>(codes);
                unroll<Tokens>([&](auto t) {
                    sum[t] = Int8::dot_nibbles(sum[t], even, digit(Digits - 1, 2 * pair, t));
                    sum[t] = Int8::dot_nibbles(sum[t], odd, digit(Digits - 1, 2 * pair + 1, t));
                    if constexpr (Digits == 2) {
                        high[t] = Int8::dot_nibbles(high[t], even, digit(0, 2 * pair, t));
                        high[t] = Int8::dot_nibbles(high[t], odd, digit(0, 2 * pair + 1, t));
                    }
                });
            });
        }
        const F d = GroupCursor<Isa>::halves(w.scales);
        unroll<Tokens>([&](auto t) {
            I exact = Int8::finish(sum[t]);
            if constexpr (Digits == 2) exact = exact + (Int8::finish(high[t]) << 8);
            total[t] =
                xsimd::fma(xsimd::to_float(exact), d * F(read<float>(tail + 4 * t)), total[t]);
        });
        if constexpr (Type == DType::q4_1) {
            const F m = GroupCursor<Isa>::halves(w.minima);
            unroll<Tokens>([&](auto t) {
                total[t] = xsimd::fma(m, F(read<float>(tail + 4 * Tokens + 4 * t)), total[t]);
            });
        }
    }
    unroll<Tokens>([&](auto t) {
        if (columns >= lanes<Isa>)
            total[t].store_unaligned(y + t * y_stride);
        else
            store_partial<Isa>(total[t], y + t * y_stride, columns);
    });
}

// Calls f with std::integral_constant<DType, type> of a quantised type.
template <class F>
inline void with_quantized(DType type, F&& f) {
    if (type == DType::q8_0)
        f(std::integral_constant<DType, DType::q8_0>{});
    else if (type == DType::q4_0)
        f(std::integral_constant<DType, DType::q4_0>{});
    else
        f(std::integral_constant<DType, DType::q4_1>{});
}

// Calls f with std::integral_constant<tile> for a tile of Tile, ..., 2, 1 rows.
template <std::size_t Tile, class F>
inline void with_tile(std::size_t tile, F&& f) {
    if (tile == Tile) return f(std::integral_constant<std::size_t, Tile>{});
    if constexpr (Tile > 1) with_tile<Tile / 2>(tile, static_cast<F&&>(f));
}

// Activations that a block of weights meets while they stay in L2: 512 KB.
inline constexpr std::size_t activation_block_bytes = 512 * 1024;

template <class Isa>
void linear_quantized(Activations kind, const PackedView& w, const std::byte* xq, std::size_t rows,
                      std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    const std::size_t blocks = w.k / quant_block;
    const std::size_t row_size = blocks * quantized_block_bytes(kind);
    const std::size_t fitting = activation_block_bytes / std::max<std::size_t>(row_size, 1);
    const std::size_t step =
        std::max<std::size_t>(fitting / Isa::activation_tile, 1) * Isa::activation_tile;
    const auto multiply = [&](auto type, auto digits) {
        for (std::size_t begin = 0; begin < rows; begin += step) {
            const std::size_t end = std::min(begin + step, rows);
            for (std::size_t g = first; g < last; ++g) {
                const GroupCursor<Isa> group(w, g);
                const std::size_t column = g * lanes<Isa>;
                for (std::size_t r = begin; r < end;) {
                    const std::size_t tile = tile_rows<Isa>(rows - r);
                    with_tile<Isa::activation_tile>(tile, [&](auto tokens) {
                        multiply_group<Isa, type, digits, tokens>(group, xq + r * row_size, blocks,
                                                                  y + r * y_stride + column,
                                                                  y_stride, w.n - column);
                    });
                    r += tile;
                }
            }
        }
    };
    with_quantized(w.type, [&](auto type) {
        with_digits(kind, [&](auto digits) { multiply(type, digits); });
    });
}

// One group by Tokens rows of float32: codes become floats, a column at a time.
template <class Isa, DType Type, std::size_t Tokens>
inline void multiply_group_f32(GroupCursor<Isa> w, const float* x, std::size_t k, float* y,
                               std::size_t y_stride, std::size_t columns) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr int bias = Type == DType::q8_0 ? Isa::Int8::byte_bias : zero_point(Type);
    F total[Tokens];
    unroll<Tokens>([&](auto t) { total[t] = F(0.0f); });
    for (std::size_t b = 0; b < k / quant_block; ++b, w.next(), x += quant_block) {
        F sum[Tokens], x_sum[Tokens];
        unroll<Tokens>([&](auto t) { sum[t] = x_sum[t] = F(0.0f); });
        for (std::size_t quad = 0; quad < 8; ++quad) {
            I codes;
            if constexpr (Type == DType::q8_0) {
                codes = load_codes<Isa>(w.codes + quad * 4 * lanes<Isa>);
            } else {
                codes = load_codes<Isa>(w.codes + quad / 2 * 4 * lanes<Isa>);
                codes = quad % 2 ? high_nibbles<Isa>(codes) : low_nibbles<Isa>(codes);
            }
            unroll<4>([&](auto c) {
                constexpr int up = 24 - 8 * static_cast<int>(c);
                // Signed bytes are sign-extended; unsigned ones lose their bias as integers.
                const I code = Type == DType::q8_0 && bias == 0
                                   ? (codes << up) >> 24
                                   : ((codes >> (8 * static_cast<int>(c))) & I(0xff)) - I(bias);
                const F weight = xsimd::to_float(code);
                unroll<Tokens>([&](auto t) {
                    const F v(x[t * k + quad * 4 + c]);
                    sum[t] = xsimd::fma(weight, v, sum[t]);
                    if constexpr (Type == DType::q4_1) x_sum[t] += v;
                });
            });
        }
        const F d = GroupCursor<Isa>::halves(w.scales);
        unroll<Tokens>([&](auto t) { total[t] = xsimd::fma(d, sum[t], total[t]); });
        if constexpr (Type == DType::q4_1) {
            const F m = GroupCursor<Isa>::halves(w.minima);
            unroll<Tokens>([&](auto t) { total[t] = xsimd::fma(m, x_sum[t], total[t]); });
        }
    }
    unroll<Tokens>([&](auto t) {
        store_partial<Isa>(total[t], y + t * y_stride, std::min(columns, lanes<Isa>));
    });
}

template <class Isa>
void linear_f32(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                std::size_t last, float* y, std::size_t y_stride) {
    if (!is_quantized(w.type)) {
        with_source(w.type, [&](auto source) {
            using Source = std::remove_cvref_t<decltype(*source)>;
            linear_float<Isa, Source>(w, x, rows, first, last, y, y_stride);
        });
        return;
    }
    with_quantized(w.type, [&](auto type) {
        for (std::size_t g = first; g < last; ++g) {
            const GroupCursor<Isa> group(w, g);
            const std::size_t column = g * lanes<Isa>;
            for (std::size_t r = 0; r < rows;) {
                const std::size_t tile = rows - r >= 4 ? 4 : 1;
                with_tile<4>(tile, [&](auto tokens) {
                    multiply_group_f32<Isa, type, tokens>(
                        group, x + r * w.k, w.k, y + r * y_stride + column, y_stride, w.n - column);
                });
                r += tile;
            }
        }
    });
}

}  // namespace
}  // namespace tensor_ops
