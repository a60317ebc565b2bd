// Weights unpacked to bytes for products with many rows: their form, and the products of one block.
//
// An ISA's instructions decide how the codes of a block lie and how they are multiplied:
//   ProductsIn16Bits    codes without a sign, which AVX2 multiplies and adds in 16 bits
//   ProductsByLane      values with a sign, by lanes of activations (ARM's dot product)
//   ProductsOfSquares   the same, for an instruction that multiplies rows of weights by rows of
//                       activations (ARM's i8mm)
// Everything else of linear_unpacked.h is the same for all: a struct here says
//   planes, steps, bias             what UnpackedForm says of them
//   put<Type>(pair, even, odd, at)  lays out the codes of two quads of a block that begins at `at`
//   factor(scale)                   a whole scale as multiply() takes it
//   multiply<Form>(w, x, sum)       sum[t][g] = the products of the block of group g and token t,
//                                   each times its factor
#pragma once

#include "kernels/activations.h"
#include "kernels/group_reader.h"

namespace tensor_ops {
namespace {

// Groups that are unpacked together: an activation that is repeated in a vector meets both.
inline constexpr std::size_t piece_groups = 2;

// How a type is unpacked.  Types with the same form share the products.  A block of a group becomes
// `vectors` vectors: its codes, then the others, each from the index of that name on.
struct UnpackedForm {
    std::size_t subs;    // parts of a block with scales of their own
    std::size_t planes;  // 2: a byte is multiplied as two codes of 4 bits
    std::size_t steps;   // quads whose products are added before they meet their factor
    bool has_factor;     // a scale is an int8 times d, which the blocks of a run share
    bool has_bias;       // the products of a code are those of code - bias
    bool has_min;
    std::size_t run;

    // The numbers of the products' factor, and 16 times it for the second plane.
    constexpr std::size_t factor() const { return 8 * planes; }
    // int16 [2 halves of a block]: -bias times the factor.  Only with factors.
    constexpr std::size_t bias() const { return factor() + (has_factor ? subs * planes : 0); }
    // float: d, or the whole scale if there are no factors.
    constexpr std::size_t scale() const { return bias() + (has_factor && has_bias); }
    // float: the minimum, and its factor: int16 [2 halves of a block] if both differ.
    constexpr std::size_t minimum() const { return scale() + 1; }
    constexpr std::size_t min_factor() const { return minimum() + 1; }
    constexpr std::size_t vectors() const { return minimum() + (has_min ? subs : 0); }
};

template <class I>
inline I load_vector(const I* p) {
    return I::load_aligned(reinterpret_cast<const std::int32_t*>(p));
}

// Products are added in 16 bits as long as they fit, then multiplied by the whole part of the scale
// and added in 32 bits.  A code of 8 bits is two of 4 bits.
template <class Isa>
struct ProductsIn16Bits {
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;

    static constexpr std::size_t planes(const Format& format) {
        return format.product_bits == 8 ? 2 : 1;
    }
    static constexpr std::size_t steps(const Format& format) {
        const auto bits = static_cast<std::size_t>(format.product_bits);
        const std::size_t largest = (std::size_t{1} << bits / planes(format)) - 1;
        std::size_t steps = 8 / (quant_block / format.sub);
        while (steps * 2 * largest * 127 > INT16_MAX) steps /= 2;
        return steps;
    }
    static constexpr int bias(const Format& format) {
        return format.product_bits == 8 ? 128 : format.zero;
    }

    template <DType Type>
    [[gnu::always_inline]] static void put(std::size_t pair, I even, I odd, I* at) {
        const auto put_quad = [&](std::size_t quad, I codes) __attribute__((always_inline)) {
            if constexpr (planes(product_format(Type)) == 1) {
                at[quad] = codes;
            } else {
                const I nibbles(0x0f0f0f0f);
                const I bytes = codes ^ I(static_cast<std::int32_t>(0x80808080));
                at[quad] = bytes & nibbles;
                at[8 + quad] = (bytes >> 4) & nibbles;
            }
        };
        put_quad(2 * pair, even);
        put_quad(2 * pair + 1, odd);
    }

    // int16 [2 equal].
    static I factor(I scale) { return (scale & I(0xffff)) | (scale << 16); }

    template <UnpackedForm Form, std::size_t Tokens>
    [[gnu::always_inline]] static void multiply(const I* w, const std::byte* x,
                                                I (&sum)[Tokens][piece_groups]) {
        constexpr std::size_t quads = 8 * Form.planes, parts = quads / Form.steps;
        unroll<parts>([&](auto part) __attribute__((always_inline)) {
            // Or GCC keeps all 32 repeated activations of the first plane for the second.
            if constexpr (part > 0 && Form.planes == 2) keep_order();
            typename Int8::Products products[Tokens][piece_groups];
            unroll<Form.steps>([&](auto step) __attribute__((always_inline)) {
                constexpr std::size_t quad = part * Form.steps + step;
#pragma GCC unroll 8
                for (std::size_t t = 0; t < Tokens; ++t) {
                    const I four(read<std::int32_t>(x + (quad % 8 * Tokens + t) * 4));
#pragma GCC unroll 8
                    for (std::size_t g = 0; g < piece_groups; ++g) {
                        const auto product =
                            Int8::multiply(load_vector(w + g * Form.vectors() + quad), four);
                        products[t][g] = step == 0 ? product : Int8::add(products[t][g], product);
                    }
                }
            });
#pragma GCC unroll 8
            for (std::size_t t = 0; t < Tokens; ++t)
#pragma GCC unroll 8
                for (std::size_t g = 0; g < piece_groups; ++g) {
                    constexpr std::size_t scale = part * Form.planes * Form.subs / parts;
                    I factor(scale == 0 ? 0x00010001 : 0x00100010);  // of each plane
                    if constexpr (Form.has_factor)
                        factor = load_vector(w + g * Form.vectors() + Form.factor() + scale);
                    if constexpr (part == 0)
                        sum[t][g] = Int8::widen(products[t][g], factor);
                    else
                        sum[t][g] = Int8::add_widened(sum[t][g], products[t][g], factor);
                }
        });
    }
};

// Values with a sign, added in 32 bits.
template <class Isa>
struct ProductsOfSigned {
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;

    static constexpr std::size_t planes(const Format&) { return 1; }
    static constexpr std::size_t steps(const Format& format) { return format.sub / 4; }
    static constexpr int bias(const Format&) { return 0; }

    template <DType Type>
    static I values(I codes) {
        constexpr int bias = product_bias<Isa>(Type);
        return bias ? Int8::subtract_bytes(codes, I(bias * 0x01010101)) : codes;
    }

    static I factor(I scale) { return scale; }

    // The four tokens of a tile: columns of one quad.
    static I load_quad(const std::byte* x, std::size_t quad) {
        return I::load_unaligned(reinterpret_cast<const std::int32_t*>(x + quad * 4 * lanes<Isa>));
    }

    // sum (+)= products * factor of part `sub` of a block.
    template <UnpackedForm Form, std::size_t Sub>
    [[gnu::always_inline]] static void add(const I* w, std::size_t g, I products, I& sum) {
        if constexpr (Form.has_factor)
            products = products * load_vector(w + g * Form.vectors() + Form.factor() + Sub);
        sum = Sub == 0 ? products : sum + products;
    }
};

// A token is a lane of a vector of activations, which meets both groups.
template <class Isa>
struct ProductsByLane : ProductsOfSigned<Isa> {
    using Base = ProductsOfSigned<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;

    template <DType Type>
    [[gnu::always_inline]] static void put(std::size_t pair, I even, I odd, I* at) {
        at[2 * pair] = Base::template values<Type>(even);
        at[2 * pair + 1] = Base::template values<Type>(odd);
    }

    template <UnpackedForm Form, std::size_t Tokens>
    [[gnu::always_inline]] static void multiply(const I* w, const std::byte* x,
                                                I (&sum)[Tokens][piece_groups]) {
        static_assert(Tokens == lanes<Isa>);
        unroll<Form.subs>([&](auto sub) __attribute__((always_inline)) {
            I products[Tokens][piece_groups];
            unroll<Form.steps>([&](auto step) __attribute__((always_inline)) {
                constexpr std::size_t quad = sub * Form.steps + step;
                const I tokens = Base::load_quad(x, quad);
                unroll<piece_groups>([&](auto g) __attribute__((always_inline)) {
                    const I codes = load_vector(w + g * Form.vectors() + quad);
                    unroll<Tokens>([&](auto t) __attribute__((always_inline)) {
                        I& p = products[t][g];
                        if constexpr (step == 0) p = I(0);
                        p = Int8::template dot_lane<t>(p, codes, tokens);
                    });
                });
            });
            unroll<piece_groups>([&](auto g) __attribute__((always_inline)) {
                unroll<Tokens>([&](auto t) __attribute__((always_inline)) {
                    Base::template add<Form, sub>(w, g, products[t][g], sum[t][g]);
                });
            });
        });
    }
};

// An instruction multiplies two rows of activations by two rows of weights, 8 columns of each:
// 2 x 2 sums.  So weights lie as [4 pairs of quads][2 pairs of rows][2 rows][8 columns].
template <class Isa>
struct ProductsOfSquares : ProductsOfSigned<Isa> {
    using Base = ProductsOfSigned<Isa>;
    using I = Ints<Isa>;
    using Int8 = typename Isa::Int8;

    template <DType Type>
    [[gnu::always_inline]] static void put(std::size_t pair, I even, I odd, I* at) {
        even = Base::template values<Type>(even);
        odd = Base::template values<Type>(odd);
        at[2 * pair] = Int8::low_rows(even, odd);
        at[2 * pair + 1] = Int8::high_rows(even, odd);
    }

    template <UnpackedForm Form, std::size_t Tokens>
    [[gnu::always_inline]] static void multiply(const I* w, const std::byte* x,
                                                I (&sum)[Tokens][piece_groups]) {
        static_assert(Tokens == lanes<Isa>);
        unroll<Form.subs>([&](auto sub) __attribute__((always_inline)) {
            I square[2][piece_groups][2];
            unroll<4 / Form.subs>([&](auto step) __attribute__((always_inline)) {
                constexpr std::size_t pair = sub * 4 / Form.subs + step;
                const I even = Base::load_quad(x, 2 * pair), odd = Base::load_quad(x, 2 * pair + 1);
                const I rows[2] = {Int8::low_rows(even, odd), Int8::high_rows(even, odd)};
                unroll<piece_groups * 2>([&](auto i) __attribute__((always_inline)) {
                    constexpr std::size_t g = i / 2, half = i % 2;
                    const I codes = load_vector(w + g * Form.vectors() + 2 * pair + half);
                    unroll<2>([&](auto t) __attribute__((always_inline)) {
                        auto& s = square[t][g][half];
                        if constexpr (step == 0) s = I(0);
                        s = Int8::add_square(s, rows[t], codes);
                    });
                });
            });
            unroll<piece_groups>([&](auto g) __attribute__((always_inline)) {
                unroll<Tokens>([&](auto t) __attribute__((always_inline)) {
                    const auto& s = square[t / 2][g];
                    const I row =
                        t % 2 ? Int8::second_row(s[0], s[1]) : Int8::first_row(s[0], s[1]);
                    Base::template add<Form, sub>(w, g, row, sum[t][g]);
                });
            });
        });
    }
};

template <class Isa>
concept has_squares = requires(Ints<Isa> v) { Isa::Int8::add_square(v, v, v); };
template <class Isa>
concept has_signed_products = requires(Ints<Isa> v) { Isa::Int8::template dot_lane<0>(v, v, v); };
template <class Isa>
concept has_products_in_16_bits = requires { typename Isa::Int8::Products; };

template <class Isa>
using SignedProducts =
    std::conditional_t<has_squares<Isa>, ProductsOfSquares<Isa>, ProductsByLane<Isa>>;
template <class Isa>
using BlockProducts =
    std::conditional_t<has_signed_products<Isa>, SignedProducts<Isa>, ProductsIn16Bits<Isa>>;

template <class Isa>
constexpr UnpackedForm unpacked_form(DType type) {
    using Products = BlockProducts<Isa>;
    const Format format = product_format(type);
    const bool has_factor =
        format.scale == Scale::half_by_int8 || format.scale == Scale::half_by_pair;
    return {.subs = quant_block / format.sub,
            .planes = Products::planes(format),
            .steps = Products::steps(format),
            .has_factor = has_factor,
            .has_bias = Products::bias(format) != 0,
            .has_min = format.has_min,
            .run = has_factor ? 8u : 1u};
}

// Whether products of many rows unpack a type first.
template <class Isa, DType Type>
inline constexpr bool is_unpacked = [] {
    const Format format = product_format(Type);
    const bool one_float = format.scale == Scale::half || format.scale == Scale::e8m0;
    return (has_signed_products<Isa> || has_products_in_16_bits<Isa>) && format.step == 1 &&
           (unpacked_form<Isa>(Type).has_factor || (one_float && format.sub == quant_block));
}();

}  // namespace
}  // namespace tensor_ops
