// Packing, and products with float32 activations, within the bounds of kernels.h.

#include "matrices.h"

using namespace arrays;
using matrices::block_size;
using matrices::Matrix;
using tensor_ops::DType;
using tensor_ops::KernelTable;

namespace {

using Bytes = Array<std::byte>;
using Where = std::source_location;

const std::size_t row_counts[] = {1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 64, 65, 100};

}  // namespace

// ---- packing -----------------------------------------------------------------------------------

KERNEL_TEST(a_group_takes_whole_cache_lines) {
    for (const DType type : matrices::all_types) {
        check::that(table.group_rows(type) > 0, "rows");
        for (const std::size_t blocks : {0u, 1u, 3u, 33u})
            check::equal(table.group_bytes(type, blocks * block_size(type).elements) % 64,
                         std::size_t{0}, matrices::name(type));
    }
}

KERNEL_TEST(unpacking_gives_back_the_exact_weights) {
    for (const DType type : matrices::all_types) {
        for (const std::size_t n : row_counts) {
            const std::size_t k = matrices::in_blocks(type, 96);
            const Matrix w = matrices::random(type, n, k, 1, n % 16);
            const auto packed = matrices::pack(table, w);
            Floats y(n * k);
            table.unpack(packed.view, 0, n, y.data());
            for (std::size_t i = 0; i < y.size(); ++i)  // a sum with a minimum is rounded once
                check::near(matrices::name(type), y[i], w.values[i], ulp(w.values[i]) / 2, "at ",
                            i);
        }
    }
}

KERNEL_TEST(unpacking_starts_and_ends_at_any_row) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const Matrix w = matrices::random(type, 40, k, 1);
        const auto packed = matrices::pack(table, w);
        Floats all(40 * k), part(9 * k);
        table.unpack(packed.view, 0, 40, all.data());
        table.unpack(packed.view, 13, 22, part.data());
        check::that(std::memcmp(part.data(), &all[13 * k], 9 * k * 4) == 0, matrices::name(type));
    }
}

KERNEL_TEST(packing_by_parts_gives_the_same_bytes) {
    for (const DType type : matrices::all_types) {
        const Matrix w = matrices::random(type, 100, matrices::in_blocks(type, 64), 1);
        const auto whole = matrices::pack(table, w);
        Bytes parts(whole.bytes.size());
        for (std::size_t g = 0; g < whole.groups; ++g)
            table.pack(type, w.bytes.data(), w.n, w.k, g, g + 1, parts.data());
        check::that(same_bytes(parts, whole.bytes), matrices::name(type));
    }
}

KERNEL_TEST(packing_writes_each_byte_of_a_group_and_fills_the_last_with_rows_of_zeros) {
    for (const DType type : matrices::all_types) {
        const std::size_t group = table.group_rows(type), k = matrices::in_blocks(type, 70);
        for (const std::size_t n : {std::size_t{1}, group + 3}) {
            const Matrix w = matrices::random(type, n, k, 1);
            const auto over_ones = matrices::pack(table, w);
            Bytes over_zeros(over_ones.bytes.size());
            std::memset(over_zeros.data(), 0, over_zeros.size());
            table.pack(type, w.bytes.data(), n, k, 0, over_ones.groups, over_zeros.data());
            check::that(same_bytes(over_zeros, over_ones.bytes), matrices::name(type));
            auto all_rows = over_ones.view;
            all_rows.n = over_ones.groups * group;
            Floats y((all_rows.n - n) * k);
            table.unpack(all_rows, n, all_rows.n, y.data());
            for (const float value : y) check::equal(value, 0.0f, matrices::name(type));
        }
    }
}

// ---- float32 activations -----------------------------------------------------------------------

namespace {

void check_f32(const KernelTable& table, const Matrix& w, const Floats& x, std::size_t rows,
               Where where = Where::current()) {
    const auto packed = matrices::pack(table, w);
    Floats y(rows * w.n, 5);
    table.linear_f32(packed.view, x.data(), rows, 0, packed.groups, y.data(), w.n);
    const auto bound = [&](const float* row, std::size_t j) {
        return matrices::float_bound(row, &w.sizes[j * w.k], w.k);
    };
    matrices::check_products(w, x, rows, y, bound, where);
}

}  // namespace

KERNEL_TEST(f32_of_every_number_of_outputs) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 96);
        for (const std::size_t n : row_counts)
            check_f32(table, matrices::random(type, n, k, 1), normal(3 * k, 2, 1, n % 16), 3);
    }
}

// One row reads a matrix in four streams, of which the last may end with a part of a group.
KERNEL_TEST(f32_of_one_row_and_every_number_of_groups_of_which_the_last_is_a_part) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64), group = table.group_rows(type);
        for (std::size_t groups = 1; groups <= 9; ++groups)
            check_f32(table, matrices::random(type, groups * group - 1, k, 1), normal(k, 2), 1);
    }
}

KERNEL_TEST(f32_of_every_number_of_rows) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const Matrix w = matrices::random(type, 19, k, 1);
        for (std::size_t rows = 0; rows <= 35; ++rows)
            check_f32(table, w, normal(rows * k, 2), rows);
    }
}

KERNEL_TEST(f32_of_every_depth) {
    for (const DType type : matrices::all_types) {
        for (const std::size_t blocks : {0u, 1u, 2u, 3u, 7u, 8u, 11u}) {
            const std::size_t k = blocks * block_size(type).elements;
            for (const std::size_t rows : {1u, 5u})
                check_f32(table, matrices::random(type, 19, k, 1), normal(rows * k, 2), rows);
        }
    }
}

KERNEL_TEST(f32_beyond_one_block_of_the_kernel) {
    for (const DType type : matrices::float_types) {
        const std::size_t n = 530, k = 544, rows = 15;
        check_f32(table, matrices::random(type, n, k, 1), normal(rows * k, 2), rows);
    }
}

KERNEL_TEST(f32_by_some_groups_is_the_same_and_writes_their_columns_alone) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const std::size_t group = table.group_rows(type), n = 3 * group + 1, stride = n + 3;
        const Matrix w = matrices::random(type, n, k, 1);
        const auto packed = matrices::pack(table, w);
        const Floats x = normal(5 * k, 2);
        Floats whole(5 * stride);
        table.linear_f32(packed.view, x.data(), 5, 0, packed.groups, whole.data(), stride);
        for (const std::size_t first : {1u, 3u}) {
            const std::size_t last = std::min(first + 2, packed.groups);
            Floats y(5 * stride);
            table.linear_f32(packed.view, x.data(), 5, first, last, y.data(), stride);
            matrices::check_columns(whole, y, stride, first * group, std::min(last * group, n));
        }
    }
}

KERNEL_TEST(f32_gives_a_row_the_same_whatever_rows_are_beside_it) {
    constexpr std::size_t rows = 19, n = 165;
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 512);
        const auto packed = matrices::pack(table, matrices::random(type, n, k, 1));
        const Floats x = normal(rows * k, 2);
        Floats together(rows * n), alone(n);
        table.linear_f32(packed.view, x.data(), rows, 0, packed.groups, together.data(), n);
        for (std::size_t r = 0; r < rows; ++r) {
            table.linear_f32(packed.view, &x[r * k], 1, 0, packed.groups, alone.data(), n);
            check::that(std::memcmp(alone.data(), &together[r * n], n * 4) == 0,
                        matrices::name(type));
        }
    }
}

KERNEL_TEST(nan_and_infinity_in_a_weight_reach_its_output_alone) {
    constexpr std::size_t n = 19, rows = 3, row = 11;
    for (const DType type : matrices::half_types) {
        const std::uint16_t exponent = type == DType::f16 ? 0x7c00 : 0x7f80;
        for (const float bad : {infinity, -infinity, not_a_number}) {
            Matrix w = matrices::random(type, n, 70, 1);
            const auto bits = static_cast<std::uint16_t>(exponent | (bad < 0 ? 0x8000 : 0) |
                                                         (std::isnan(bad) ? 0x40 : 0));
            std::memcpy(&w.bytes[(row * 70 + 5) * 2], &bits, 2);
            const auto packed = matrices::pack(table, w);
            const Floats x = filled(rows * 70, 1.0f);
            Floats y(rows * n), plain(rows * n), scratch(table.matmul_scratch_floats);
            table.linear_f32(packed.view, x.data(), rows, 0, packed.groups, y.data(), n);
            table.linear_plain(type, w.bytes.data(), x.data(), rows, 70, 0, n, plain.data(), n,
                               scratch.data());
            for (std::size_t i = 0; i < rows * n; ++i)
                for (const float value : {y[i], plain[i]})
                    if (i % n != row)
                        check::that(std::isfinite(value), "another output");
                    else if (std::isnan(bad))
                        check::that(std::isnan(value), "NaN is hidden");
                    else
                        check::equal(value, bad, matrices::name(type));
        }
    }
}

KERNEL_TEST(f32_of_no_outputs_does_nothing) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64);
        check_f32(table, matrices::random(type, 0, k, 1), normal(2 * k, 2), 2);
    }
}

KERNEL_TEST(f32_nan_and_infinity_reach_the_outputs_of_their_row_alone) {
    for (const DType type : matrices::all_types) {
        const std::size_t k = matrices::in_blocks(type, 64);
        const auto packed_matrix = matrices::random(type, 20, k, 1);
        const auto packed = matrices::pack(table, packed_matrix);
        for (const float bad : {not_a_number, infinity}) {
            Floats x = normal(4 * k, 2), y(4 * 20);
            x[2 * k + 33] = bad;
            table.linear_f32(packed.view, x.data(), 4, 0, packed.groups, y.data(), 20);
            for (std::size_t i = 0; i < y.size(); ++i)
                check::equal(std::isfinite(y[i]), i / 20 != 2, matrices::name(type));
        }
    }
}

// ---- plain weights -----------------------------------------------------------------------------

namespace {

Floats linear_plain(const KernelTable& table, const Matrix& w, const Floats& x, std::size_t rows,
                    std::size_t first, std::size_t last) {
    Floats y(rows * w.n, 3), scratch(table.matmul_scratch_floats, 1);
    table.linear_plain(w.type, w.bytes.data(), x.data(), rows, w.k, first, last, y.data(), w.n,
                       scratch.data());
    return y;
}

void check_plain(const KernelTable& table, const Matrix& w, const Floats& x, std::size_t rows,
                 Where where = Where::current()) {
    const Floats y = linear_plain(table, w, x, rows, 0, w.n);
    const auto bound = [&](const float* row, std::size_t j) {
        return matrices::float_bound(row, &w.sizes[j * w.k], w.k);
    };
    matrices::check_products(w, x, rows, y, bound, where);
}

}  // namespace

KERNEL_TEST(plain_weights_of_every_depth_at_any_start) {
    for (const DType type : matrices::float_types) {
        for (const std::size_t k : sizes()) {
            const Matrix w = matrices::random(type, 6, k, 1, 4 * (k % 16));
            for (const std::size_t rows : {2u, 9u})
                check_plain(table, w, normal(rows * k, 2, 1, (k + 7) % 16), rows);
        }
    }
}

KERNEL_TEST(plain_weights_of_every_number_of_outputs) {
    for (const DType type : matrices::float_types)
        for (std::size_t n = 0; n <= 70; ++n)
            for (const std::size_t rows : {1u, 7u})
                check_plain(table, matrices::random(type, n, 33, 1), normal(rows * 33, 2), rows);
}

KERNEL_TEST(plain_weights_for_every_number_of_rows) {
    for (const DType type : matrices::float_types) {
        const Matrix w = matrices::random(type, 35, 20, 1);
        for (std::size_t rows = 0; rows <= 40; ++rows)
            check_plain(table, w, normal(rows * 20, 2), rows);
    }
}

KERNEL_TEST(plain_weights_beyond_one_block_of_the_kernel) {
    for (const DType type : matrices::float_types)
        for (const std::size_t rows : {15u, 131u})
            check_plain(table, matrices::random(type, 150, 515, 1), normal(rows * 515, 2), rows);
}

KERNEL_TEST(plain_weights_by_some_rows_give_the_same_and_write_their_columns_alone) {
    for (const DType type : matrices::float_types) {
        for (const std::size_t rows : {1u, 3u, 9u}) {
            const Matrix w = matrices::random(type, 90, 33, 1);
            const Floats x = normal(rows * 33, 2), whole = linear_plain(table, w, x, rows, 0, 90);
            const std::size_t ranges[][2] = {{0, 32}, {32, 90}, {5, 5}, {5, 17}, {89, 90}};
            for (const auto& [first, last] : ranges)
                matrices::check_columns(whole, linear_plain(table, w, x, rows, first, last), 90,
                                        first, last);
        }
    }
}
