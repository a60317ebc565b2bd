#include "ops/residuals.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <span>

namespace tensor_ops {

namespace {

// sum_i w[i] x[i] / sqrt(mean(x^2) + eps).  Sums of their own let the compiler use vectors.
double score(const float* x, const float* weight, float eps, std::size_t n) {
    constexpr std::size_t lanes = 8;
    double squares[lanes]{}, products[lanes]{};
    const auto add = [&](std::size_t i, std::size_t lane) {
        squares[lane] += double{x[i]} * x[i];
        products[lane] += double{x[i]} * weight[i];
    };
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (std::size_t lane = 0; lane < lanes; ++lane) add(i + lane, lane);
    for (; i < n; ++i) add(i, 0);
    double square = 0.0, product = 0.0;
    for (std::size_t lane = 0; lane < lanes; ++lane) {
        square += squares[lane];
        product += products[lane];
    }
    return product / std::sqrt(square / static_cast<double>(n) + eps);
}

}  // namespace

void residual_attention(const Worker& worker, const ResidualAttention& task) {
    const std::size_t n = task.n, n_earlier = task.n_earlier;
    for_rows(worker, task.rows, n * (n_earlier + 1), [&](std::size_t first, std::size_t count) {
        std::array<double, residual_attention_max_earlier + 1> room;
        // Of the earlier rows, and of the row itself.
        const std::span shares(room.data(), n_earlier + 1);
        for (std::size_t r = first; r < first + count; ++r) {
            const float* const own = task.x + r * n;
            const float* const earlier = task.earlier + r * task.stride;
            for (std::size_t j = 0; j < n_earlier; ++j)
                shares[j] = score(earlier + j * n, task.weight, task.eps, n);
            shares[n_earlier] = score(own, task.weight, task.eps, n);
            const double largest = *std::max_element(shares.begin(), shares.end());
            double sum = 0.0;
            for (double& share : shares) {
                share = std::exp(share - largest);
                sum += share;
            }
            float* const y = task.y + r * n;
            const auto share = [&](std::size_t j) { return static_cast<float>(shares[j] / sum); };
            const float mine = share(n_earlier);
            for (std::size_t i = 0; i < n; ++i) y[i] = mine * own[i];
            for (std::size_t j = 0; j < n_earlier; ++j) {
                const float part = share(j);
                for (std::size_t i = 0; i < n; ++i) y[i] += part * earlier[j * n + i];
            }
        }
    });
}

}  // namespace tensor_ops
