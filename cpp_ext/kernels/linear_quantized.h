// Products of quantised weights with activations as integers.  Layouts in packed.h and
// activations.h.
#pragma once

#include "kernels/activations.h"
#include "kernels/gemm.h"
#include "kernels/group_reader.h"
#include "kernels/linear_unpacked.h"

namespace tensor_ops {
namespace {

// Whether products are made of instructions for them.  Where they are written out in shifts and
// multiplications they wait for arithmetic, not for memory, and take long to compile.
template <class Isa>
inline constexpr bool has_dot_product = !std::is_same_v<typename Isa::Int8, GenericInt8<Isa>>;

// The dot product for codes of so many bits with the 4 activation codes at `digits`.
template <class Isa, int Bits>
inline void dot(typename Isa::Int8::Acc& sum, Ints<Isa> codes, const std::byte* digits) {
    using Int8 = typename Isa::Int8;
    if constexpr (requires { Int8::dot_at(sum, codes, digits); }) {
        sum = Int8::dot_at(sum, codes, digits);
    } else {
        const Ints<Isa> x(read<std::int32_t>(digits));
        if constexpr (Bits == 8)
            sum = Int8::dot_bytes(sum, codes, x);
        else if constexpr (Bits <= 4)
            sum = Int8::dot_nibbles(sum, codes, x);
        else
            sum = Int8::dot_codes(sum, codes, x);
    }
}

// Whether a row's floats are added as linear_unpacked.h adds them, so that its numbers are the same
// among few and many rows.
template <class Isa, DType Type, std::size_t Digits>
inline constexpr bool adds_runs = Digits == 1 && is_unpacked<Isa, Type>;

// The sums of a tile's rows by one group: y = total + minima.  run and run_minima: of the blocks of
// a run, without the float part of their scale.  Only total, unless adds_runs.
template <class Isa, std::size_t Tokens>
struct RowSums {
    using F = Floats<Isa>;
    F total[Tokens], minima[Tokens], run[Tokens], run_minima[Tokens];

    RowSums() {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t)
            total[t] = minima[t] = run[t] = run_minima[t] = F(0.0f);
    }
    template <bool Minima>
    [[gnu::always_inline]] void end_run(F scale, F minimum) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            total[t] = xsimd::fma(scale, run[t], total[t]);
            run[t] = F(0.0f);
            if constexpr (Minima) {
                minima[t] = xsimd::fma(minimum, run_minima[t], minima[t]);
                run_minima[t] = F(0.0f);
            }
        }
    }
};

// Block b of one group by the same block of one tile of activations.
template <class Isa, DType Type, std::size_t Digits, std::size_t Tokens>
[[gnu::always_inline]] inline void multiply_block(const GroupReader<Isa, Type>& w,
                                                  const typename GroupReader<Isa, Type>::Head& head,
                                                  std::size_t b, const std::byte* x,
                                                  RowSums<Isa, Tokens>& sums) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;
    constexpr Format format = product_format(Type);
    constexpr std::size_t pairs = pairs_per_sub<format.sub>;
    // Subtract bias * sum(activation codes), before the products or after their sum is doubled.
    constexpr int bias = product_bias<Isa>(Type);
    constexpr bool doubled = format.step == 2;
    w.fetch_blocks_ahead(b);
    constexpr bool by_runs = adds_runs<Isa, Type, Digits>;
    constexpr bool d_apart =
        by_runs ? unpacked_form<Isa>(Type).has_factor : GroupReader<Isa, Type>::d_apart;
    const auto scales = w.template load_scales<d_apart>(b, head);
    const std::byte* tail = x + Digits * quant_block * Tokens;
    const auto digit = [&](std::size_t d, std::size_t quad, std::size_t t) {
        return x + ((d * 8 + quad) * Tokens + t) * 4;
    };
    F whole[Tokens];  // if d_apart or by_runs: the sum of the block's products, without d
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
            sum[t] = Int8::start(bias && !doubled ? I(-bias * code_sum(t)) : I(0));
            high[t] = Int8::start(I(0));
        }
        unroll<pairs>([&](auto p) __attribute__((always_inline)) {
            constexpr std::size_t pair = sub * pairs + p;
            I even, odd;
            if constexpr (has_dot_product<Isa>)
                w.template codes<pair>(b, scales, even, odd);
            else
                w.template codes_apart<pair>(b, scales, even, odd);
#pragma GCC unroll 8
            for (std::size_t t = 0; t < Tokens; ++t) {
                dot<Isa, format.product_bits>(sum[t], even, digit(Digits - 1, 2 * pair, t));
                dot<Isa, format.product_bits>(sum[t], odd, digit(Digits - 1, 2 * pair + 1, t));
                if constexpr (Digits == 2) {
                    dot<Isa, format.product_bits>(high[t], even, digit(0, 2 * pair, t));
                    dot<Isa, format.product_bits>(high[t], odd, digit(0, 2 * pair + 1, t));
                }
            }
        });
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            I exact = Int8::finish(sum[t]);
            if constexpr (Digits == 2) exact = exact + (Int8::finish(high[t]) << 8);
            if constexpr (doubled) exact = exact + exact - I(bias * code_sum(t));
            const F products = xsimd::to_float(exact);
            if constexpr (d_apart) {
                whole[t] = sub == 0 ? products * scales.scale[sub]
                                    : xsimd::fma(products, scales.scale[sub], whole[t]);
            } else if constexpr (by_runs) {
                whole[t] = products;
            } else {
                const F both = scales.scale[sub] * F(read<float>(tail + 4 * t));
                F& total = sums.total[t];
                total = xsimd::fma(products, both, total);
                if constexpr (format.has_min) {
                    static_assert(format.sub == quant_block);
                    const F x_sum(read<float>(tail + 4 * Tokens + 4 * t));
                    total = xsimd::fma(scales.minimum[sub], x_sum, total);
                }
            }
        }
    });
    // Of two minima, by the sums of the codes of each half of the block: whole numbers.
    const auto two_minima = [&](std::size_t t) {
        // Vectors: a number takes an instruction to repeat.
        const I all(read<std::int32_t>(tail + 8 * Tokens + 4 * t));
        const I first(read<std::int32_t>(tail + 12 * Tokens + 4 * t));
        return xsimd::fma(scales.minimum[format.has_min && format.sub != quant_block],
                          xsimd::to_float(all - first), scales.minimum[0] * xsimd::to_float(first));
    };
    if constexpr (by_runs) {
        constexpr UnpackedForm form = unpacked_form<Isa>(Type);
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            const F d(read<float>(tail + 4 * t));
            sums.run[t] = xsimd::fma(whole[t], d, sums.run[t]);
            if constexpr (form.has_min && form.subs == 2) {
                sums.run_minima[t] = xsimd::fma(two_minima(t), d, sums.run_minima[t]);
            } else if constexpr (form.has_min) {
                const F minimum = d_apart ? -(head.d_min * scales.minimum[0]) : scales.minimum[0];
                const F x_sum(read<float>(tail + 4 * Tokens + 4 * t));
                sums.minima[t] = xsimd::fma(minimum, x_sum, sums.minima[t]);
            }
        }
        if (b % form.run == form.run - 1)
            sums.template end_run<form.has_min && form.subs == 2>(
                d_apart ? head.d : scales.scale[0], -head.d_min);
    } else if constexpr (d_apart) {
#pragma GCC unroll 8
        for (std::size_t t = 0; t < Tokens; ++t) {
            F value = head.d * whole[t];
            if constexpr (format.has_min) value = xsimd::fnma(head.d_min, two_minima(t), value);
            sums.total[t] = xsimd::fma(value, F(read<float>(tail + 4 * t)), sums.total[t]);
        }
    }
}

// One group by one tile of activations.
template <class Isa, DType Type, std::size_t Digits, std::size_t Tokens>
[[gnu::noinline]] void multiply_group(const PackedView& w, std::size_t group, const std::byte* x,
                                      float* y, std::size_t y_stride) {
    const std::size_t blocks = w.k / quant_block;
    const GroupReader<Isa, Type> reader(w, group);
    RowSums<Isa, Tokens> sums;
    typename GroupReader<Isa, Type>::Head head;
    for (std::size_t b = 0; b < blocks; ++b, x += (Digits * quant_block + 16) * Tokens) {
        if (b % reader.head_blocks == 0) head = reader.load_head(b);
        multiply_block<Isa, Type, Digits, Tokens>(reader, head, b, x, sums);
    }
    const std::size_t column = group * lanes<Isa>;
#pragma GCC unroll 8
    for (std::size_t t = 0; t < Tokens; ++t) {
        Floats<Isa> sum = sums.total[t];
        if constexpr (adds_runs<Isa, Type, Digits> && product_format(Type).has_min)
            sum = sum + sums.minima[t];
        store_partial<Isa>(sum, y + t * y_stride + column, std::min(w.n - column, lanes<Isa>));
    }
}

// Activations that a block of weights meets while they stay in L2: 512 KB, and rows of these.
inline constexpr std::size_t activation_block_bytes = 512 * 1024;
template <class Isa, DType Type>
inline constexpr std::size_t most_rows = is_unpacked<Isa, Type> ? unpacked_max_rows : SIZE_MAX;

template <class Isa, DType Type>
void linear_quantized(Activations kind, const PackedView& w, const std::byte* xq, std::size_t rows,
                      std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    const std::size_t blocks = w.k / quant_block;
    const std::size_t row_size = blocks * quantized_block_bytes(kind);
    const std::size_t fitting =
        std::min(activation_block_bytes / std::max<std::size_t>(row_size, 1), most_rows<Isa, Type>);
    const std::size_t step =
        std::max<std::size_t>(fitting / Isa::activation_tile, 1) * Isa::activation_tile;
    with_digits(kind, [&](auto digits) {
        for (std::size_t begin = 0; begin < rows; begin += step) {
            const std::size_t end = std::min(begin + step, rows);
            std::size_t done = begin;
            if constexpr (digits == 1 && is_unpacked<Isa, Type>)
                if (end - begin >= unpacked_min_rows<Isa, Type>)
                    done += linear_unpacked<Isa, Type>(w, xq + begin * row_size, end - begin, first,
                                                       last, y + begin * y_stride, y_stride);
            for (std::size_t g = first; g < last; ++g) {
                for (std::size_t r = done; r < end;) {
                    const std::size_t tile = tile_rows<Isa>(rows - r);
                    with_tile<Isa::activation_tile>(tile, [&](auto tokens) {
                        multiply_group<Isa, Type, digits, tokens>(w, g, xq + r * row_size,
                                                                  y + r * y_stride, y_stride);
                    });
                    r += tile;
                }
            }
        }
    });
}

// The products of the types whose values are looked up, or of those whose are not: two objects,
// each of which compiles in two thirds of the time and memory of both.
template <class Isa, bool LookedUp>
void fill_linear_quantized(KernelTable& table) {
    for (const Format& format : formats) {
        if (!is_quantized(format.type)) continue;
        with_packed_form(format.type, [&](auto form) {
            if constexpr ((format_of(form).values != nullptr) == LookedUp)
                table.linear_quantized_of[static_cast<std::size_t>(format.type)] =
                    linear_quantized<Isa, form>;
        });
    }
}

}  // namespace
}  // namespace tensor_ops
