// Several residual streams of a token side by side (AltUp, arXiv:2301.13310), and what else Gemma
// 3n does to whole rows.  They run on a team, see ops.h.
#pragma once

#include <cstddef>

#include "kernels.h"
#include "threads/team.h"

namespace tensor_ops {

// Of each of `rows` rows: y[i] = sum over j of c[i * n_in + j] * x[j], for n_out streams of n
// values from n_in of them; the sum is in float32, in order.  y is not x.
void mix_streams(const Worker& worker, const float* x, const float* c, float* y, std::size_t rows,
                 std::size_t n_in, std::size_t n_out, std::size_t n);
// y = x, plus part, [rows][n], in each of n_streams streams of n values from stream `first` on.  y
// may be x.
void add_to_streams(const Worker& worker, const float* x, const float* part, float* y,
                    std::size_t rows, std::size_t n, std::size_t n_streams, std::size_t first);
// Each of n_streams streams gets the root mean square of `like`, [rows][n]:
// y = x * rms(like) / sqrt(max(mean(x^2), eps)).  Sums are in float64.  y may be x.
void match_rms(const Worker& worker, const float* x, const float* like, float eps, float* y,
               std::size_t rows, std::size_t n, std::size_t n_streams);
// y[r][s] = factor * sum(a * b) of each of n_streams streams of n values.  Sums are in float64.
void stream_products(const Worker& worker, const float* a, const float* b, float factor, float* y,
                     std::size_t rows, std::size_t n, std::size_t n_streams);
// y = sign(x) * sqrt(max(|x|, least)), 0 for 0.  y may be x.
void signed_root(const Worker& worker, const float* x, float least, float* y, std::size_t n);
// y = max(x - (mean + factor * deviation), 0), with those of the row.  Sums are in float64.  y may
// be x.
void keep_above(const Worker& worker, const float* x, float factor, float* y, std::size_t rows,
                std::size_t n);

// How several streams go through a part of a layer (hyper-connections, arXiv:2512.24880); see
// airllm/graph/ops/streams.py.  x, y: [rows][width], width n or n * (2 + n) for n streams; scale:
// [1] or [3]; base: [width].  y is not x.  The matrices' rows and columns are divided in float64.
inline constexpr std::size_t most_hyper_streams = 16;
struct HyperTask {
    const float *x, *scale, *base;
    std::size_t rows, width, n_streams, n_iterations;
    float eps;
    float* y;
};
void hyper_factors(const Worker& worker, const KernelTable& table, const HyperTask& task);
// Of each row, y[i] = sum over j of m[i][j] * x[j], in order, plus b[i] * part, for n_streams
// streams of n values, with b and m of the row of factors that hyper_factors gave.  y may be x.
void hyper_mix(const Worker& worker, const float* x, const float* part, const float* factors,
               float* y, std::size_t rows, std::size_t n_streams, std::size_t n);

}  // namespace tensor_ops
