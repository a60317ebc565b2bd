// A group of quantised weights, read block by block: its codes and its scales, a vector of rows at
// a time.  Layouts in packed.h.
#pragma once

#include "kernels/packed.h"

namespace tensor_ops {
namespace {

template <class Isa>
inline Floats<Isa> load_halves(const std::byte* p) {
    return Isa::HalfLoad::load(reinterpret_cast<const std::uint16_t*>(p));
}

// A vector of unsigned bytes.
template <class Isa>
inline Ints<Isa> load_bytes(const std::byte* p) {
    std::int32_t lane[lanes<Isa>];
    for (std::size_t i = 0; i < lanes<Isa>; ++i) lane[i] = static_cast<std::uint8_t>(p[i]);
    return Ints<Isa>::load_unaligned(lane);
}

// A vector of scales of one byte, see e8m0_to_float.
template <class Isa>
inline Floats<Isa> load_e8m0(const std::byte* p) {
    using I = Ints<Isa>;
    const I e = load_bytes<Isa>(p);
    // The second term is the larger one for 0 and 1 alone.
    const I bits = xsimd::max((e - I(1)) << 23, xsimd::min((e + I(1)) << 21, I(0x00400000)));
    return xsimd::bitwise_cast<float>(bits);
}

// The same, see ue4m3_to_float.
template <class Isa>
inline Floats<Isa> load_ue4m3(const std::byte* p) {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    const I e = load_bytes<Isa>(p);
    const F normal = xsimd::bitwise_cast<float>((e << 20) + I(119 << 23));
    const F small = xsimd::to_float(e) * F(0x1p-10f);  // exponent 0
    return xsimd::select(xsimd::batch_bool_cast<float>(e < I(8)), small, normal);
}

// What products multiply in place of the 16 codes of a type with values.
template <class Isa, DType Type>
constexpr ByteTable product_codes() {
    ByteTable table{};
    for (std::size_t i = 0; i < 64; ++i)
        table.bytes[i] = static_cast<std::uint8_t>(
            (format_of(Type).values[i % 16] + product_bias<Isa>(Type)) / format_of(Type).step);
    return table;
}

// Keeps the compiler from moving reads across: weights are read in the order in which they lie.
inline void keep_order() { __atomic_signal_fence(__ATOMIC_ACQ_REL); }

// One group of weights, read block by block.
template <class Isa, DType Type>
class GroupReader {
    using F = Floats<Isa>;
    using I = Ints<Isa>;
    static constexpr Format format = product_format(Type);
    static constexpr GroupLayout<Isa> layout{Type};
    static constexpr std::size_t subs = quant_block / format.sub;
    // Whether products need the bits of codes that lie with the scales.
    static constexpr bool bits_with_scales =
        format.scale == Scale::half_by_nibble && !format.has_min;

 public:
    GroupReader(const PackedView& w, std::size_t group)
        : group_(w.data + group * layout.total(w.k)) {}

    // The halves that scale a block, and how many blocks keep them in registers.  AVX-512 has
    // enough: Q2_K by two rows then takes 0.88 of the time.  AVX2 does not: IQ1_M would take 1.03.
    struct Head {
        F d, d_min;
    };
    static constexpr std::size_t head_blocks =
        layout.head_bytes && lanes<Isa> == 16 ? layout.run_blocks : 1;

    // Whether products multiply by d once for both scales of a block.  With AVX2, 4 rows of
    // activations by Q2_K then take 0.82 of the time; with AVX-512, one row takes 0.89.
    static constexpr bool d_apart = layout.head_bytes && subs == 2;

    // What a block's codes are multiplied by and what is added to them, for each format.sub
    // columns.
    struct Scales {
        F scale[subs], minimum[subs];
        I byte[subs];  // of half_by_pair and half_by_nibble
    };

    // The same as a function of its own, for an ISA without instructions for it.
    template <std::size_t Pair>
    [[gnu::noinline, gnu::flatten]] void codes_apart(std::size_t b, const Scales& scales, I& even,
                                                     I& odd) const {
        codes<Pair>(b, scales, even, odd);
    }

    // Sets even and odd to quads 2 Pair and 2 Pair + 1 of block b: values plus product_bias.
    template <std::size_t Pair>
    [[gnu::always_inline]] void codes(std::size_t b, const Scales& scales, I& even, I& odd) const {
        even = stored_codes<2 * Pair>(b);
        odd = stored_codes<2 * Pair + 1>(b);
        if constexpr (bits_with_scales) {
            const I both = repeat_byte(scales.byte[Pair * 8 / format.sub]);
            const I bit = part<Pair % 2, 1, 0>(both);
            even = even | bit;
            odd = odd | bit;
        }
        if constexpr (format.values != nullptr) {
            static constexpr ByteTable table = product_codes<Isa, Type>();
            even = look_up(table, even);
            odd = look_up(table, odd);
        }
    }

    // Fetches as much as a block has, from the blocks behind it or from the next group.
    void fetch_blocks_ahead(std::size_t b) const {
        fetch_ahead<layout.record_bytes / layout.record_blocks>(group_ + layout.codes(b));
    }

    [[gnu::always_inline]] Head load_head(std::size_t b) const {
        Head head;
        if constexpr (layout.has_d) head.d = load_halves<Isa>(group_ + layout.d(b));
        if constexpr (format.unit != 1) head.d = head.d * F(format.unit);
        if constexpr (layout.format.has_min)
            head.d_min = load_halves<Isa>(group_ + layout.d_min(b));
        return head;
    }

    // If Apart, without d and d_min: s, and s_min, which is subtracted.
    template <bool Apart = false>
    [[gnu::always_inline]] Scales load_scales(std::size_t b, const Head& head) const {
        Scales scales;
        unroll<subs>([&](auto i) __attribute__((always_inline)) {
            if constexpr (layout.pairs || format.scale == Scale::half_by_nibble)
                scales.byte[i] = load_bytes<Isa>(group_ + layout.s(b) + i * lanes<Isa>);
            const auto factor = [&](F d, std::size_t offset, auto of_minimum) {
                const std::byte* bytes = group_ + offset + i * lanes<Isa>;
                if constexpr (format.scale == Scale::half) {
                    return d;
                } else if constexpr (format.scale == Scale::ue4m3) {
                    return load_ue4m3<Isa>(bytes);
                } else if constexpr (format.scale == Scale::e8m0) {
                    return load_e8m0<Isa>(bytes);
                } else {
                    F s;
                    if constexpr (format.scale == Scale::half_by_int8)
                        s = load_int8<Isa>(bytes);
                    else if constexpr (layout.pairs && !of_minimum)
                        s = xsimd::to_float(scales.byte[i] & I(15));
                    else
                        s = xsimd::to_float(scales.byte[i] >> 4);
                    if constexpr (Apart) return s;
                    return d * s;
                }
            };
            scales.scale[i] = factor(head.d, layout.s(b), std::false_type{});
            if constexpr (layout.format.has_min) {
                const F m = factor(head.d_min, layout.s_min(b), std::true_type{});
                scales.minimum[i] = Apart || format.scale == Scale::half ? m : -m;
            } else if constexpr (format.has_min) {  // the middle level is -1/8 or 1/8, without d
                const F bit = xsimd::to_float(scales.byte[i] & I(1));
                scales.minimum[i] = scales.scale[i] * xsimd::fma(bit, F(0.25f), F(-1.125f));
            }
        });
        keep_order();
        return scales;
    }

 private:
    // The bits of a quad's codes that lie with the codes.
    template <std::size_t Quad>
    [[gnu::always_inline]] I stored_codes(std::size_t b) const {
        const std::byte* block = group_ + layout.codes(b);
        constexpr QuadParts parts(format.bits, Quad);
        constexpr int lowest = bits_with_scales ? lowest_stored_bit(format) : 0;
        I codes(0);
        unroll<parts.count>([&](auto i) __attribute__((always_inline)) {
            // The last one first: it lies before the others, if it is from another vector.
            constexpr CodePart p = parts.part[parts.count - 1 - i];
            const I v = I::load_aligned(
                reinterpret_cast<const std::int32_t*>(block + p.vector * 4 * lanes<Isa>));
            codes = codes | part<p.shift, p.width, p.code_shift + lowest>(v);
        });
        return codes;
    }

    // `Width` bits from bit `From` of each byte, moved to bit `To`: one shift and one mask.
    template <int From, int Width, int To>
    [[gnu::always_inline]] static I part(I v) {
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

}  // namespace
}  // namespace tensor_ops
