// Products of quantised weights with many rows of activations by tile registers: see amx.h.
//
// A piece of a group of weights is unpacked to signed bytes, which stays in L1, and all tiles of
// activations pass over it.  A register's sums of a block are stored and read again as vectors,
// because only these meet scales.  Floats are added in the order of linear_quantized.h: a row has
// the same numbers among few and many rows, and with and without tiles.
#pragma once

#include "kernels/group_reader.h"
#include "kernels/tile_activations.h"

namespace tensor_ops {
namespace {

// What the products by tiles need to know of a type and of activations.  Types with the same form
// share them.  An unpacked block of a group has `vectors` vectors: its codes, then the others, each
// from the index of that name on.
struct TileForm {
    std::size_t digits;
    std::size_t subs;  // parts of a block with scales of their own
    bool d_apart;      // see GroupReader
    bool has_min;
    bool scaled;  // what is unpacked is -value * scale without d: a block has one sum

    static constexpr std::size_t scale() { return 8; }
    constexpr std::size_t minimum() const { return scale() + (scaled ? 0 : subs); }
    constexpr std::size_t d() const { return minimum() + (has_min ? subs : 0); }
    constexpr std::size_t d_min() const { return d() + 1; }
    constexpr std::size_t vectors() const { return d() + (d_apart ? 2 : 0); }
    constexpr std::size_t parts() const { return scaled ? 1 : subs; }  // with sums of their own
    constexpr std::size_t sums() const { return parts() * digits; }
    constexpr std::size_t columns() const { return quant_block / parts(); }
    constexpr std::size_t record() const { return (digits * quant_block + 16) * tile_side; }

    // The form of the weights, which digits do not change.
    constexpr TileForm unpacked() const {
        TileForm form = *this;
        form.digits = 1;
        return form;
    }
};

// Whether -value * scale is a byte: q2_k's are in [0, 3] * [0, 15], and q3_k's in [-4, 3] * [-32,
// 31], of which -128 is one and 128 is none.  With activations of 8 bits, the sum of a block is
// exact in float32 whatever the order, so that linear_quantized.h has the same one.
constexpr bool scales_fit(DType type) { return type == DType::q2_k || type == DType::q3_k; }

template <class Isa, DType Type>
constexpr TileForm tile_form(std::size_t digits) {
    const Format format = product_format(Type);
    return {.digits = digits,
            .subs = quant_block / format.sub,
            .d_apart = GroupReader<Isa, Type>::d_apart,
            .has_min = format.has_min,
            .scaled = digits == 1 && scales_fit(Type)};
}

// Blocks of a piece: with those of a tile of activations, and the sums, half of an L1 cache.
inline constexpr std::size_t tile_piece_blocks = 16;
// Rows whose sums are kept while the pieces of a group pass.
inline constexpr std::size_t tile_max_rows = 256;

// Unpacks `blocks` blocks of a group from `first` on, to [blocks][vectors].
template <class Isa>
using UnpackTiles = void(const PackedView& w, std::size_t group, std::size_t first,
                         std::size_t blocks, Floats<Isa>* to);
template <class Isa, DType Type, TileForm Form>
[[gnu::noinline]] void unpack_tiles(const PackedView& w, std::size_t group, std::size_t first,
                                    std::size_t blocks, Floats<Isa>* to) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    constexpr Format format = product_format(Type);
    // The values themselves: they fit in a byte, whatever bias other products need.
    const auto values = [](I codes) {
        auto bytes = xsimd::bitwise_cast<std::int8_t>(codes);
        if constexpr (format.step == 2) bytes += bytes;
        bytes -= static_cast<std::int8_t>(product_bias<Isa>(Type));
        return xsimd::bitwise_cast<float>(bytes);
    };
    // Each byte times -scale, of which only the low byte counts.
    const auto scaled = [](F bytes, F scale) {
        const auto words = xsimd::bitwise_cast<std::int16_t>(bytes);
        const I whole = xsimd::to_int(-scale);
        const auto factor = xsimd::bitwise_cast<std::int16_t>((whole & I(0xffff)) | (whole << 16));
        const std::int16_t low = 0x00ff, high = static_cast<std::int16_t>(0xff00);
        return xsimd::bitwise_cast<float>(((words * factor) & low) | ((words & high) * factor));
    };
    const GroupReader<Isa, Type> reader(w, group);
    for (std::size_t b = first; b < first + blocks; ++b, to += Form.vectors()) {
        reader.fetch_blocks_ahead(b);
        const auto head = reader.load_head(b);
        const auto scales = reader.template load_scales<Form.d_apart>(b, head);
        unroll<4>([&](auto pair) __attribute__((always_inline)) {
            I even, odd;
            reader.template codes<pair>(b, scales, even, odd);
            to[2 * pair] = values(even);
            to[2 * pair + 1] = values(odd);
            if constexpr (Form.scaled)
                for (std::size_t i = 2 * pair; i < 2 * pair + 2; ++i)
                    to[i] = scaled(to[i], scales.scale[pair / 2]);
        });
        for (std::size_t i = 0; i < Form.subs; ++i) {
            if constexpr (!Form.scaled) to[Form.scale() + i] = scales.scale[i];
            if constexpr (Form.has_min) to[Form.minimum() + i] = scales.minimum[i];
        }
        if constexpr (Form.d_apart) {
            to[Form.d()] = head.d;
            if constexpr (Form.has_min) to[Form.d_min()] = head.d_min;
        }
    }
}

// The sums of a tile of rows by one group.
template <class Isa>
struct RowTotals {
    Floats<Isa> of[tile_side];
};

// Sums start at the bits of the float 1.5 * 2^23.  Read as a float, the bits of a sum below 2^22
// are then 1.5 * 2^23 + sum, and a subtraction is left of the conversion.  While tiles are in use,
// the CPU has one unit in place of two for conversions and multiplications, but two for additions.
inline constexpr float sums_start = 0x1.8p23f;
struct alignas(64) SumsStart {
    std::int32_t row[tile_side];
};
inline constexpr SumsStart sums_start_row = [] {
    SumsStart start{};
    for (std::int32_t& sum : start.row) sum = 0x4b400000;  // the bits of sums_start
    return start;
}();
static_assert(quant_block * 127 * 128 < 1 << 22);

// The products of a piece of one group with the same blocks of a tile of activations.
template <class Isa, TileForm Form>
class TileProduct {
    using F = Floats<Isa>;
    // Of sums, and the blocks that these hold.  Four for every form were slower: what is ready
    // then waits behind more that is not.
    static constexpr std::size_t registers = std::max<std::size_t>(Form.sums(), 2);
    static constexpr std::size_t batch = registers / Form.sums();
    using I = Ints<Isa>;
    using Sums = std::int32_t[tile_side][tile_side];  // of one register

 public:
    // total += products.  While the products of one batch are under way, those of the batch before
    // are stored, and the floats of the batch before that are added.  A product and its store take
    // 29 cycles one after the other, and 18 when the products of a batch are stored in between.
    // A register's place in memory is read just before it is written again: if it were another
    // one, 4 KB further on, reads would wait for writes that share the lower bits of the address.
    [[gnu::noinline]] static void add(Tiles& tiles, const F* w, std::size_t blocks,
                                      const std::byte* x, RowTotals<Isa>& total) {
        alignas(64) Sums sums[registers];
        RowTotals<Isa> in_registers = total;
        const std::size_t batches = (blocks + batch - 1) / batch;
        for (std::size_t step = 0; step < batches + 2; ++step)
            unroll<registers>([&](auto i) __attribute__((always_inline)) {
                constexpr std::size_t block = i / Form.sums();
                if constexpr (i % Form.sums() == 0) {
                    const std::size_t b = (step - 2) * batch + block;
                    if (step >= 2 && b < blocks)
                        add_block(sums + i, w + b * Form.vectors(), x + b * Form.record(),
                                  in_registers);
                }
                if (step > 0 && step <= batches) tiles.template store<i>(sums[i]);
                if (step < batches) {
                    const std::size_t b = std::min(step * batch + block, blocks - 1);
                    multiply<i>(tiles, w + b * Form.vectors(), x + b * Form.record());
                }
            });
        total = in_registers;
    }

 private:
    // Register `Sum` is of a batch's block, of a part of that, and of a digit.
    template <std::size_t Sum>
    [[gnu::always_inline]] static void multiply(Tiles& tiles, const F* w, const std::byte* x) {
        constexpr std::size_t digit = Sum % Form.digits, sub = Sum / Form.digits % Form.parts();
        constexpr int x_tile = 4 + Sum % 2, w_tile = 6 + Sum / Form.digits % 2;
        if constexpr (digit == 0)
            tiles.template load<w_tile>(w + sub * Form.columns() / 4, sizeof(F));
        tiles.template load<x_tile>(x + digit * quant_block + sub * Form.columns(),
                                    Form.digits * quant_block);
        tiles.template load<Sum>(sums_start_row.row, 0);
        tiles.template multiply<Sum, x_tile, w_tile>();
    }

    [[gnu::always_inline]] static void add_block(const Sums* sums, const F* w, const std::byte* x,
                                                 RowTotals<Isa>& total) {
        const std::byte* tail = x + Form.digits * quant_block * tile_side;
        const auto x_float = [&](std::size_t kind, std::size_t r) {
            return F(read<float>(tail + 4 * (kind * tile_side + r)));
        };
        const auto stored_sum = [&](std::size_t i, std::size_t r) __attribute__((always_inline)) {
            return xsimd::bitwise_cast<float>(I::load_aligned(sums[i][r]));
        };
        const auto products = [&](std::size_t sub, std::size_t r) __attribute__((always_inline)) {
            const auto digit = [&](std::size_t i) __attribute__((always_inline)) {
                return stored_sum(sub * Form.digits + i, r) - F(sums_start);
            };
            // Rounded once, as the integer would be.
            if constexpr (Form.digits == 2) return xsimd::fma(digit(0), F(256.0f), digit(1));
            return digit(0);
        };
        float code_sums[2][tile_side];  // of both halves of the block
        if constexpr (Form.d_apart && Form.has_min) {
            const auto integers = [&](std::size_t kind) {
                return I::load_unaligned(
                    reinterpret_cast<const std::int32_t*>(tail + 4 * kind * tile_side));
            };
            xsimd::to_float(integers(3)).store_unaligned(code_sums[0]);
            xsimd::to_float(integers(2) - integers(3)).store_unaligned(code_sums[1]);
        }
        unroll<tile_side>([&](auto r) __attribute__((always_inline)) {
            F& sum = total.of[r];
            const F d = x_float(0, r);
            if constexpr (Form.d_apart) {
                F whole;
                if constexpr (Form.scaled)
                    whole = F(sums_start) - stored_sum(0, r);
                else
                    whole = xsimd::fma(products(1, r), w[Form.scale() + 1],
                                       products(0, r) * w[Form.scale()]);
                F value = w[Form.d()] * whole;
                if constexpr (Form.has_min) {
                    const F minima = xsimd::fma(w[Form.minimum() + 1], F(code_sums[1][r]),
                                                w[Form.minimum()] * F(code_sums[0][r]));
                    value = xsimd::fnma(w[Form.d_min()], minima, value);
                }
                sum = xsimd::fma(value, d, sum);
            } else {
                for (std::size_t sub = 0; sub < Form.subs; ++sub)
                    sum = xsimd::fma(products(sub, r), w[Form.scale() + sub] * d, sum);
                if constexpr (Form.has_min) sum = xsimd::fma(w[Form.minimum()], x_float(1, r), sum);
            }
        });
    }
};

// `n_tiles` tiles of activations, at most tile_max_rows rows, by one group.
template <class Isa, TileForm Form>
[[gnu::noinline]] void multiply_tiles(Tiles& tiles, const PackedView& w, std::size_t group,
                                      UnpackTiles<Isa>* unpack, const std::byte* xq,
                                      std::size_t n_tiles, float* y, std::size_t y_stride) {
    const std::size_t blocks = w.k / quant_block;
    Floats<Isa> piece[tile_piece_blocks * Form.vectors()];
    RowTotals<Isa> total[tile_max_rows / tile_side];
    std::fill_n(total, n_tiles, RowTotals<Isa>{});
    for (std::size_t b = 0; b < blocks; b += tile_piece_blocks) {
        const std::size_t count = std::min(tile_piece_blocks, blocks - b);
        unpack(w, group, b, count, piece);
        for (std::size_t tile = 0; tile < n_tiles; ++tile)
            TileProduct<Isa, Form>::add(tiles, piece, count,
                                        xq + (tile * blocks + b) * Form.record(), total[tile]);
    }
    const std::size_t column = group * lanes<Isa>;
    for (std::size_t r = 0; r < n_tiles * tile_side; ++r) {
        const Floats<Isa> sum = total[r / tile_side].of[r % tile_side];
        float* to = y + r * y_stride + column;
        if (w.n - column >= lanes<Isa>)
            sum.store_unaligned(to);
        else
            store_partial<Isa>(sum, to, w.n - column);
    }
}

// The products of rows that fill tiles.
template <class Isa, DType Type>
void linear_tiles(Activations kind, const PackedView& w, const std::byte* xq, std::size_t rows,
                  std::size_t first, std::size_t last, float* y, std::size_t y_stride) {
    const std::size_t row_size = w.k / quant_block * quantized_block_bytes(kind);
    with_digits(kind, [&](auto digits) {
        constexpr TileForm form = tile_form<Isa, Type>(digits);
        Tiles tiles(form.columns());
        for (std::size_t r = 0; r < rows; r += tile_max_rows)
            for (std::size_t g = first; g < last; ++g)
                multiply_tiles<Isa, form>(
                    tiles, w, g, unpack_tiles<Isa, Type, form.unpacked()>, xq + r * row_size,
                    std::min(rows - r, tile_max_rows) / tile_side, y + r * y_stride, y_stride);
    });
}

}  // namespace
}  // namespace tensor_ops
