// Products of packed matrices with float32 activations, exact but for float32's own rounding.
#pragma once

#include "kernels/gemm.h"
#include "kernels/group_reader.h"

namespace tensor_ops {
namespace {

// Weights that are not float32 are turned into so many panels of float32 at a time, as many as a
// thread is dealt at once.  On the stack: 83 KB for AVX2, 148 KB for AVX-512.
inline constexpr std::size_t decoded_panels = 4;
template <class Isa>
inline constexpr std::size_t decoded_columns = decoded_panels * panel<Isa>;
template <class Isa>
struct DecodedScratch {
    alignas(64) float floats[depth_block * (decoded_columns<Isa> + max_tile)];
};

// The float types: the groups of the packed layout are the panels.
template <class Isa, class Source>
void linear_float(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                  std::size_t last, float* y, std::size_t y_stride) {
    const std::size_t stride = group_bytes<Isa>(w.type, w.k) / sizeof(Source);
    const auto* groups = reinterpret_cast<const Source*>(w.data);
    if (rows == 1) {  // reads each weight once, in far streams
        for_far_streams(first, last, [&](std::size_t g, std::size_t apart, auto streams) {
            const std::size_t column = g * panel<Isa>;
            std::size_t i = 0;
            do {  // once for k = 0, too: the outputs are zeros then
                multiply_panel<Isa, 1, streams>(x + i, groups + g * stride + i * panel<Isa>,
                                                panel<Isa>, apart * stride,
                                                std::min(depth_block, w.k - i), y + column, 0,
                                                apart * panel<Isa>, w.n - column, i > 0);
                i += depth_block;
            } while (i < w.k);
        });
        return;
    }
    float tile[depth_block * max_tile];
    const std::size_t step = column_block / panel<Isa>;
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

// Blocks [first, last) of a quantised group as float32, [column][`stride`]: half of a panel, or a
// part of the columns that one row of x meets.
template <class Isa>
using DecodeGroup = void (*)(const PackedView& w, std::size_t group, std::size_t first,
                             std::size_t last, float* values, std::size_t stride);

template <class Isa, DType Type>
[[gnu::noinline]] void decode_group(const PackedView& w, std::size_t group, std::size_t first,
                                    std::size_t last, float* values, std::size_t stride) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr Format format = product_format(Type);
    constexpr int bias = product_bias<Isa>(Type);
    constexpr bool is_signed = format.product_bits == 8 && bias == 0;
    const GroupReader<Isa, Type> reader(w, group);
    for (std::size_t b = first; b < last; ++b) {
        const auto scales = reader.load_scales(b, reader.load_head(b));
        // What code 0 means.  Without a minimum the sum is exact: d * s * code has 24 bits at most.
        F minimum[quant_block / format.sub];
        unroll<quant_block / format.sub>([&](auto sub) {
            if constexpr (format.has_min)
                minimum[sub] = scales.minimum[sub];
            else
                minimum[sub] = scales.scale[sub] * F(-static_cast<float>(bias));
        });
        unroll<quant_block / 8>([&](auto pair) {
            constexpr std::size_t sub = pair / pairs_per_sub<format.sub>;
            I quads[2];
            reader.template codes<pair>(b, scales, quads[0], quads[1]);
#pragma GCC unroll 8
            for (int i = 0; i < 8; ++i, values += stride) {
                const int shift = 8 * (i % 4);
                const I codes = quads[i / 4];
                const F scale = format.step == 1
                                    ? scales.scale[sub]
                                    : scales.scale[sub] * F(static_cast<float>(format.step));
                F value;
                if constexpr (is_signed)
                    value = xsimd::to_float((codes << (24 - shift)) >> 24) * scale;
                else if constexpr (format.scale == Scale::e8m0)  // bias * scale can be infinite
                    value = xsimd::to_float(((codes >> shift) & I(0xff)) - I(bias)) * scale;
                else
                    value = xsimd::fma(xsimd::to_float((codes >> shift) & I(0xff)), scale,
                                       minimum[sub]);
                value.store_unaligned(values);
            }
        });
    }
}

// Blocks that few rows meet at a time: 16 KB of four groups for AVX2, which stay in L1.
inline constexpr std::size_t decoded_blocks = 4;

// Rows of x as they lie by `Groups` groups, `apart` from each other, decoded some blocks at a time.
// Sums run as those of multiply_panels do.
template <class Isa, std::size_t Rows, std::size_t Groups>
void multiply_few_rows(DecodeGroup<Isa> decode, const PackedView& w, const float* x,
                       std::size_t group, std::size_t apart, float* y, std::size_t y_stride,
                       float* values) {
    using F = Floats<Isa>;
    constexpr std::size_t width = lanes<Isa>, stride = Groups * width;
    F total[Rows][Groups];
    const auto each = [](auto&& f) {
        unroll<Rows>([&](auto r) { unroll<Groups>([&](auto g) { f(r, g); }); });
    };
    each([&](auto r, auto g) { total[r][g] = F(0.0f); });
    for (std::size_t i = 0; i < w.k; i += depth_block) {
        F sum[Rows][Groups];
        each([&](auto r, auto g) { sum[r][g] = F(0.0f); });
        const std::size_t end = std::min(i + depth_block, w.k) / quant_block;
        for (std::size_t b = i / quant_block; b < end; b += decoded_blocks) {
            const std::size_t next = std::min(b + decoded_blocks, end);
            for (std::size_t g = 0; g < Groups; ++g)
                decode(w, group + g * apart, b, next, values + g * width, stride);
            const float* at = x + b * quant_block;
            for (std::size_t c = 0; c < (next - b) * quant_block; ++c) {
                F weights[Groups];
                unroll<Groups>(
                    [&](auto g) { weights[g] = load<Isa>(values + c * stride + g * width); });
                unroll<Rows>([&](auto r) {
                    const F v(at[r * w.k + c]);
                    unroll<Groups>(
                        [&](auto g) { sum[r][g] = xsimd::fma(v, weights[g], sum[r][g]); });
                });
            }
        }
        each([&](auto r, auto g) { total[r][g] = i ? sum[r][g] + total[r][g] : sum[r][g]; });
    }
    each([&](auto r, auto g) {
        const std::size_t column = (group + g * apart) * width;
        store_partial<Isa>(total[r][g], y + r * y_stride + column, std::min(w.n - column, width));
    });
}

// Columns [first, last) of c in blocks of `columns`, whole panels; pack(i, depth, j, n, panels)
// packs the part of the right-hand matrix with rows [i, i + depth) and columns [j, j + n).
template <class Isa, class Pack>
void multiply_blocks(const float* a, std::size_t a_stride, std::size_t m, std::size_t k, float* c,
                     std::size_t c_stride, std::size_t first, std::size_t last, std::size_t columns,
                     float* scratch, Pack&& pack) {
    float* tile = scratch + depth_block * columns;
    for (std::size_t j = first; j < last; j += columns) {
        const std::size_t n = std::min(columns, last - j);
        std::size_t i = 0;
        do {  // once for k = 0, too: the outputs are zeros then
            const std::size_t depth = std::min(depth_block, k - i);
            pack(i, depth, j, n, scratch);
            const Panels<float> panels{scratch, depth * panel<Isa>, panel<Isa>};
            multiply_panels<Isa>(a + i, a_stride, m, depth, panels, n, c + j, c_stride, i > 0,
                                 tile);
            i += depth_block;
        } while (i < k);
    }
}

// The quantised types.
template <class Isa>
void linear_decoded(DecodeGroup<Isa> decode, const PackedView& w, const float* x, std::size_t rows,
                    std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    constexpr std::size_t width = lanes<Isa>;
    DecodedScratch<Isa> scratch;
    if (rows == 1)
        return for_far_streams(first, last, [&](std::size_t g, std::size_t apart, auto streams) {
            multiply_few_rows<Isa, 1, streams>(decode, w, x, g, apart, y, y_stride, scratch.floats);
        });
    if (rows == 4) {  // transposing x is a fifth of the time of so few
        for (std::size_t g = first; g + 1 < last; g += 2)
            multiply_few_rows<Isa, 4, 2>(decode, w, x, g, 1, y, y_stride, scratch.floats);
        if ((last - first) % 2 != 0)
            multiply_few_rows<Isa, 4, 1>(decode, w, x, last - 1, 1, y, y_stride, scratch.floats);
        return;
    }
    multiply_blocks<Isa>(
        x, w.k, rows, w.k, y, y_stride, first * width, std::min(last * width, w.n),
        decoded_columns<Isa>, scratch.floats,
        [&](std::size_t i, std::size_t depth, std::size_t j, std::size_t n, float* panels) {
            for (std::size_t c = 0; c < round_up(n, panel<Isa>); c += width) {
                float* half = panels + c / panel<Isa> * depth * panel<Isa> + c % panel<Isa>;
                if (c < n)
                    decode(w, (j + c) / width, i / quant_block, (i + depth) / quant_block, half,
                           panel<Isa>);
                else
                    for (std::size_t d = 0; d < depth; ++d)
                        Floats<Isa>(0.0f).store_unaligned(half + d * panel<Isa>);
            }
        });
}

template <class Isa>
void linear_f32(const PackedView& w, const float* x, std::size_t rows, std::size_t first,
                std::size_t last, float* y, std::size_t y_stride) {
    if (is_quantized(w.type))
        with_packed_form(w.type, [&](auto type) {
            linear_decoded<Isa>(decode_group<Isa, type>, w, x, rows, first, last, y, y_stride);
        });
    else
        with_source(w.type, [&](auto source) {
            using Source = std::remove_cvref_t<decltype(*source)>;
            linear_float<Isa, Source>(w, x, rows, first, last, y, y_stride);
        });
}

}  // namespace
}  // namespace tensor_ops
