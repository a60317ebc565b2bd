// The element types of weights, as GGUF files store them.  Each is described once, by a line of the
// table below: names, sizes, packing, products and conversions follow from it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace tensor_ops {

// The quantised types store an integer code q for each column.  Their blocks of 32 columns have a
// scale d, and some a minimum m, in half precision:
//   q8_0: d * q      q4_0: d * (q - 8)      q5_0: d * (q - 16)      q4_1, q5_1: d * q + m
//   iq4_nl: d * iq4_values[q]
// mxfp4 has a byte e in place of d: 2^(e - 128) * e2m1_values[q].
// The blocks of the K types and of iq4_xs have 256 columns and a d in half precision, and each of
// their sub-blocks of 32 (q4_k, q5_k, iq4_xs) or 16 columns has an integer scale s.  Three have
// minima too, by d_min and s_min:
//   q3_k: d * s * (q - 4)      q6_k: d * s * (q - 32)      iq4_xs: d * s * iq4_values[q]
//   q2_k, q4_k, q5_k: d * s * q - d_min * s_min
// Files of the IQ types below 4 bits store the codes of 4 or 8 columns as one index of a codebook,
// see kernels/codebooks.h.  A code of iq2 and iq3_xxs is the level of the magnitude and, above it,
// the sign; of iq1 it is four times the level of -1, 0 and 1, plus 1 if 1/8 is added to it and not
// subtracted; of iq3_s the 16 values are evenly spaced.  Blocks have 256 columns and a d; s is odd,
// for 16 columns (iq2_xs, iq2_s, iq1_m) or for 32:
//   iq2_xxs, iq2_xs, iq2_s: d * s / 8 * iq2_values[q]      iq1_s, iq1_m: d * s / 8 * (2 * q - 9)
//   iq3_xxs: d * s / 4 * iq3_xxs_values[q]                 iq3_s: d * s * (2 * q - 15)
// tq1_0, tq2_0: d * (q - 1), with a d for 256 columns.
// nvfp4 has a byte e of E4M3 without a sign for 16 columns: e / 2 * e2m1_values[q].
enum class DType : std::uint8_t {
    f32,
    f16,
    bf16,
    q8_0,
    q4_0,
    q4_1,
    q5_0,
    q5_1,
    q2_k,
    q3_k,
    q4_k,
    q5_k,
    q6_k,
    iq4_nl,
    iq4_xs,
    mxfp4,
    iq3_xxs,
    iq3_s,
    iq2_xxs,
    iq2_xs,
    iq2_s,
    iq1_s,
    iq1_m,
    tq1_0,
    tq2_0,
    nvfp4
};

// What scales the columns of a block: nothing; d, a half for a block of the file; d * s, a half for
// 256 columns times an int8 for each sub-block, or times a nibble of a byte for each: the lower
// one, where the upper one is that of the minimum, or the upper one; 2^(e - 128), a byte for 32
// columns; half of the unsigned E4M3 number in a byte.  The last two are half of what OCP's
// microscaling and NVIDIA's format say, and e2m1_values are twice what E2M1 says. Bits 0 and 1 of a
// byte with one nibble are bit 0 of the codes of the sub-block's columns: one of the even eights of
// columns, one of the odd eights.  Bit 1 of these codes is 0.
enum class Scale : std::uint8_t {
    none,
    half,
    half_by_int8,
    half_by_pair,
    half_by_nibble,
    e8m0,
    ue4m3
};

static constexpr std::int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                               1,    13,   25,  38,  53,  69,  89,  113};
static constexpr std::int8_t e2m1_values[16] = {0, 1,  2,  3,  4,  6,  8,  12,
                                                0, -1, -2, -3, -4, -6, -8, -12};
static constexpr std::int8_t iq3_xxs_values[16] = {4,  12,  20,  28,  36,  44,  52,  62,
                                                   -4, -12, -20, -28, -36, -44, -52, -62};
static constexpr std::int8_t iq2_values[16] = {8, 25, 43, 0, -8, -25, -43, 0};

// A code stands for step * code - zero or, where a type has values, for values[code].  Products
// multiply (value + zero) / step, a whole number of product_bits bits without a sign, at most 128
// unless they are 8.
struct Format {
    DType type;
    const char* name;
    std::size_t elements, bytes;  // of a block in a file
    bool writable;                // whether from_float or quantize_k makes it
    Scale scale = Scale::none;    // none for the float types
    std::size_t sub = 0;          // columns that share a scale
    bool has_min = false;         // where the scale is by int8, it is subtracted
    int bits = 0;                 // of a packed code
    int zero = 0;
    int product_bits = 0;
    const std::int8_t* values = nullptr;
    float unit = 1;  // d is multiplied by it
    int step = 1;    // 1 or 2
};

// clang-format off
static constexpr Format formats[] = {
    {DType::f32,    "f32",      1,   4, true},
    {DType::f16,    "f16",      1,   2, true},
    {DType::bf16,   "bf16",     1,   2, true},
    {DType::q8_0,   "q8_0",    32,  34, true,  Scale::half,         32, false, 8, 128, 8},
    {DType::q4_0,   "q4_0",    32,  18, true,  Scale::half,         32, false, 4,   8, 4},
    {DType::q4_1,   "q4_1",    32,  20, true,  Scale::half,         32, true,  4,   0, 4},
    {DType::q5_0,   "q5_0",    32,  22, true,  Scale::half,         32, false, 5,  16, 5},
    {DType::q5_1,   "q5_1",    32,  24, true,  Scale::half,         32, true,  5,   0, 5},
    {DType::q2_k,   "q2_k",   256,  84, true,  Scale::half_by_pair, 16, true,  2,   0, 2},
    {DType::q3_k,   "q3_k",   256, 110, true,  Scale::half_by_int8, 16, false, 3,   4, 3},
    {DType::q4_k,   "q4_k",   256, 144, true,  Scale::half_by_int8, 32, true,  4,   0, 4},
    {DType::q5_k,   "q5_k",   256, 176, true,  Scale::half_by_int8, 32, true,  5,   0, 5},
    {DType::q6_k,   "q6_k",   256, 210, true,  Scale::half_by_int8, 16, false, 6,  32, 6},
    {DType::iq4_nl, "iq4_nl",  32,  18, true,  Scale::half,         32, false, 4, 128, 8, iq4_values},
    {DType::iq4_xs, "iq4_xs", 256, 136, false, Scale::half_by_int8, 32, false, 4, 128, 8, iq4_values},
    {DType::mxfp4,  "mxfp4",   32,  17, true,  Scale::e8m0,         32, false, 4,  12, 5, e2m1_values},
    {DType::iq3_xxs, "iq3_xxs", 256,  98, false, Scale::half_by_int8,   32, false, 4, 62, 7, iq3_xxs_values, 0.25f},
    {DType::iq3_s,   "iq3_s",   256, 110, false, Scale::half_by_int8,   32, false, 4, 15, 4, nullptr, 1, 2},
    {DType::iq2_xxs, "iq2_xxs", 256,  66, false, Scale::half_by_int8,   32, false, 3, 43, 7, iq2_values, 0.125f},
    {DType::iq2_xs,  "iq2_xs",  256,  74, false, Scale::half_by_int8,   16, false, 3, 43, 7, iq2_values, 0.125f},
    {DType::iq2_s,   "iq2_s",   256,  82, false, Scale::half_by_int8,   16, false, 3, 43, 7, iq2_values, 0.125f},
    {DType::iq1_s,   "iq1_s",   256,  50, false, Scale::half_by_nibble, 32, false, 2,  9, 4, nullptr, 0.125f, 2},
    {DType::iq1_m,   "iq1_m",   256,  56, false, Scale::half_by_nibble, 16, false, 2,  9, 4, nullptr, 0.125f, 2},
    {DType::tq1_0,   "tq1_0",   256,  54, false, Scale::half,           32, false, 2,  1, 2},
    {DType::tq2_0,   "tq2_0",   256,  66, false, Scale::half,           32, false, 2,  1, 2},
    {DType::nvfp4,   "nvfp4",    64,  36, false, Scale::ue4m3,          16, false, 4, 12, 5, e2m1_values},
};
// clang-format on

static constexpr std::size_t n_types = sizeof(formats) / sizeof(formats[0]);

static constexpr const Format& format_of(DType type) {
    return formats[static_cast<std::size_t>(type)];
}

static_assert([] {
    for (std::size_t i = 0; i < n_types; ++i)
        if (formats[i].type != static_cast<DType>(i)) return false;
    return true;
}());

// The first type of the table that is packed as this type is: one kernel multiplies both.
static constexpr DType packed_form(DType type) {
    const Format& a = format_of(type);
    for (const Format& b : formats)
        if (a.elements == b.elements && a.scale == b.scale && a.sub == b.sub &&
            a.has_min == b.has_min && a.bits == b.bits && a.zero == b.zero &&
            a.product_bits == b.product_bits && a.values == b.values && a.unit == b.unit &&
            a.step == b.step)
            return b.type;
    return type;
}
static_assert(packed_form(DType::iq2_s) == DType::iq2_xs);

static constexpr const char* dtype_name(DType type) { return format_of(type).name; }

// The types whose scales are searched for: quantize_k makes them.
static constexpr bool is_searched(DType type) {
    return format_of(type).writable && format_of(type).elements == 256;
}

// The types of blocks of 32 whose scales are searched for where columns have an importance:
// quantize_weighted makes them then, and from_float otherwise.
static constexpr bool is_weighted(DType type) {
    const Format& format = format_of(type);
    return format.writable && format.scale == Scale::half && format.bits < 8;
}

static constexpr bool is_quantized(DType type) { return format_of(type).scale != Scale::none; }

// Columns that the kernels process at a time.  They share one scale, or the scales of two
// sub-blocks of 16.
inline constexpr std::size_t quant_block = 32;

// Elements and bytes of a block in a file.
struct BlockSize {
    std::size_t elements, bytes;
};
static constexpr BlockSize block_size(DType type) {
    return {format_of(type).elements, format_of(type).bytes};
}

// Bytes of one row of n elements; n is a multiple of the type's block.
static constexpr std::size_t row_bytes(DType type, std::size_t n) {
    return n / block_size(type).elements * block_size(type).bytes;
}

}  // namespace tensor_ops
