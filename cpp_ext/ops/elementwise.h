// Elementwise operations without a kernel of their own: the memory that they read bounds them.  An
// output may be any of the inputs of its size.
#pragma once

#include "ops/ops.h"

namespace tensor_ops {

// y = max(x, 0)^2.
void relu_squared(const Worker& worker, const float* x, float* y, std::size_t n);
// xIELU (arXiv:2411.13010).  positive, negative: what its parameters alpha_p and alpha_n stand for,
// which are above 0; eps: at most 0.
struct XieluFactors {
    float positive, negative, beta, eps;
};
// y = positive x^2 + beta x for x > 0; negative (exp(min(x, eps)) - 1 - x) + beta x for the others.
// The error is at most 4 roundings for x > 0, and 5e-7 (negative + beta) max(|x|, -eps) for others.
void xielu(const Worker& worker, const KernelTable& table, const float* x, XieluFactors factors,
           float* y, std::size_t n);
// y = factor * x.
void scale(const Worker& worker, const float* x, float factor, float* y, std::size_t n);
// y[r] = factor * weight * x[r].  x: [rows][n].
void scale_columns(const Worker& worker, const float* x, float factor, const float* weight,
                   float* y, std::size_t rows, std::size_t n);
// y[r][i] = factors[r][i / (n / n_factors)] * x[r][i].  x: [rows][n], factors: [rows][n_factors].
void scale_rows(const Worker& worker, const float* x, const float* factors, float* y,
                std::size_t n_factors, std::size_t rows, std::size_t n);
// y = min(max(x, low), high); NaN stays.
void clamp(const Worker& worker, const float* x, float low, float high, float* y, std::size_t n);
// y = g sigmoid(alpha g) (u + shift), with g = min(gate, limit) and u = up, held between -limit and
// limit.  The error is that of sigmoid at alpha g, rounded to float32, and three roundings more.
void swiglu_oai(const Worker& worker, const KernelTable& table, const float* gate, const float* up,
                float alpha, float limit, float shift, float* y, std::size_t n);

}  // namespace tensor_ops
