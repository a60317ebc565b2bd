// Products with quantised activations: the rounding of the activations, and no error beside it.

#include "matrices.h"

using namespace arrays;
using matrices::block_size;
using matrices::Matrix;
using tensor_ops::Activations;
using tensor_ops::DType;
using tensor_ops::KernelTable;

namespace {

using Bytes = Array<std::byte>;
using Where = std::source_location;

const std::size_t row_counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100};

const struct Kind {
    const char* name;
    Activations kind;
    double levels;  // d = max|x| / levels over each block of 32
    double off;     // how many d a number may be off by
    double share;   // the bound on the error of the output vector, as a share of its norm
} kinds[] = {
    {"q8", Activations::q8, 127, 0.5, 1e-2},
    // The lower digit is never -128: then the code is off by one more.
    {"q16", Activations::q16, 32512, 1.5, 1e-4},
};

Bytes quantize(const KernelTable& table, const Kind& kind, const Floats& x, std::size_t rows,
               std::size_t k) {
    // No alignment is asked of the activations: an odd address.
    Bytes xq(rows * (k / 32) * tensor_ops::quantized_block_bytes(kind.kind), 1);
    table.quantize_activations(kind.kind, x.data(), rows, k, 0, rows, xq.data());
    return xq;
}

Floats linear_quantized(const KernelTable& table, const Kind& kind, const Matrix& w,
                        const Floats& x, std::size_t rows) {
    const auto packed = matrices::pack(table, w);
    const Bytes xq = quantize(table, kind, x, rows, w.k);
    Floats y(rows * w.n, 5);
    table.linear_quantized(kind.kind, packed.view, xq.data(), rows, 0, packed.groups, y.data(),
                           w.n);
    return y;
}

// What the rounding of x may change, and float32's share.
double quantized_bound(const Kind& kind, const float* x, const double* values, const double* sizes,
                       std::size_t k) {
    double bound = matrices::float_bound(x, sizes, k);
    for (std::size_t b = 0; b < k; b += 32) {
        double largest = 0;
        for (std::size_t i = b; i < b + 32; ++i)
            largest = std::max(largest, std::abs(static_cast<double>(x[i])));
        // A block too small for the inverse of its d counts as zeros.
        const double step = largest <= kind.levels * 1.001e-37
                                ? largest
                                : (kind.off + 1e-3) * largest / kind.levels;
        for (std::size_t i = b; i < b + 32; ++i)
            bound += step * (std::abs(values[i]) + static_cast<double>(k) * roundoff * sizes[i]);
    }
    return bound;
}

void check_quantized(const KernelTable& table, const Kind& kind, const Matrix& w, const Floats& x,
                     std::size_t rows, Where where = Where::current()) {
    const Floats y = linear_quantized(table, kind, w, x, rows);
    const auto bound = [&](const float* row, std::size_t j) {
        return quantized_bound(kind, row, &w.values[j * w.k], &w.sizes[j * w.k], w.k);
    };
    matrices::check_products(w, x, rows, y, bound, where);
}

template <class F>
void for_each_kind_and_type(F&& f) {
    for (const Kind& kind : kinds)
        for (const DType type : matrices::quantized_types) f(kind, type);
}

}  // namespace

KERNEL_TEST(every_number_of_outputs) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 96);
        for (const std::size_t n : row_counts)
            check_quantized(table, kind, matrices::random(type, n, k, 1),
                            normal(3 * k, 2, 1, n % 16), 3);
    });
}

KERNEL_TEST(every_number_of_rows) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const Matrix w = matrices::random(type, 19, k, 1);
        for (std::size_t rows = 0; rows <= 35; rows += rows < 18 || rows > 29 ? 1 : 5)
            check_quantized(table, kind, w, normal(rows * k, 2), rows);
    });
}

KERNEL_TEST(every_number_of_blocks) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        for (const std::size_t blocks : {0u, 1u, 2u, 3u, 5u, 9u}) {
            const std::size_t k = blocks * block_size(type).elements;
            check_quantized(table, kind, matrices::random(type, 19, k, 1), normal(3 * k, 2), 3);
        }
    });
}

KERNEL_TEST(sizes_beyond_one_block_of_the_kernel) {
    for (const Kind& kind : kinds)
        for (const DType type : {DType::q8_0, DType::q4_1, DType::q6_k, DType::q2_k, DType::iq1_m})
            for (const auto& [rows, k] : {std::pair{100u, 4096u}, std::pair{263u, 256u}})
                check_quantized(table, kind, matrices::random(type, 13, k, 1), normal(rows * k, 2),
                                rows);
}

KERNEL_TEST(gaussian_activations_change_the_output_by_a_small_share) {
    for (const Kind& kind : kinds) {
        for (const DType type : matrices::simple_types) {
            const std::size_t shapes[][2] = {{64, 32}, {100, 96}, {48, 576}, {32, 1536}};
            for (const auto& [n, k] : shapes) {
                const Matrix w = matrices::normal(type, n, k, 1);
                const Floats x = normal(4 * k, 2), y = linear_quantized(table, kind, w, x, 4);
                for (std::size_t r = 0; r < 4; ++r) {
                    double error = 0, norm = 0;
                    for (std::size_t j = 0; j < n; ++j) {
                        const double exact = reference::dot(&x[r * k], &w.values[j * k], k);
                        error += std::pow(y[r * n + j] - exact, 2);
                        norm += exact * exact;
                    }
                    check::that(std::sqrt(error / norm) < kind.share,
                                std::string(matrices::name(type)) + " by " + kind.name + ": " +
                                    check::text(std::sqrt(error / norm)));
                }
            }
        }
    }
}

// Activations that are multiples of d, under scales that are small whole numbers: all products are
// whole, and their sums below 2^24.
KERNEL_TEST(whole_numbers_give_exact_products) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 160), n = 35, rows = 39;
        Matrix w = matrices::random(type, n, k, 1);
        for (std::size_t at = 0; at < w.bytes.size(); at += block_size(type).bytes)
            reference::write_scales(type, 1, -5, &w.bytes[at]);
        matrices::decode(w);
        Floats x = whole_numbers(rows * k, 2, -7, 7);
        for (std::size_t b = 0; b < x.size(); b += 32) x[b] = 127;
        const Floats y = linear_quantized(table, kind, w, x, rows);
        for (std::size_t i = 0; i < y.size(); ++i)
            check::near({matrices::name(type)}, y[i],
                        reference::dot(&x[i / n * k], &w.values[i % n * k], k), 0, "by ", kind.name,
                        " at ", i);
    });
}

// The largest sums that steps in 16 bit could overflow on: 127 * -128, 127 * 15 everywhere.
KERNEL_TEST(the_largest_codes_do_not_overflow) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        for (const int code : {0x80, 0x7f, 0xff, 0x00}) {
            Matrix w = matrices::random(type, 17, 256, 1);
            for (std::byte& b : w.bytes) b = static_cast<std::byte>(code);
            for (std::size_t at = 0; at < w.bytes.size(); at += block_size(type).bytes)
                reference::write_scales(type, 0.1, 0.1, &w.bytes[at]);
            matrices::decode(w);
            // The last one has a lower digit of -127 in the 16-bit form.
            for (const float value : {1.0f, -1.0f, 32129.0f / 32512, -32385.0f / 32512}) {
                for (const std::size_t rows : {3u, 32u}) {
                    Floats x = filled(rows * 256, value);
                    for (std::size_t b = 0; b < x.size(); b += 32) x[b] = 1;
                    check_quantized(table, kind, w, x, rows);
                }
            }
        }
    });
}

// The sum of the codes takes off what the weights' codes have too much, to the last bit, also where
// a lower digit of -128 has become -127.
KERNEL_TEST(weights_of_zero_give_zero_whatever_the_activations) {
    Matrix w = matrices::random(DType::q4_0, 17, 256, 1);
    for (std::size_t at = 0; at < w.bytes.size(); ++at)  // scales stay, each code is 8
        if (at % 18 >= 2) w.bytes[at] = std::byte{0x88};
    Floats x = normal(37 * 256, 2);
    for (std::size_t i = 0; i < 256; ++i) x[i] = i % 32 ? -32385.0f / 32512 : 1.0f;
    for (const Kind& kind : kinds)
        for (const std::size_t rows : {1u, 5u, 37u})
            for (const float y : linear_quantized(table, kind, w, x, rows))
                check::equal(y, 0.0f, kind.name);
}

KERNEL_TEST(activations_of_every_size) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 96);
        const Matrix w = matrices::random(type, 20, k, 1);
        check_quantized(table, kind, w, filled(2 * k, 0), 2);
        for (const double scale : {1e-44, 1e-40, 1e-38, 1e-36, 1e-34, 1e-32, 1e-10, 1e10, 1e30})
            check_quantized(table, kind, w, normal(5 * k, 2, scale), 5);
        Floats alone = filled(2 * k, 0);    // 127 / 1e-38 is no float32: codes of it would be the
        alone[0] = alone[k + 31] = 1e-38f;  // largest integers, and add up to one of them on ARM
        check_quantized(table, kind, w, alone, 2);
        Floats mixed = normal(2 * k, 2);  // blocks of very different sizes
        for (std::size_t i = 0; i < 32; ++i) {
            mixed[i] *= 1e-6f;
            mixed[32 + i] *= 1e6f;
        }
        check_quantized(table, kind, w, mixed, 2);
    });
}

KERNEL_TEST(nan_and_infinity_spoil_their_row_alone) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const Matrix w = matrices::random(type, 20, k, 1);
        for (const std::size_t rows : {1u, 5u, 37u}) {
            const Floats good = linear_quantized(table, kind, w, normal(rows * k, 2), rows);
            for (const float bad : {not_a_number, infinity, -infinity}) {
                for (const std::size_t at : {std::size_t{0}, std::size_t{31}, k - 1}) {
                    Floats x = normal(rows * k, 2);
                    x[rows / 2 * k + at] = bad;
                    const Floats y = linear_quantized(table, kind, w, x, rows);
                    for (std::size_t i = 0; i < y.size(); ++i) {
                        if (i / 20 == rows / 2)
                            check::that(std::isnan(y[i]),
                                        std::string(matrices::name(type)) + " hides it");
                        else
                            check::equal(y[i], good[i], "another row");
                    }
                }
            }
        }
    });
}

KERNEL_TEST(some_groups_are_the_same_and_write_their_columns_alone) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const std::size_t group = table.group_rows(type), n = 3 * group + 1, stride = n + 3;
        constexpr std::size_t rows = 37;
        const auto matrix = matrices::random(type, n, k, 1);
        const auto packed = matrices::pack(table, matrix);
        const Bytes xq = quantize(table, kind, normal(rows * k, 2), rows, k);
        const auto multiply = [&](std::size_t first, std::size_t last, Floats& y) {
            table.linear_quantized(kind.kind, packed.view, xq.data(), rows, first, last, y.data(),
                                   stride);
        };
        Floats whole(rows * stride);
        multiply(0, packed.groups, whole);
        for (const std::size_t first : {1u, 3u}) {
            const std::size_t last = std::min(first + 2, packed.groups);
            Floats y(rows * stride);
            multiply(first, last, y);
            matrices::check_columns(whole, y, stride, first * group, std::min(last * group, n));
        }
    });
}

KERNEL_TEST(a_row_is_the_same_among_any_number_of_rows) {
    for_each_kind_and_type([&](const Kind& kind, DType type) {
        const std::size_t k = matrices::in_blocks(type, 288), n = 2 * table.group_rows(type) + 1;
        const Matrix w = matrices::random(type, n, k, 1);
        const Floats x = normal(33 * k, 2);
        const Floats all = linear_quantized(table, kind, w, x, 33);
        for (const std::size_t rows : {1u, 2u, 5u, 12u}) {
            const Floats few = linear_quantized(table, kind, w, x, rows);
            for (std::size_t i = 0; i < few.size(); ++i)
                check::equal(few[i], all[i],
                             std::string(matrices::name(type)) + " by " + kind.name);
        }
    });
}

KERNEL_TEST(activations_quantised_by_parts_are_the_same_bytes) {
    for (const Kind& kind : kinds) {
        for (const std::size_t rows : {1u, 7u, 19u, 32u}) {
            const Floats x = normal(rows * 96, 1);
            const Bytes whole = quantize(table, kind, x, rows, 96);
            Bytes parts(whole.size());
            for (std::size_t r = 0; r < rows; r += table.activation_tile)
                table.quantize_activations(kind.kind, x.data(), rows, 96, r,
                                           std::min(r + table.activation_tile, rows), parts.data());
            check::that(same_bytes(parts, whole), kind.name);
        }
    }
}
