#include "ops/streams.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

// The sum of f(x[i]) in float64, in several sums, which compilers put into vectors.
template <class F>
double sum(const float* x, std::size_t n, F f) {
    constexpr std::size_t n_sums = 8;
    std::array<double, n_sums> sums{};
    std::size_t i = 0;
    for (; i + n_sums <= n; i += n_sums)
        for (std::size_t lane = 0; lane < n_sums; ++lane)
            sums[lane] += f(static_cast<double>(x[i + lane]));
    for (; i < n; ++i) sums[i % n_sums] += f(static_cast<double>(x[i]));
    return std::accumulate(sums.begin(), sums.end(), 0.0);
}

double mean_square(const float* x, std::size_t n) {
    return sum(x, n, [](double value) { return value * value; }) / static_cast<double>(n);
}

}  // namespace

void mix_streams(const Worker& worker, const float* x, const float* c, float* y, std::size_t rows,
                 std::size_t n_in, std::size_t n_out, std::size_t n) {
    for_rows(worker, rows, n_in * n_out * n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r)
            for (std::size_t out = 0; out < n_out; ++out) {
                float* to = y + (r * n_out + out) * n;
                std::fill_n(to, n, 0.0f);
                for (std::size_t in = 0; in < n_in; ++in) {
                    const float factor = c[(r * n_out + out) * n_in + in];
                    const float* from = x + (r * n_in + in) * n;
                    for (std::size_t i = 0; i < n; ++i) to[i] += factor * from[i];
                }
            }
    });
}

void add_to_streams(const Worker& worker, const float* x, const float* part, float* y,
                    std::size_t rows, std::size_t n, std::size_t n_streams, std::size_t first) {
    for_rows(worker, rows * n_streams, n, [&](std::size_t begin, std::size_t count) {
        for (std::size_t r = begin; r < begin + count; ++r) {
            const float* added = part + r / n_streams * n;
            const bool adds = r % n_streams >= first;
            for (std::size_t i = 0; i < n; ++i) y[r * n + i] = x[r * n + i] + (adds ? added[i] : 0);
        }
    });
}

void match_rms(const Worker& worker, const float* x, const float* like, float eps, float* y,
               std::size_t rows, std::size_t n, std::size_t n_streams) {
    for_rows(worker, rows, n_streams * n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r) {
            const double wanted = mean_square(like + r * n, n);
            for (std::size_t stream = r * n_streams; stream < (r + 1) * n_streams; ++stream) {
                const float* from = x + stream * n;
                const double found = std::max(mean_square(from, n), static_cast<double>(eps));
                const auto factor = static_cast<float>(std::sqrt(wanted / found));
                for (std::size_t i = 0; i < n; ++i) y[stream * n + i] = factor * from[i];
            }
        }
    });
}

void keep_above(const Worker& worker, const float* x, float factor, float* y, std::size_t rows,
                std::size_t n) {
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r) {
            const float* from = x + r * n;
            const double size = static_cast<double>(n);
            const double mean = sum(from, n, [](double value) { return value; }) / size;
            const double variance =
                sum(from, n, [mean](double value) { return (value - mean) * (value - mean); }) /
                size;
            const auto least =
                static_cast<float>(mean + static_cast<double>(factor) * std::sqrt(variance));
            for (std::size_t i = 0; i < n; ++i) y[r * n + i] = std::max(from[i] - least, 0.0f);
        }
    });
}

}  // namespace tensor_ops
