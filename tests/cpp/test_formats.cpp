// from_float and to_float, bit for bit: a file must mean the same to everyone.

#include "matrices.h"

using namespace arrays;
using matrices::block_size;
using matrices::row_bytes;
using tensor_ops::DType;
using tensor_ops::KernelTable;

namespace {

using Bytes = Array<std::byte>;

std::uint16_t encode_half_type(DType type, double value) {
    return type == DType::f16 ? reference::encode_half(value) : reference::encode_bfloat(value);
}

// On, halfway between and just beside the values of a 16-bit type, of both signs.
Floats neighbours_of_halves(DType type) {
    const int infinity_bits = type == DType::f16 ? 0x7c00 : 0x7f80;
    std::vector<float> values;
    double below = 0;
    for (int bits = 0; bits < infinity_bits; bits += bits < 0x500 || bits > 0x7800 ? 1 : 37) {
        std::byte bytes[2];
        reference::write_bits(static_cast<std::uint16_t>(bits), bytes);
        const double value = reference::decode_row(type, bytes, 1)[0];
        for (const double middle : {value, (value + below) / 2}) {
            const auto x = static_cast<float>(middle);
            for (const float near : {std::nextafter(x, 0.0f), x, std::nextafter(x, infinity)}) {
                values.push_back(near);
                values.push_back(-near);
            }
        }
        below = value;
    }
    for (const float end : {65519.996f, 65520.0f, 3.3895314e38f, 3.4028234e38f, infinity}) {
        values.push_back(end);
        values.push_back(-end);
    }
    return copy<float>(values);
}

// A scale or minimum of zero may have either sign.
void drop_signs_of_zeros(DType type, Bytes& blocks) {
    const std::size_t size = block_size(type).bytes;
    for (std::size_t at = 0; at < blocks.size(); at += size) {
        for (const std::size_t half : reference::halves_of_block(type)) {
            if (reference::read_bits(&blocks[at + half]) == 0x8000)
                reference::write_bits(0, &blocks[at + half]);
        }
    }
}

void check_quantizing(const KernelTable& table, DType type, const Floats& x, std::size_t offset = 0,
                      std::source_location where = std::source_location::current()) {
    const std::size_t size = block_size(type).bytes;
    Bytes actual(x.size() / 32 * size, offset), expected(actual.size());
    table.from_float(type, x.data(), actual.data(), x.size());
    reference::encode_row(type, x.data(), x.size(), expected.data());
    drop_signs_of_zeros(type, actual);
    drop_signs_of_zeros(type, expected);
    for (std::size_t i = 0; i < actual.size(); ++i)
        check::equal(actual[i], expected[i],
                     std::string(matrices::name(type)) + " byte " + std::to_string(i % size) +
                         " of block " + std::to_string(i / size),
                     where);
}

}  // namespace

KERNEL_TEST(f32_is_copied_bit_for_bit) {
    for (const std::size_t n : sizes()) {
        const Floats x = normal(n, 1);
        Bytes bytes(4 * n, n % 16);
        Floats back(n, 3);
        table.from_float(DType::f32, x.data(), bytes.data(), n);
        table.to_float(DType::f32, bytes.data(), back.data(), n);
        check::that(same_bytes(x, back), "there and back");
    }
}

KERNEL_TEST(halves_round_to_nearest_ties_to_even) {
    for (const DType type : matrices::half_types) {
        const Floats x = neighbours_of_halves(type);
        Bytes bytes(2 * x.size());
        table.from_float(type, x.data(), bytes.data(), x.size());
        for (std::size_t i = 0; i < x.size(); ++i)
            check::equal(reference::read_bits(&bytes[2 * i]), encode_half_type(type, x[i]),
                         std::string(matrices::name(type)) + " of " + check::text(x[i]));
    }
}

KERNEL_TEST(every_half_widens_to_its_value) {
    for (const DType type : matrices::half_types) {
        Bytes bytes(2 << 16, 1);
        for (std::size_t i = 0; i < 1 << 16; ++i)
            reference::write_bits(static_cast<std::uint16_t>(i), &bytes[2 * i]);
        Floats x(1 << 16);
        table.to_float(type, bytes.data(), x.data(), x.size());
        const auto exact = reference::decode_row(type, bytes.data(), x.size());
        for (std::size_t i = 0; i < x.size(); ++i)
            check::near(matrices::name(type), x[i], exact[i], 0, "bits ", i);
    }
}

KERNEL_TEST(nan_stays_nan_whatever_its_payload) {
    // Cutting off the lower half of 0x7f800001 would leave an infinity.
    for (const std::uint32_t bits : {0x7fc00000u, 0x7f800001u, 0xff800001u, 0x7fffffffu}) {
        const float x = std::bit_cast<float>(bits);
        for (const DType type : matrices::half_types) {
            std::byte half[2];
            float back = 0;
            table.from_float(type, &x, half, 1);
            table.to_float(type, half, &back, 1);
            check::that(std::isnan(back), matrices::name(type));
        }
    }
}

KERNEL_TEST(halves_of_every_size_at_any_start) {
    for (const DType type : matrices::half_types) {
        for (const std::size_t n : sizes()) {
            const Floats x = normal(n, 1, 1, n % 16);
            Bytes bytes(2 * n, (n + 1) % 16);
            Floats back(n, (n + 7) % 16);
            table.from_float(type, x.data(), bytes.data(), n);
            table.to_float(type, bytes.data(), back.data(), n);
            const auto exact = reference::decode_row(type, bytes.data(), n);
            for (std::size_t i = 0; i < n; ++i) {
                check::equal(reference::read_bits(&bytes[2 * i]), encode_half_type(type, x[i]),
                             matrices::name(type));
                check::near(matrices::name(type), back[i], exact[i], 0, "at ", i);
            }
        }
    }
}

KERNEL_TEST(quantizing_gives_ggmls_bytes) {
    for (const DType type : matrices::simple_types)
        for (std::size_t blocks = 0; blocks < 70; ++blocks)
            check_quantizing(table, type, normal(32 * blocks, static_cast<unsigned>(blocks)),
                             blocks % 16);
}

KERNEL_TEST(quantizing_of_constants_and_of_the_ends_of_the_scales_range) {
    for (const DType type : matrices::simple_types) {
        for (const float value : {0.0f, -0.0f, 1.0f, -1.0f, 0.1f, 1000.0f, -65504.0f})
            check_quantizing(table, type, filled(32, value));
        for (const double scale : {1e-45, 1e-42, 1e-38, 1e-30, 1e-7, 1e4})
            check_quantizing(table, type, normal(32 * 4, 1, scale));
    }
}

KERNEL_TEST(quantizing_rounds_ties_as_ggml_does) {
    // The scale is 1 (127 / 127, -8 / -8, 15 / 15, ...), so the halves are ties; of iq4_nl the
    // middles between its values, of mxfp4 those between the doubled values of E2M1.
    const struct {
        DType type;
        float lowest, highest;
    } ends[] = {{DType::q8_0, -127, 127}, {DType::q4_0, -8, 7},         {DType::q4_1, 0, 15},
                {DType::q5_0, -16, 15},   {DType::q5_1, 0, 31},         {DType::iq4_nl, -127, 113},
                {DType::iq4_nl, -127, 0}, {DType::iq4_nl, -127, 45.5f}, {DType::mxfp4, -8, 8},
                {DType::mxfp4, -12, 12}};
    for (const auto& [type, lowest, highest] : ends) {
        Floats x(64);
        for (std::size_t i = 0; i < 32; ++i) {
            x[i] = lowest + static_cast<float>(i) / 2;
            x[32 + i] = highest - static_cast<float>(i) / 2;
        }
        x[31] = highest;
        x[63] = lowest;
        check_quantizing(table, type, x);
    }
}

KERNEL_TEST(of_several_largest_numbers_the_first_gives_the_scale_its_sign) {
    for (const DType type : matrices::simple_types) {
        for (const float first : {1.0f, -1.0f}) {
            for (const std::size_t at : {0u, 5u, 31u}) {
                Floats x = normal(32, 1, 0.1);
                x[at] = first;
                x[(at + 7) % 32] = -first;
                check_quantizing(table, type, x);
            }
        }
    }
}

KERNEL_TEST(what_a_block_cannot_hold_does_not_come_back_finite) {
    for (const DType type : matrices::simple_types) {
        for (const float bad : {not_a_number, infinity, -infinity, 1e38f}) {
            for (const std::size_t at : {32u, 45u, 63u}) {
                if (type == DType::mxfp4 && bad == 1e38f) continue;  // it can hold this
                Floats x = normal(96, 1), back(96);
                x[at] = bad;
                Bytes bytes(row_bytes(type, 96));
                table.from_float(type, x.data(), bytes.data(), 96);
                table.to_float(type, bytes.data(), back.data(), 96);
                check::that(!std::isfinite(back[at]),
                            std::string(matrices::name(type)) + " hides it");
                for (std::size_t i = 0; i < 96; ++i)
                    check::that(std::isfinite(back[i]) || i / 32 == 1, "another block suffers");
            }
        }
    }
}

KERNEL_TEST(dequantizing_is_exact_for_any_codes) {
    for (const DType type : matrices::quantized_types) {
        const std::size_t n = 16 * 256;
        for (const std::size_t offset : {0u, 1u, 13u}) {
            const auto row = matrices::random(type, 1, n, static_cast<unsigned>(offset), offset);
            Floats x(n);
            table.to_float(type, row.bytes.data(), x.data(), n);
            // The product of scales and code fits float32; the sum with the minimum is rounded.
            for (std::size_t i = 0; i < n; ++i)
                check::near(matrices::name(type), x[i], row.values[i], ulp(row.values[i]) / 2,
                            "at ", i);
        }
    }
}

KERNEL_TEST(every_power_of_two_scales_every_code_exactly) {
    std::byte block[17];
    Floats x(32);
    for (int e = 0; e < 256; ++e) {
        block[0] = static_cast<std::byte>(e);
        for (int i = 0; i < 16; ++i) block[1 + i] = static_cast<std::byte>(i | (15 - i) << 4);
        table.to_float(DType::mxfp4, block, x.data(), 32);
        for (std::size_t i = 0; i < 32; ++i) {
            const double exact = std::ldexp(reference::e2m1[i < 16 ? i : 31 - i], e - 127);
            const float expected = static_cast<float>(exact);  // from 2^128 on infinity
            check::equal(x[i], expected, "e " + std::to_string(e));
        }
    }
}

KERNEL_TEST(scales_may_be_any_half) {
    for (const DType type : matrices::quantized_types) {
        auto row = matrices::random(type, 1, 256 * 64, 1);
        const auto halves = reference::halves_of_block(type);
        const std::size_t size = block_size(type).bytes;
        std::uint16_t bits = 0;
        for (std::size_t at = 0; at < row.bytes.size(); at += size)
            for (const std::size_t half : halves)
                reference::write_bits(bits = static_cast<std::uint16_t>(bits + 511),
                                      &row.bytes[at + half]);
        matrices::decode(row);
        Floats x(row.values.size());
        table.to_float(type, row.bytes.data(), x.data(), x.size());
        for (std::size_t i = 0; i < x.size(); ++i)
            check::near(matrices::name(type), x[i], row.values[i], ulp(row.values[i]) / 2, "at ",
                        i);
    }
}
