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

namespace {

// Of the rows of c, [n][n]: softmax + eps, and then columns, and rows and columns in turn, divided
// by their sums + eps.  Writes the transposed matrix.
void balance(const float* c, std::size_t n, std::size_t n_iterations, double eps, float* y) {
    std::array<double, most_hyper_streams * most_hyper_streams> m;
    for (std::size_t i = 0; i < n; ++i) {
        const double top = *std::max_element(c + i * n, c + (i + 1) * n);
        double total = 0.0;
        for (std::size_t j = 0; j < n; ++j)
            total += m[i * n + j] = std::exp(static_cast<double>(c[i * n + j]) - top);
        for (std::size_t j = 0; j < n; ++j) m[i * n + j] = m[i * n + j] / total + eps;
    }
    // Lines of n elements that are `apart` from each other; lines begin `next` apart.
    const auto divide = [&](std::size_t apart, std::size_t next) {
        for (std::size_t line = 0; line < n; ++line) {
            double total = eps;
            for (std::size_t i = 0; i < n; ++i) total += m[line * next + i * apart];
            for (std::size_t i = 0; i < n; ++i) m[line * next + i * apart] /= total;
        }
    };
    divide(n, 1);
    for (std::size_t i = 1; i < n_iterations; ++i) {
        divide(1, n);
        divide(n, 1);
    }
    for (std::size_t i = 0; i < n; ++i)
        for (std::size_t j = 0; j < n; ++j) y[j * n + i] = static_cast<float>(m[i * n + j]);
}

}  // namespace

void hyper_factors(const Worker& worker, const KernelTable& table, const HyperTask& task) {
    const std::size_t n = task.n_streams, width = task.width;
    const std::size_t work = width * task.n_iterations * 4;  // of a row, in elements
    for_rows(worker, task.rows, work, [&](std::size_t first, std::size_t count) {
        std::array<float, most_hyper_streams * (2 + most_hyper_streams)> mixes;
        for (std::size_t r = first; r < first + count; ++r) {
            const float* x = task.x + r * width;
            for (std::size_t i = 0; i < width; ++i)
                mixes[i] = x[i] * task.scale[std::min<std::size_t>(i / n, 2)] + task.base[i];
            float* y = task.y + r * width;
            table.sigmoid(mixes.data(), y, std::min(width, 2 * n));
            for (std::size_t i = 0; i < n; ++i) y[i] += task.eps;
            if (width == n) continue;
            for (std::size_t i = n; i < 2 * n; ++i) y[i] *= 2.0f;
            balance(mixes.data() + 2 * n, n, task.n_iterations, static_cast<double>(task.eps),
                    y + 2 * n);
        }
    });
}

void hyper_mix(const Worker& worker, const float* x, const float* part, const float* factors,
               float* y, std::size_t rows, std::size_t n_streams, std::size_t n) {
    constexpr std::size_t at_once = 128;  // columns, which are read before they are overwritten
    for_rows(worker, rows, n_streams * n, [&](std::size_t first, std::size_t count) {
        std::array<float, most_hyper_streams * at_once> sums;
        for (std::size_t r = first; r < first + count; ++r) {
            const float* const b = factors + r * n_streams * (2 + n_streams) + n_streams;
            const float* const m = b + n_streams;
            for (std::size_t c = 0; c < n; c += at_once) {
                const std::size_t width = std::min(at_once, n - c);
                for (std::size_t i = 0; i < n_streams; ++i) {
                    float* const sum = sums.data() + i * at_once;
                    std::fill_n(sum, width, 0.0f);
                    for (std::size_t j = 0; j < n_streams; ++j) {
                        const float* from = x + (r * n_streams + j) * n + c;
                        const float factor = m[i * n_streams + j];
                        for (std::size_t k = 0; k < width; ++k) sum[k] += factor * from[k];
                    }
                    const float* from = part + r * n + c;
                    for (std::size_t k = 0; k < width; ++k) sum[k] += b[i] * from[k];
                }
                for (std::size_t i = 0; i < n_streams; ++i)
                    std::copy_n(sums.data() + i * at_once, width, y + (r * n_streams + i) * n + c);
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

void stream_products(const Worker& worker, const float* a, const float* b, float factor, float* y,
                     std::size_t rows, std::size_t n, std::size_t n_streams) {
    for_rows(worker, rows * n_streams, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t s = first; s < first + count; ++s) {
            constexpr std::size_t n_sums = 8;  // as in `sum`
            std::array<double, n_sums> sums{};
            const float *const left = a + s * n, *const right = b + s * n;
            for (std::size_t i = 0; i < n; ++i)
                sums[i % n_sums] += static_cast<double>(left[i]) * static_cast<double>(right[i]);
            const double total = std::accumulate(sums.begin(), sums.end(), 0.0);
            y[s] = static_cast<float>(total * static_cast<double>(factor));
        }
    });
}

void signed_root(const Worker& worker, const float* x, float least, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) {
            const float root = std::sqrt(std::max(std::abs(x[i]), least));
            y[i] = x[i] == 0.0f ? 0.0f : std::copysign(root, x[i]);
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
