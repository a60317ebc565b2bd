// The scan of Mamba within the bounds of kernels.h, token by token: the reference takes the state
// that the kernel had before the token.

#include "arrays.h"
#include "reference.h"

using namespace arrays;
using tensor_ops::KernelTable;

namespace {

Floats positive(std::size_t n, unsigned seed) {
    Floats x = normal(n, seed);
    for (float& v : x) v = std::abs(v);
    return x;
}

struct SelectiveInputs {
    std::size_t n, channels, d_state;
    Floats x, dt, b, c, a;
    SelectiveInputs(std::size_t tokens, std::size_t width, std::size_t size)
        : n(tokens),
          channels(width),
          d_state(size),
          x(normal(n * channels, 1, 1, 1)),
          dt(positive(n * channels, 2)),
          b(normal(n * d_state, 3, 1, 3)),
          c(normal(n * d_state, 4, 1, 4)),
          a(positive(channels * d_state, 5)) {
        for (float& v : a) v *= -8.0f;
    }

    void run(const KernelTable& table, std::size_t t, std::size_t count, std::size_t first,
             std::size_t last, float* state, float* y) const {
        table.selective_scan({.n_tokens = count,
                              .d_state = d_state,
                              .x = x.data() + t * channels,
                              .dt = dt.data() + t * channels,
                              .stride = channels,
                              .b = b.data() + t * d_state,
                              .c = c.data() + t * d_state,
                              .a = a.data(),
                              .y = y,
                              .state = state},
                             first, last);
    }
};

void check_selective_scan(const KernelTable& table, std::size_t channels, std::size_t d_state,
                          std::source_location where = std::source_location::current()) {
    const SelectiveInputs in(3, channels, d_state);
    Floats state = normal(channels * d_state, 8, 1, 5);
    for (std::size_t t = 0; t < in.n; ++t) {
        const Floats before = copy<float>(state);
        Floats y(channels, 7);
        in.run(table, t, 1, 0, channels, state.data(), y.data());
        for (std::size_t row = 0; row < channels; ++row) {
            const double dt = in.dt[t * channels + row], x = in.x[t * channels + row];
            double sum = 0, magnitude = 0;
            for (std::size_t j = 0; j < d_state; ++j) {
                const std::size_t at = row * d_state + j;
                const double length = std::abs(dt * in.a[at]);
                const double kept = std::exp(dt * in.a[at]) * before[at];
                const double added = dt * x * in.b[t * d_state + j], c = in.c[t * d_state + j];
                const double most = std::abs(kept) + std::abs(added);
                check::near({"state", where}, state[at], kept + added,
                            (6 + length) * roundoff * most + tiny, "at ", t, ", ", row, ", ", j);
                sum += (kept + added) * c;
                magnitude += (static_cast<double>(d_state) + 8 + length) * std::abs(c) * most;
            }
            check::near({"y", where}, y[row], sum, roundoff * magnitude, "of ", channels, " x ",
                        d_state, " at ", t, ", ", row);
        }
    }
}

}  // namespace

KERNEL_TEST(selective_scan_of_every_size) {
    for (const std::size_t d_state : sizes())
        if (d_state < 100) check_selective_scan(table, 5, d_state);
    for (std::size_t channels = 0; channels < 40; ++channels)
        check_selective_scan(table, channels, 16);
}

KERNEL_TEST(selective_scan_of_any_division_of_the_channels_gives_the_same) {
    const SelectiveInputs in(9, 37, 21);
    const auto run = [&](std::size_t cut) {
        Floats state = normal(37 * 21, 6), y(9 * 37);
        in.run(table, 0, 9, 0, cut, state.data(), y.data());
        in.run(table, 0, 9, cut, 37, state.data(), y.data());
        return std::pair(std::move(y), std::move(state));
    };
    const auto whole = run(0);
    for (std::size_t cut = 1; cut <= 37; ++cut) {
        const auto parts = run(cut);
        check::that(same_bytes(parts.first, whole.first), "y");
        check::that(same_bytes(parts.second, whole.second), "state");
    }
}

KERNEL_TEST(selective_scan_of_a_step_that_is_no_number_spoils_its_channel_alone) {
    SelectiveInputs in(3, 33, 19);
    in.dt[1] = not_a_number;
    Floats state = filled(33 * 19, 1), y(3 * 33);
    in.run(table, 0, 3, 0, 33, state.data(), y.data());
    for (std::size_t i = 0; i < y.size(); ++i)
        check::that(std::isnan(y[i]) == (i % 33 == 1), "its output alone");
}
