// Mixtures of experts: each token is multiplied by a few of many matrices; the rest are not read.
//
// A route tells which: for each token the numbers of n_used experts, then their shares, as float32
// [rows][2 * n_used].
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "ops/matrix.h"
#include "threads/team.h"

namespace tensor_ops {

// One matrix for each expert, all of one shape, type and instruction set.
using Experts = std::vector<std::shared_ptr<const PackedMatrix>>;

// Writes a route to `out`: for each row the n_used experts with the largest softmax(logits),
// largest first, and of equals the lower number first.  normalized: the shares are divided by their
// sum.  logits: [rows][n_experts].
void route(const Worker& worker, const KernelTable& table, const float* logits, std::size_t rows,
           std::size_t n_experts, std::size_t n_used, bool normalized, float* out);

struct ExpertTask {
    const float* x;  // [rows][k] if shared, else [rows][n_used][k]
    bool shared;     // do a token's experts have the same input?
    const float* route;
    std::size_t rows, n_used;
    Activations kind;
    std::byte* quantized;   // space for max(rows, n_used) quantised rows of k, unless kind is f32
    float* scratch;         // [rows][k + n]
    std::uint32_t* chosen;  // [rows][n_used], space for the experts that the route names
    float* y;               // [rows][n_used][n]
};
// y[r][u] = x w^T for the u-th expert w of row r, or NaN if the route names no expert there.
void expert_linear(const Worker& worker, const Experts& experts, const ExpertTask& task);

// y[r] = sum over u of share[r][u] * x[r][u].  x: [rows][n_used][n].
void expert_sum(const Worker& worker, const float* x, const float* route, std::size_t rows,
                std::size_t n, std::size_t n_used, float* y);

}  // namespace tensor_ops
