// Products with quantised weights: activations as integers (linear_quantized), or exact
// (linear_f32).  Layouts in packed.h.
#pragma once

#include "kernels/gemm.h"

namespace tensor_ops {
namespace {

template <class Isa>
inline Floats<Isa> load_halves(const std::byte* p) {
    return Isa::HalfLoad::load(reinterpret_cast<const std::uint16_t*>(p));
}

// Keeps the compiler from moving reads across: weights are read in the order in which they lie.
inline void keep_order() { __atomic_signal_fence(__ATOMIC_ACQ_REL); }

// One group of weights, read block by block.
template <class Isa, DType Type>
class GroupReader {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    static constexpr Format format = format_of(Type);
    static constexpr GroupLayout<Isa> layout{Type};
    static constexpr std::size_t subs = quant_block / format.sub;
    static constexpr std::size_t read_ahead = 4096;  // 2 to 6 KB do as well, 8 KB does worse

 public:
    GroupReader(const PackedView& w, std::size_t group)
        : group_(w.data + group * layout.total(w.k)) {}

    // Sets even and odd to the codes of quads 2 Pair and 2 Pair + 1 of block b.
    template <std::size_t Pair>
    [[gnu::always_inline]] void codes(std::size_t b, I& even, I& odd) const {
        const std::byte* block = group_ + layout.codes(b);
        const auto vector = [&](std::size_t i) {
            return I::load_aligned(
                reinterpret_cast<const std::int32_t*>(block + i * 4 * lanes<Isa>));
        };
        if constexpr (format.bits == 8) {
            even = vector(2 * Pair);
            odd = vector(2 * Pair + 1);
            return;
        }
        constexpr bool nibbles = format.bits & 4, pairs = format.bits & 2,
                       singles = format.bits & 1;
        constexpr int above = nibbles ? 4 : 0;  // bits of the code that the plane before held
        const auto plane = [&]<int Width>(std::integral_constant<int, Width>, std::size_t quad) {
            return vector(plane_vector(format.bits, Width, quad * Width / 8));
        };
        even = odd = I(0);
        if constexpr (singles) {
            constexpr int at = above + (pairs ? 2 : 0);
            const I v = plane(std::integral_constant<int, 1>{}, 2 * Pair);
            even = part<2 * Pair, 1, at>(v);
            odd = part<2 * Pair + 1, 1, at>(v);
        }
        if constexpr (pairs) {
            const I v = plane(std::integral_constant<int, 2>{}, 2 * Pair);
            even = even | part<4 * (Pair % 2), 2, above>(v);
            odd = odd | part<4 * (Pair % 2) + 2, 2, above>(v);
        }
        if constexpr (nibbles) {
            const I v = plane(std::integral_constant<int, 4>{}, 2 * Pair);
            even = even | part<0, 4, 0>(v);
            odd = odd | part<4, 4, 0>(v);
        }
    }

    // Fetches as much as a block has from `read_ahead` bytes behind it, which runs on into the next
    // group. Between many products the hardware's prefetchers lose their lead: for a tile of 8 rows
    // that is 14% of the time.
    void fetch_ahead(std::size_t b) const {
        const std::byte* ahead = group_ + layout.codes(b) + read_ahead;
        unroll<(layout.record_bytes / 2 + 63) / 64>(
            [&](auto line) { __builtin_prefetch(ahead + 64 * line); });
    }

    // What a block's codes are multiplied by and what is added to them, for each format.sub
    // columns. The K types have it as d * s, with d the same for 8 blocks.
    struct Scales {
        F d, d_min, scale[subs], minimum[subs];
    };
    [[gnu::always_inline]] Scales load_scales(std::size_t b) const {
        Scales scales;
        scales.d = load_halves<Isa>(group_ + layout.d(b));
        if constexpr (format.has_min) scales.d_min = load_halves<Isa>(group_ + layout.d_min(b));
        unroll<subs>([&](auto i) __attribute__((always_inline)) {
            const auto factor = [&](F d, std::size_t offset) {
                if constexpr (!format.is_k) return d;
                return d * load_int8<Isa>(group_ + offset + i * lanes<Isa>);
            };
            scales.scale[i] = factor(scales.d, layout.s(b));
            if constexpr (format.has_min) {
                const F m = factor(scales.d_min, layout.s_min(b));
                scales.minimum[i] = format.is_k ? -m : m;
            }
        });
        keep_order();
        return scales;
    }

 private:
    // `Width` bits from bit `From` of each byte, moved to bit `To`: one shift and one mask.
    template <int From, int Width, int To>
    static I part(I v) {
        const I mask(static_cast<std::int32_t>(plane_mask(Width) << To));
        if constexpr (From > To) return (v >> (From - To)) & mask;
        if constexpr (From < To) return (v << (To - From)) & mask;
        return v & mask;
    }

    const std::byte* group_;
};

// The part of a block that shares a scale: pairs of quads [first, first + count).
template <std::size_t Sub>
inline constexpr std::size_t pairs_per_sub = Sub / 8;

// The dot product for codes of so many bits.
template <class Isa, int Bits>
inline void dot(typename Isa::Int8::Acc& sum, Ints<Isa> codes, Ints<Isa> digits) {
    if constexpr (Bits == 8)
        sum = Isa::Int8::dot_bytes(sum, codes, digits);
    else if constexpr (Bits <= 4)
        sum = Isa::Int8::dot_nibbles(sum, codes, digits);
    else
        sum = Isa::Int8::dot_codes(sum, codes, digits);
}

// Block b of one group by the same block of one tile of activations.
template <class Isa, DType Type, std::size_t Digits, std::size_t Tokens>
[[gnu::always_inline]] inline void multiply_block(const GroupReader<Isa, Type>& w, std::size_t b,
                                                  const std::byte* x,
                                                  Floats<Isa> (&total)[Tokens]) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;
    constexpr Format format = format_of(Type);
    constexpr std::size_t pairs = pairs_per_sub<format.sub>;
    // What the codes carry too much, times the sum of the activations' codes, is taken off.
    constexpr int bias = Type == DType::q8_0 ? Int8::byte_bias : format.zero;
    if constexpr (Tokens >= 4) w.fetch_ahead(b);
    const auto scales = w.load_scales(b);
    const std::byte* tail = x + Digits * quant_block * Tokens;
    const auto digit = [&](std::size_t d, std::size_t quad, std::size_t t) {
        return I(read<std::int32_t>(x + ((d * 8 + quad) * Tokens + t) * 4));
    };
    unroll<quant_block / format.sub>([&](auto sub) __attribute__((always_inline)) {
        const auto code_sum = [&](std::size_t t) {  // of the columns that share the scale
            const auto all = read<std::int32_t>(tail + 8 * Tokens + 4 * t);
            if constexpr (format.sub == quant_block) return all;
            const auto first = read<std::int32_t>(tail + 12 * Tokens + 4 * t);
            return sub == 0 ? first : all - first;
        };
        typename Int8::Acc sum[Tokens], high[Tokens];  // of the lowest digit, of the other
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            sum[t] = Int8::start(bias ? I(-bias * code_sum(t)) : I(0));
            high[t] = Int8::start(I(0));
        }
        unroll<pairs>([&](auto p) __attribute__((always_inline)) {
            constexpr std::size_t pair = sub * pairs + p;
            I even, odd;
            w.template codes<pair>(b, even, odd);
#pragma GCC unroll 8
            for (std::size_t t = 0; t < Tokens; ++t) {
                dot<Isa, format.bits>(sum[t], even, digit(Digits - 1, 2 * pair, t));
                dot<Isa, format.bits>(sum[t], odd, digit(Digits - 1, 2 * pair + 1, t));
                if constexpr (Digits == 2) {
                    dot<Isa, format.bits>(high[t], even, digit(0, 2 * pair, t));
                    dot<Isa, format.bits>(high[t], odd, digit(0, 2 * pair + 1, t));
                }
            }
        });
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            I exact = Int8::finish(sum[t]);
            if constexpr (Digits == 2) exact = exact + (Int8::finish(high[t]) << 8);
            const F both = scales.scale[sub] * F(read<float>(tail + 4 * t));
            total[t] = xsimd::fma(xsimd::to_float(exact), both, total[t]);
            if constexpr (format.has_min) {
                float x_sum = read<float>(tail + 4 * Tokens + 4 * t);
                if constexpr (format.sub != quant_block)
                    x_sum = read<float>(tail + 4 * t) * static_cast<float>(code_sum(t));
                total[t] = xsimd::fma(scales.minimum[sub], F(x_sum), total[t]);
            }
        }
    });
}

// `Streams` groups, `apart` from each other, by one tile of activations.
template <class Isa, DType Type, std::size_t Digits, std::size_t Tokens, std::size_t Streams>
[[gnu::noinline]] void multiply_groups(const PackedView& w, std::size_t group, std::size_t apart,
                                       const std::byte* x, float* y, std::size_t y_stride) {
    const std::size_t blocks = w.k / quant_block;
    const auto reader = [&]<std::size_t... S>(std::index_sequence<S...>) {
        return std::array<GroupReader<Isa, Type>, Streams>{
            GroupReader<Isa, Type>(w, group + S * apart)...};
    }(std::make_index_sequence<Streams>{});
    Floats<Isa> total[Streams][Tokens];
#pragma GCC unroll 8
    for (std::size_t s = 0; s < Streams; ++s) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            total[s][t] = Floats<Isa>(0.0f);
        }
    }
    for (std::size_t b = 0; b < blocks; ++b, x += (Digits * quant_block + 16) * Tokens) {
#pragma GCC unroll 8
        for (std::size_t s = 0; s < Streams; ++s) {
            multiply_block<Isa, Type, Digits, Tokens>(reader[s], b, x, total[s]);
        }
    }
#pragma GCC unroll 8
    for (std::size_t s = 0; s < Streams; ++s) {
        const std::size_t column = (group + s * apart) * lanes<Isa>;
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            store_partial<Isa>(total[s][t], y + t * y_stride + column,
                               std::min(w.n - column, lanes<Isa>));
        }
    }
}

// Calls f with std::integral_constant<tile> for a tile of Tile rows, or one of the smaller sizes.
template <std::size_t Tile, class F>
inline void with_tile(std::size_t tile, F&& f) {
    if (tile == Tile) return f(std::integral_constant<std::size_t, Tile>{});
    if constexpr (Tile > 1) with_tile<smaller_tile(Tile)>(tile, static_cast<F&&>(f));
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
        const auto groups = [&](std::size_t group, std::size_t apart, auto streams, std::size_t row,
                                auto tokens) {
            multiply_groups<Isa, type, digits, tokens, streams>(
                w, group, apart, xq + row * row_size, y + row * y_stride, y_stride);
        };
        constexpr std::integral_constant<std::size_t, 1> one;
        if (rows == 1)
            return for_far_streams(first, last, [&](auto g, auto apart, auto streams) {
                groups(g, apart, streams, 0, one);
            });
        for (std::size_t begin = 0; begin < rows; begin += step) {
            const std::size_t end = std::min(begin + step, rows);
            for (std::size_t g = first; g < last; ++g) {
                for (std::size_t r = begin; r < end;) {
                    const std::size_t tile = tile_rows<Isa>(rows - r);
                    with_tile<Isa::activation_tile>(
                        tile, [&](auto tokens) { groups(g, 0, one, r, tokens); });
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
inline void multiply_group_f32(const GroupReader<Isa, Type>& w, const float* x, std::size_t k,
                               float* y, std::size_t y_stride, std::size_t columns) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr Format format = format_of(Type);
    constexpr std::size_t pairs = pairs_per_sub<format.sub>;
    constexpr int bias = Type == DType::q8_0 ? Isa::Int8::byte_bias : format.zero;
    constexpr bool is_signed = Type == DType::q8_0 && bias == 0;
    F total[Tokens];
#pragma GCC unroll 8
    for (std::size_t t = 0; t < Tokens; ++t) {
        total[t] = F(0.0f);
    }
    for (std::size_t b = 0; b < k / quant_block; ++b, x += quant_block) {
        const auto scales = w.load_scales(b);
        unroll<quant_block / format.sub>([&](auto sub) {
            F sum[Tokens], x_sum[Tokens];
#pragma GCC unroll 8
            for (std::size_t t = 0; t < Tokens; ++t) {
                sum[t] = x_sum[t] = F(0.0f);
            }
            unroll<pairs>([&](auto p) {
                constexpr std::size_t pair = sub * pairs + p;
                I quads[2];
                w.template codes<pair>(b, quads[0], quads[1]);
                unroll<8>([&](auto i) {
                    const I codes = quads[i / 4];
                    constexpr int byte = static_cast<int>(i % 4);
                    const I code = is_signed ? (codes << (24 - 8 * byte)) >> 24
                                             : ((codes >> (8 * byte)) & I(0xff)) - I(bias);
                    const F weight = xsimd::to_float(code);
#pragma GCC unroll 8
                    for (std::size_t t = 0; t < Tokens; ++t) {
                        const F v(x[t * k + 8 * pair + i]);
                        sum[t] = xsimd::fma(weight, v, sum[t]);
                        if constexpr (format.has_min) x_sum[t] += v;
                    }
                });
            });
#pragma GCC unroll 8
            for (std::size_t t = 0; t < Tokens; ++t) {
                total[t] = xsimd::fma(scales.scale[sub], sum[t], total[t]);
            }
            if constexpr (format.has_min) {
#pragma GCC unroll 8
                for (std::size_t t = 0; t < Tokens; ++t) {
                    total[t] = xsimd::fma(scales.minimum[sub], x_sum[t], total[t]);
                }
            }
        });
    }
#pragma GCC unroll 8
    for (std::size_t t = 0; t < Tokens; ++t) {
        store_partial<Isa>(total[t], y + t * y_stride, std::min(columns, lanes<Isa>));
    }
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
            const GroupReader<Isa, type> group(w, g);
            const std::size_t column = g * lanes<Isa>;
            for (std::size_t r = 0; r < rows;) {
                const std::size_t tile = rows - r >= 4 ? 4 : 1;
                const auto multiply = [&](auto tokens) {
                    multiply_group_f32<Isa, type, tokens>(
                        group, x + r * w.k, w.k, y + r * y_stride + column, y_stride, w.n - column);
                };
                if (tile == 4)
                    multiply(std::integral_constant<std::size_t, 4>{});
                else
                    multiply(std::integral_constant<std::size_t, 1>{});
                r += tile;
            }
        }
    });
}

}  // namespace
}  // namespace tensor_ops
