// Mixtures of experts: each token goes to a few of many matrices, and no other is touched.
//
// A route says where: for each token, the numbers of n_used experts and then their shares,
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

// The n_used largest of softmax(logits) for each row, largest first and the first of equals first;
// normalized: divided by their sum.  logits: [rows][n_experts].
void route(const Worker& worker, const KernelTable& table, const float* logits, std::size_t rows,
           std::size_t n_experts, std::size_t n_used, bool normalized, float* out);

struct ExpertTask {
    const float* x;  // [rows][k] if shared, else [rows][n_used][k]
    bool shared;     // do a token's experts have the same input?
    const float* route;
    std::size_t rows, n_used;
    Activations kind;
    std::byte* quantized;   // for max(rows, n_used) quantised rows of k, where kind needs it
    float* scratch;         // [rows][k + n]
    std::uint32_t* chosen;  // [rows][n_used], for the experts that the route names
    float* y;               // [rows][n_used][n]
};
// y[r][u] = x w^T for the u-th expert w of row r; NaN where the route names none.
void expert_linear(const Worker& worker, const Experts& experts, const ExpertTask& task);

// y[r] = sum over u of share[r][u] * x[r][u].  x: [rows][n_used][n].
void expert_sum(const Worker& worker, const float* x, const float* route, std::size_t rows,
                std::size_t n, std::size_t n_used, float* y);

}  // namespace tensor_ops
