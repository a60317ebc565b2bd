// rms_norm, layer_norm, softmax and rope within the bounds of kernels.h.

#include "arrays.h"
#include "reference.h"

using namespace arrays;
using tensor_ops::KernelTable;

// ---- rms_norm ----------------------------------------------------------------------------------

namespace {

void check_rms_norm(const KernelTable& table, const Floats& x, const Floats& weight, float eps,
                    std::size_t offset = 0,
                    std::source_location where = std::source_location::current()) {
    const std::size_t n = weight.size(), rows = x.size() / n;
    Floats y(x.size(), offset), streamed(x.size(), offset);
    table.rms_norm(x.data(), weight.data(), eps, y.data(), rows, n, false);
    table.rms_norm(x.data(), weight.data(), eps, streamed.data(), rows, n, true);
    check::that(same_bytes(y, streamed), "streamed", where);
    for (std::size_t r = 0; r < rows; ++r) {
        const auto exact = reference::rms_norm(x.data() + r * n, weight.data(), eps, n);
        for (std::size_t i = 0; i < n; ++i)
            check::near({"rms_norm", where}, y[r * n + i], exact[i],
                        std::max(1e-6 * std::abs(exact[i]), tiny), "of ", n, " at ", r, ", ", i);
    }
}

}  // namespace

KERNEL_TEST(rms_norm_of_every_size_at_any_start) {
    for (const std::size_t n : sizes()) {
        if (n == 0) continue;
        const Floats x = normal(3 * n, 1, 1, n % 16), weight = normal(n, 2, 1, (n + 7) % 16);
        check_rms_norm(table, x, weight, 1e-6f, (n + 3) % 16);
    }
}

KERNEL_TEST(rms_norm_of_long_rows) {
    check_rms_norm(table, normal(65536, 1), normal(65536, 2), 1e-6f);
}

// Where all numbers are equal, all roundings go the same way.
KERNEL_TEST(rms_norm_of_long_rows_of_equal_numbers) {
    for (const float value : {0.1f, 0.7f, 1.7f})
        for (const std::size_t n : {4096u, 16384u, 65536u})
            check_rms_norm(table, filled(n, value), filled(n, 1), 0);
}

KERNEL_TEST(rms_norm_of_numbers_of_every_size) {
    for (const double scale : {1e-44, 1e-40, 1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e25, 1e37})
        for (const float eps : {0.0f, 1e-6f})
            check_rms_norm(table, normal(2 * 70, 1, scale), normal(70, 2), eps);
}

KERNEL_TEST(rms_norm_of_the_largest_numbers) {
    for (const std::size_t n : {1u, 3u, 70u, 4097u})
        check_rms_norm(table, filled(n, 3.4028234e38f), filled(n, 1), 1e-6f);
}

KERNEL_TEST(rms_norm_of_zeros_is_zeros) {
    check_rms_norm(table, filled(2 * 33, 0), normal(33, 1), 1e-6f);
}

KERNEL_TEST(rms_norm_spreads_nan_over_its_row_alone) {
    Floats x = normal(3 * 21, 1);
    x[21 + 20] = not_a_number;
    check_rms_norm(table, x, normal(21, 2), 1e-6f);
}

KERNEL_TEST(rms_norm_of_infinity_is_nan_there_and_zero_elsewhere) {
    Floats x = normal(21, 1);
    x[4] = infinity;
    check_rms_norm(table, x, normal(21, 2), 1e-6f);
}

KERNEL_TEST(rms_norm_in_place_gives_the_same) {
    for (const std::size_t n : {1u, 16u, 70u, 4097u}) {
        const Floats weight = normal(n, 2);
        Floats x = normal(3 * n, 1), y(3 * n);
        table.rms_norm(x.data(), weight.data(), 1e-6f, y.data(), 3, n, false);
        table.rms_norm(x.data(), weight.data(), 1e-6f, x.data(), 3, n, false);
        check::that(same_bytes(x, y), "in place");
    }
}

KERNEL_TEST(rms_norm_of_no_rows_or_no_elements_does_nothing) {
    const Floats none(0), weight = normal(5, 1);
    Floats y(0);
    table.rms_norm(none.data(), weight.data(), 1e-6f, y.data(), 0, 5, false);
    table.rms_norm(none.data(), none.data(), 1e-6f, y.data(), 3, 0, false);
}

// ---- layer_norm --------------------------------------------------------------------------------

namespace {

void check_layer_norm(const KernelTable& table, const Floats& x, const Floats& weight, float eps,
                      std::size_t offset = 0,
                      std::source_location where = std::source_location::current()) {
    const std::size_t n = weight.size(), rows = x.size() / n;
    Floats y(x.size(), offset), streamed(x.size(), offset);
    table.layer_norm(x.data(), weight.data(), eps, y.data(), rows, n, false);
    table.layer_norm(x.data(), weight.data(), eps, streamed.data(), rows, n, true);
    check::that(same_bytes(y, streamed), "streamed", where);
    for (std::size_t r = 0; r < rows; ++r) {
        const auto exact = reference::layer_norm(x.data() + r * n, weight.data(), eps, n);
        for (std::size_t i = 0; i < n; ++i)
            check::near({"layer_norm", where}, y[r * n + i], exact[i],
                        std::max(1e-6 * (std::abs(exact[i]) + std::abs(weight[i])), tiny), "of ", n,
                        " at ", r, ", ", i);
    }
}

// Numbers around a mean.
Floats around(float mean, std::size_t n, double scale) {
    Floats x = normal(n, 1, scale);
    for (float& v : x) v += mean;
    return x;
}

}  // namespace

KERNEL_TEST(layer_norm_of_every_size_at_any_start) {
    for (const std::size_t n : sizes()) {
        if (n == 0) continue;
        const Floats x = normal(3 * n, 1, 1, n % 16), weight = normal(n, 2, 1, (n + 7) % 16);
        check_layer_norm(table, x, weight, 1e-5f, (n + 3) % 16);
    }
}

KERNEL_TEST(layer_norm_of_long_rows) {
    check_layer_norm(table, normal(65536, 1), normal(65536, 2), 1e-5f);
}

// Summed in float32, the mean would be wrong by more than the numbers differ.
KERNEL_TEST(layer_norm_of_numbers_that_differ_little_from_a_large_mean) {
    for (const float mean : {100.0f, -3000.0f, 1e5f})
        for (const std::size_t n : {33u, 4096u, 65536u})
            for (const float eps : {0.0f, 1e-5f})
                check_layer_norm(table, around(mean, n, 0.1), normal(n, 2), eps);
}

KERNEL_TEST(layer_norm_of_numbers_of_every_size) {
    for (const double scale : {1e-44, 1e-38, 1e-30, 1e-19, 1e-10, 1e10, 1e19, 1e25, 1e37})
        check_layer_norm(table, normal(2 * 70, 1, scale), normal(70, 2), 1e-6f);
}

KERNEL_TEST(layer_norm_of_the_largest_numbers) {
    for (const std::size_t n : {2u, 70u, 4097u}) {
        Floats x = filled(n, 3.4028234e38f);
        x[n / 2] = -x[n / 2];
        check_layer_norm(table, x, filled(n, 1), 1e-6f);
    }
}

KERNEL_TEST(layer_norm_of_equal_numbers_is_zeros) {
    for (const float value : {0.0f, 0.1f, -7e5f})
        check_layer_norm(table, filled(2 * 33, value), normal(33, 1), 1e-5f);
}

KERNEL_TEST(layer_norm_spreads_nan_over_its_row_alone) {
    Floats x = normal(3 * 21, 1);
    x[21 + 20] = not_a_number;
    check_layer_norm(table, x, normal(21, 2), 1e-5f);
}

KERNEL_TEST(layer_norm_in_place_gives_the_same) {
    for (const std::size_t n : {1u, 16u, 70u, 4097u}) {
        const Floats weight = normal(n, 2);
        Floats x = normal(3 * n, 1), y(3 * n);
        table.layer_norm(x.data(), weight.data(), 1e-5f, y.data(), 3, n, false);
        table.layer_norm(x.data(), weight.data(), 1e-5f, x.data(), 3, n, false);
        check::that(same_bytes(x, y), "in place");
    }
}

KERNEL_TEST(layer_norm_of_no_rows_or_no_elements_does_nothing) {
    const Floats none(0), weight = normal(5, 1);
    Floats y(0);
    table.layer_norm(none.data(), weight.data(), 1e-5f, y.data(), 0, 5, false);
    table.layer_norm(none.data(), none.data(), 1e-5f, y.data(), 3, 0, false);
}

// ---- softmax -----------------------------------------------------------------------------------

namespace {

void check_softmax(const KernelTable& table, const Floats& x, std::size_t rows,
                   std::size_t offset = 0,
                   std::source_location where = std::source_location::current()) {
    const std::size_t n = x.size() / rows;
    Floats y(x.size(), offset), streamed(x.size(), offset);
    table.softmax(x.data(), y.data(), rows, n, false);
    table.softmax(x.data(), streamed.data(), rows, n, true);
    check::that(same_bytes(y, streamed), "streamed", where);
    for (std::size_t r = 0; r < rows; ++r) {
        const reference::Values row(x.begin() + r * n, x.begin() + (r + 1) * n);
        const auto exact = reference::softmax(row);
        const double top = n ? *std::max_element(row.begin(), row.end()) : 0;
        for (std::size_t i = 0; i < n; ++i) {
            const double share = 1e-6 + (exact[i] > 0 ? 6e-8 * (top - row[i]) : 0);
            const double floor = exact[i] < smallest_normal ? smallest_normal : 0;
            check::near({"softmax", where}, y[r * n + i], exact[i],
                        std::max(share * exact[i], floor), "of ", n, " at ", r, ", ", i);
        }
    }
}

}  // namespace

KERNEL_TEST(softmax_of_every_size_at_any_start) {
    for (const std::size_t n : sizes())
        check_softmax(table, normal(3 * n, 1, 5, n % 16), 3, (n + 3) % 16);
}

KERNEL_TEST(softmax_of_long_rows) {
    check_softmax(table, normal(65536, 1, 3), 1);
    for (const float rest : {-0.1f, -1.3f, -2.7f}) {
        Floats x = filled(65536, rest);
        x[1234] = 0;
        check_softmax(table, x, 1);
    }
}

KERNEL_TEST(softmax_of_numbers_far_apart_and_huge) {
    for (const double scale : {1e-40, 1e-3, 30.0, 100.0, 1e5, 1e37})
        check_softmax(table, normal(2 * 70, 1, scale), 2);
}

KERNEL_TEST(softmax_of_one_element_is_one) {
    for (const float value : {-3e38f, -1.0f, 0.0f, 3e38f}) {
        float y = 0;
        table.softmax(&value, &y, 1, 1, false);
        check::equal(y, 1.0f, "softmax");
    }
}

KERNEL_TEST(softmax_skips_minus_infinity_and_a_row_of_nothing_else_is_zeros) {
    for (const std::size_t n : {1u, 5u, 33u, 70u}) {
        Floats x = normal(2 * n, 1);
        for (std::size_t i = 0; i < n; ++i) x[i] = -infinity;
        x[n] = -infinity;
        check_softmax(table, x, 2);
    }
}

KERNEL_TEST(softmax_spreads_nan_and_infinity_over_their_row_alone) {
    for (const float bad : {not_a_number, infinity}) {
        for (const std::size_t at : {0u, 7u, 31u, 68u}) {
            Floats x = normal(3 * 69, 1);
            x[69 + at] = bad;
            check_softmax(table, x, 3);
        }
    }
}

KERNEL_TEST(softmax_in_place_gives_the_same) {
    for (const std::size_t n : {1u, 16u, 70u, 4097u}) {
        Floats x = normal(3 * n, 1), y(3 * n);
        table.softmax(x.data(), y.data(), 3, n, false);
        table.softmax(x.data(), x.data(), 3, n, false);
        check::that(same_bytes(x, y), "in place");
    }
}

// ---- rope --------------------------------------------------------------------------------------

namespace {

struct RopeShape {
    std::size_t rows, n_heads, head_dim, n_dims;
    bool interleaved;
};

// The bound is on both elements of a pair: 2u (|a cos| + |b sin|), 2u (|b cos| + |a sin|).
void check_rope(const RopeShape& s, const Floats& x, const Floats& angles, const Floats& y,
                std::source_location where = std::source_location::current()) {
    const std::size_t pairs = s.n_dims / 2;
    for (std::size_t r = 0; r < s.rows; ++r) {
        const float* row_angles = angles.data() + r * s.n_dims;
        for (std::size_t h = 0; h < s.n_heads; ++h) {
            const std::size_t head = (r * s.n_heads + h) * s.head_dim;
            for (std::size_t j = 0; j < pairs; ++j) {
                const std::size_t first = head + (s.interleaved ? 2 * j : j);
                const std::size_t second = s.interleaved ? first + 1 : first + pairs;
                const double a = x[first], b = x[second];
                const double c = row_angles[j], d = row_angles[pairs + j];
                const auto bound = [](double p, double q) {
                    return 2 * roundoff * (std::abs(p) + std::abs(q)) + 2 * tiny;
                };
                check::near({"rope", where}, y[first], a * c - b * d, bound(a * c, b * d), "pair ",
                            j, " of head ", h, " of row ", r);
                check::near({"rope", where}, y[second], b * c + a * d, bound(b * c, a * d), "pair ",
                            j, " of head ", h, " of row ", r);
            }
            for (std::size_t i = head + s.n_dims; i < head + s.head_dim; ++i)
                check::equal(y[i], x[i], "a copied dimension", where);
        }
    }
}

Floats random_angles(const RopeShape& s) {
    const std::size_t pairs = s.n_dims / 2;
    const Floats angle = normal(s.rows * pairs, 7, 10);
    Floats table(s.rows * s.n_dims, 3);
    for (std::size_t r = 0; r < s.rows; ++r) {
        for (std::size_t j = 0; j < pairs; ++j) {
            table[r * s.n_dims + j] = std::cos(angle[r * pairs + j]);
            table[r * s.n_dims + pairs + j] = std::sin(angle[r * pairs + j]);
        }
    }
    return table;
}

void run_rope(const KernelTable& table, const RopeShape& s, const Floats& x, const Floats& angles,
              Floats& y) {
    table.rope(x.data(), angles.data(), y.data(), s.rows, s.n_heads, s.head_dim, s.n_dims,
               s.interleaved);
}

}  // namespace

KERNEL_TEST(rope_of_every_head_size_at_any_start) {
    for (const bool interleaved : {false, true}) {
        for (std::size_t d = 0; d <= 72; d += 2) {
            const RopeShape s{3, 2, d, d, interleaved};
            const Floats x = normal(3 * 2 * d, 1, 1, d % 16), angles = random_angles(s);
            Floats y(x.size(), (d + 5) % 16);
            run_rope(table, s, x, angles, y);
            check_rope(s, x, angles, y);
        }
    }
}

KERNEL_TEST(rope_turns_the_first_dimensions_and_copies_the_rest) {
    for (const bool interleaved : {false, true}) {
        for (const std::size_t n_dims : {0u, 2u, 6u, 32u, 40u}) {
            const RopeShape s{2, 3, 41, n_dims, interleaved};
            const Floats x = normal(2 * 3 * 41, 1), angles = random_angles(s);
            Floats y(x.size()), in_place = copy<float>(x);
            run_rope(table, s, x, angles, y);
            check_rope(s, x, angles, y);
            run_rope(table, s, in_place, angles, in_place);
            check::that(same_bytes(y, in_place), "in place");
        }
    }
}

KERNEL_TEST(rope_keeps_nan_and_infinity_within_their_pair) {
    for (const bool interleaved : {false, true}) {
        for (const float bad : {not_a_number, infinity}) {
            const RopeShape s{1, 1, 40, 40, interleaved};
            Floats x = normal(40, 1), y(40);
            x[4] = bad;
            const Floats angles = random_angles(s);
            run_rope(table, s, x, angles, y);
            check_rope(s, x, angles, y);
        }
    }
}

KERNEL_TEST(rope_of_denormal_and_huge_numbers) {
    for (const bool interleaved : {false, true}) {
        for (const double scale : {1e-44, 1e-38, 1e37}) {
            const RopeShape s{2, 1, 40, 40, interleaved};
            const Floats x = normal(2 * 40, 1, scale), angles = random_angles(s);
            Floats y(x.size());
            run_rope(table, s, x, angles, y);
            check_rope(s, x, angles, y);
        }
    }
}
