// matmul within the bound of kernels.h.

#include "matrices.h"

using namespace arrays;
using tensor_ops::KernelTable;

namespace {

using Where = std::source_location;

struct Shape {
    std::size_t m, k, n;
    std::size_t a_gap = 0, b_gap = 0, c_gap = 0;  // floats between the rows
    std::size_t offset = 0;                       // of the arrays' starts
};

Floats multiply(const KernelTable& table, const Shape& s, const Floats& a, const Floats& b,
                std::size_t first, std::size_t last) {
    const std::size_t c_stride = s.n + s.c_gap;
    Floats c(s.m * c_stride, (s.offset + 5) % 16), scratch(table.matmul_scratch_floats, 1);
    table.matmul(a.data(), s.k + s.a_gap, b.data(), s.n + s.b_gap, c.data(), c_stride, s.m, s.k,
                 first, last, scratch.data());
    return c;
}

void check_matmul(const KernelTable& table, const Shape& s, const Floats& a, const Floats& b,
                  Where where = Where::current()) {
    const Floats c = multiply(table, s, a, b, 0, s.n);
    const std::size_t a_stride = s.k + s.a_gap, b_stride = s.n + s.b_gap, c_stride = s.n + s.c_gap;
    reference::Values column(s.k);
    for (std::size_t j = 0; j < s.n; ++j) {
        for (std::size_t i = 0; i < s.k; ++i) column[i] = b[i * b_stride + j];
        for (std::size_t r = 0; r < s.m; ++r) {
            const float* row = a.data() + r * a_stride;
            check::near({"matmul", where}, c[r * c_stride + j],
                        reference::dot(row, column.data(), s.k),
                        matrices::float_bound(row, column.data(), s.k), s.m, " x ", s.k, " x ", s.n,
                        " at ", r, ", ", j);
        }
    }
    matrices::check_columns(c, c, c_stride, 0, s.n, where);  // nothing in the gaps
}

Floats random_a(const Shape& s) { return normal(s.m * (s.k + s.a_gap), 1, 1, s.offset); }
Floats random_b(const Shape& s) { return normal(s.k * (s.n + s.b_gap), 2, 1, (s.offset + 7) % 16); }

void check_matmul(const KernelTable& table, const Shape& s, Where where = Where::current()) {
    check_matmul(table, s, random_a(s), random_b(s), where);
}

}  // namespace

KERNEL_TEST(every_number_of_columns_at_any_start) {
    for (const std::size_t m : {1u, 7u, 27u})
        for (std::size_t n = 0; n <= 70; ++n)
            check_matmul(table, {.m = m, .k = 33, .n = n, .offset = n % 16});
}

KERNEL_TEST(every_number_of_rows) {
    for (std::size_t m = 0; m <= 60; ++m) check_matmul(table, {.m = m, .k = 20, .n = 35});
}

KERNEL_TEST(every_depth) {
    for (const std::size_t m : {1u, 5u, 27u})
        for (const std::size_t k : sizes()) check_matmul(table, {.m = m, .k = k, .n = 19});
}

KERNEL_TEST(sizes_beyond_one_block_of_the_kernel) {
    check_matmul(table, {.m = 30, .k = 515, .n = 530});
    check_matmul(table, {.m = 3, .k = 515, .n = 530});
    check_matmul(table, {.m = 515, .k = 20, .n = 140});
}

KERNEL_TEST(rows_may_lie_apart) {
    for (const std::size_t m : {2u, 9u, 27u})
        check_matmul(table, {.m = m, .k = 21, .n = 37, .a_gap = 5, .b_gap = 3, .c_gap = 7});
}

KERNEL_TEST(some_columns_are_the_same_and_no_other_is_written) {
    for (const std::size_t m : {2u, 9u, 27u}) {
        const Shape s{.m = m, .k = 21, .n = 90};
        const Floats a = random_a(s), b = random_b(s), whole = multiply(table, s, a, b, 0, s.n);
        const std::size_t ranges[][2] = {{0, 32}, {32, 90}, {5, 5}, {3, 50}, {89, 90}};
        for (const auto& [first, last] : ranges)
            matrices::check_columns(whole, multiply(table, s, a, b, first, last), s.n, first, last);
    }
}

KERNEL_TEST(a_row_among_many_has_the_same_bits_however_many_they_are) {
    const Shape s{.m = 70, .k = 300, .n = 150};
    const Floats a = random_a(s), b = random_b(s), whole = multiply(table, s, a, b, 0, s.n);
    const Shape fewer{.m = 31, .k = s.k, .n = s.n};
    const Floats c = multiply(table, fewer, a, b, 0, s.n);
    for (std::size_t i = 0; i < fewer.m * s.n; ++i)
        check::equal(c[i], whole[i], "an element of 31 rows, and of 70");
}

KERNEL_TEST(denormal_and_huge_numbers) {
    for (const double scale : {1e-42, 1e-30, 1e-20, 1e17}) {
        for (const std::size_t m : {2u, 9u, 27u}) {
            const Shape s{.m = m, .k = 40, .n = 20};
            check_matmul(table, s, normal(s.m * s.k, 1, scale), normal(s.k * s.n, 2, scale));
        }
    }
}

KERNEL_TEST(nan_reaches_its_row_and_its_column_alone) {
    for (const std::size_t m : {3u, 9u, 27u}) {
        const Shape s{.m = m, .k = 30, .n = 40};
        Floats a = random_a(s), b = random_b(s);
        a[2 * 30 + 29] = not_a_number;
        b[3 * 40 + 39] = not_a_number;
        check_matmul(table, s, a, b);
    }
}

KERNEL_TEST(infinity_reaches_its_row_alone) {
    for (const std::size_t m : {3u, 9u, 27u}) {
        const Shape s{.m = m, .k = 30, .n = 40};
        Floats a = random_a(s), b = random_b(s);
        a[2 * 30 + 7] = infinity;
        for (float& v : b) v = std::abs(v);
        check_matmul(table, s, a, b);
    }
}
