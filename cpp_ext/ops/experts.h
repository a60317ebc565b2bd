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

enum class Gating : std::uint8_t { softmax, sigmoid, sqrtsoftplus, sparsemixer };
// Twice the noise that Phi-3.5-MoE was trained with.
inline constexpr float sparsemixer_band = 0.02f;
enum class GroupScore : std::uint8_t { top2, max };

// How a router chooses among n_experts.  An expert's share is softmax(logits), sigmoid(logits) or
// sqrt(softplus(logits)), and its score is the share plus its bias.  The n_used experts with the
// highest scores are chosen.
//
// By sparsemixer (arXiv:2409.12136) they are chosen one after another: the highest logit m of the
// experts that are left.  Its share is its softmax among those of them whose logits x are near,
// (m - x) / max(m, |x|) <= sparsemixer_band.  It takes no bias, no groups and no given experts.
struct RouteTask {
    const float* logits;  // [rows][n_experts]
    std::size_t rows, n_experts, n_used;
    Gating gating = Gating::softmax;
    const float* bias = nullptr;  // [n_experts], or null
    // The experts are n_groups groups of as many, and all that are chosen belong to the
    // n_groups_used groups with the highest scores.  A group's score is the sum of the two highest
    // of its experts, or the highest.
    std::size_t n_groups = 1, n_groups_used = 1;
    GroupScore group_score = GroupScore::top2;
    bool normalized = false;  // the chosen shares are divided by their sum + 1e-20
    float scale = 1.0f;       // by which the shares are multiplied in the end
    // The experts that are chosen in any case, [rows][n_used]; or null.
    const float* given = nullptr;
    float* out;  // a route
};
// Writes the experts in the order of their scores, highest first.  NaN counts as the highest score,
// so that it reaches the result.  Of equals the lower number comes first, and no row names an
// expert twice, even if all its scores are NaN.  A given number that is no expert's has the share
// NaN.
void route(const Worker& worker, const KernelTable& table, const RouteTask& task);

struct ExpertTask {
    const float* x;  // [rows][k] if shared, else [rows][n_used][k]
    bool shared;     // do a token's experts have the same input?
    const float* route;
    std::size_t rows, n_used;
    Activations kind;
    std::byte* quantized;   // space for max(rows, n_used) quantised rows of k, unless kind is f32
    bool ready = false;     // does it hold the input, of one row and shared?
    float* scratch;         // [rows][k + n]
    std::uint32_t* chosen;  // [rows][n_used], space for the experts that the route names
    float* y;               // [rows][n_used][n]
};
// y[r][u] = x w^T for the u-th expert w of row r, or NaN if the route names no expert there.
void expert_linear(const Worker& worker, const Experts& experts, const ExpertTask& task);

// y[r][u] = x[r][u] + biases[e] for the u-th expert e of row r, or NaN if the route names no expert
// there.  x, y: [rows][n_used][n]; y may be x.  biases: [n_experts][n].
struct ExpertBiasTask {
    const float *x, *route, *biases;
    std::size_t rows, n_used, n_experts, n;
    float* y;
};
void expert_bias(const Worker& worker, const KernelTable& table, const ExpertBiasTask& task);

// y[r][u] = factors[e] * x[r][u] for the u-th expert e of row r, or NaN if the route names no
// expert there.  x, y: [rows][n_used][n]; y may be x.  factors: [n_experts].
struct ExpertScaleTask {
    const float *x, *route, *factors;
    std::size_t rows, n_used, n_experts, n;
    float* y;
};
void expert_scale(const Worker& worker, const ExpertScaleTask& task);

// y = the route with each share multiplied by factors[e] of its expert e, or by NaN where the route
// names no expert.  factors: [n_experts].  y may be the route.
void scale_shares(const Worker& worker, const float* route, const float* factors,
                  std::size_t n_experts, std::size_t rows, std::size_t n_used, float* y);

// y[r] = sum over u of share[r][u] * x[r][u].  x: [rows][n_used][n].
void expert_sum(const Worker& worker, const float* x, const float* route, std::size_t rows,
                std::size_t n, std::size_t n_used, float* y);

}  // namespace tensor_ops
