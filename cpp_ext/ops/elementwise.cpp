#include "ops/elementwise.h"

#include <algorithm>

namespace tensor_ops {

// std::max(x, bound) and std::min(x, bound) are x if x is NaN.

void relu_squared(const Worker& worker, const float* x, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) {
            const float positive = std::max(x[i], 0.0f);
            y[i] = positive * positive;
        }
    });
}

void xielu(const Worker& worker, const KernelTable& table, const float* x, XieluFactors factors,
           float* y, std::size_t n) {
    constexpr std::size_t step = 256;  // stays in the L1 cache
    const auto [positive, negative, beta, eps] = factors;
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        float below[step];
        for (std::size_t i = first; i < first + count; i += step) {
            const std::size_t m = std::min(step, first + count - i);
            for (std::size_t j = 0; j < m; ++j) below[j] = std::min(x[i + j], eps);
            table.elu(below, below, m);
            for (std::size_t j = 0; j < m; ++j) {
                const float v = x[i + j];
                // beta - negative first: -inf - -inf would be NaN.
                y[i + j] = v > 0.0f ? v * (positive * v + beta)
                                    : (beta - negative) * v + negative * below[j];
            }
        }
    });
}

void scale(const Worker& worker, const float* x, float factor, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) y[i] = factor * x[i];
    });
}

void scale_columns(const Worker& worker, const float* x, float factor, const float* weight,
                   float* y, std::size_t rows, std::size_t n) {
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r)
            for (std::size_t i = 0; i < n; ++i) y[r * n + i] = factor * weight[i] * x[r * n + i];
    });
}

void scale_rows(const Worker& worker, const float* x, const float* factors, float* y,
                std::size_t n_factors, std::size_t rows, std::size_t n) {
    const std::size_t part = n / n_factors;
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t f = first * n_factors; f < (first + count) * n_factors; ++f) {
            const float factor = factors[f];
            for (std::size_t i = f * part; i < (f + 1) * part; ++i) y[i] = factor * x[i];
        }
    });
}

void clamp(const Worker& worker, const float* x, float low, float high, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i)
            y[i] = std::min(std::max(x[i], low), high);
    });
}

void swiglu_oai(const Worker& worker, const KernelTable& table, const float* gate, const float* up,
                float alpha, float limit, float shift, float* y, std::size_t n) {
    constexpr std::size_t step = 256;  // stays in the L1 cache
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        float gated[step], share[step];
        for (std::size_t i = first; i < first + count; i += step) {
            const std::size_t m = std::min(step, first + count - i);
            for (std::size_t j = 0; j < m; ++j) {
                gated[j] = std::max(std::min(gate[i + j], limit), -1e30f);  // inf * 0 is NaN
                share[j] = alpha * gated[j];
            }
            table.sigmoid(share, share, m);
            for (std::size_t j = 0; j < m; ++j) {
                const float u = std::max(std::min(up[i + j], limit), -limit);
                y[i + j] = gated[j] * share[j] * (u + shift);
            }
        }
    });
}

}  // namespace tensor_ops
