// Every kernel once more, in float64, from its formula, to be checked by eye; nothing of kernels/
// is used.  Results are float64 and not rounded, so that errors can be measured in float32's units.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <limits>
#include <numbers>
#include <vector>

namespace reference {

using Values = std::vector<double>;

inline constexpr double infinity = std::numeric_limits<double>::infinity();

// ---- elementwise -------------------------------------------------------------------------------

inline double sigmoid(double v) {
    return v >= 0 ? 1 / (1 + std::exp(-v)) : std::exp(v) / (1 + std::exp(v));
}

inline double silu(double x) { return x == -infinity ? -0.0 : x * sigmoid(x); }

// The argument of gelu_tanh's sigmoid: 0.5 (1 + tanh(v / 2)) = sigmoid(v), which keeps its digits
// where tanh is near -1.
inline double gelu_argument(double x) {
    return 2 * std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
}

inline double gelu_tanh(double x) { return x == -infinity ? -0.0 : x * sigmoid(gelu_argument(x)); }

// 0.5 (1 + erf(z)) = 0.5 erfc(-z), for the same reason.
inline double gelu_erf(double x) {
    return x == -infinity ? -0.0 : x * 0.5 * std::erfc(-x / std::numbers::sqrt2);
}

inline double elu(double x) { return x > 0 ? x : std::expm1(x); }

inline double swiglu(double gate, double up) { return silu(gate) * up; }

// ---- rows --------------------------------------------------------------------------------------

// Inputs are float32, or float64 where they are a reference's own results.
template <class Number>
Values rms_norm(const Number* x, const float* weight, double eps, std::size_t n) {
    double squares = 0;
    for (std::size_t i = 0; i < n; ++i) squares += static_cast<double>(x[i]) * x[i];
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
    Values y(n);
    for (std::size_t i = 0; i < n; ++i) y[i] = x[i] * scale * weight[i];
    return y;
}

template <class Number>
Values layer_norm(const Number* x, const float* weight, double eps, std::size_t n) {
    double sum = 0, squares = 0;
    for (std::size_t i = 0; i < n; ++i) sum += x[i];
    const double mean = sum / static_cast<double>(n);
    for (std::size_t i = 0; i < n; ++i) squares += (x[i] - mean) * (x[i] - mean);
    const double scale = 1 / std::sqrt(squares / static_cast<double>(n) + eps);
    Values y(n);
    for (std::size_t i = 0; i < n; ++i) y[i] = (x[i] - mean) * scale * weight[i];
    return y;
}

// A row of only -inf gives zeros.
inline Values softmax(const Values& x) {
    double top = -infinity, sum = 0;
    for (const double v : x) top = std::max(top, v);
    Values y(x.size());
    if (top == -infinity && std::none_of(x.begin(), x.end(), [](double v) { return v != v; }))
        return y;
    for (std::size_t i = 0; i < x.size(); ++i) sum += y[i] = std::exp(x[i] - top);
    for (double& v : y) v /= sum;
    return y;
}

// ---- matrices ----------------------------------------------------------------------------------

template <class Number>
double dot(const Number* x, const double* w, std::size_t k) {
    double sum = 0;
    for (std::size_t i = 0; i < k; ++i) sum += x[i] * w[i];
    return sum;
}

inline double dot_of_magnitudes(const float* x, const double* w, std::size_t k) {
    double sum = 0;
    for (std::size_t i = 0; i < k; ++i) sum += std::abs(x[i] * w[i]);
    return sum;
}

// One query's answer; k and v: the n positions that it sees, [n][head_dim].  A sink is a score
// more, without a value; lse is the logarithm of the softmax's denominator.
struct Attended {
    Values out;
    double lse, largest_score;
};
template <class Number>
Attended attend(const Number* q, const double* k, const double* v, std::size_t n,
                std::size_t head_dim, double scale, double softcap = 0, double sink = -infinity) {
    Values scores(n + 1, sink), out(head_dim);
    for (std::size_t p = 0; p < n; ++p) {
        scores[p] = scale * dot(q, k + p * head_dim, head_dim);
        if (softcap != 0) scores[p] = softcap * std::tanh(scores[p] / softcap);
    }
    const double top = *std::max_element(scores.begin(), scores.end());
    double sum = 0, largest = 0;
    for (std::size_t p = 0; p < n; ++p) largest = std::max(largest, std::abs(scores[p]));
    for (const double score : scores) sum += std::isinf(top) ? 0 : std::exp(score - top);
    const Values weights = softmax(scores);
    for (std::size_t p = 0; p < n; ++p)
        for (std::size_t i = 0; i < head_dim; ++i) out[i] += weights[p] * v[p * head_dim + i];
    return {out, top + std::log(sum), largest};
}

}  // namespace reference
