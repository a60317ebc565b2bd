// Operations of recurrent layers, on a team of threads (see ops.h), for a batch of several
// sequences.
//
// The rows of the first sequence come first in every array.  Several entries of `sequences` may
// have the same state: the tokens of each continue those of the entry before it.  A result has the
// same bits for any number of threads, and however the tokens of a state are divided among entries
// and calls.
#pragma once

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "kernels.h"
#include "threads/team.h"

namespace tensor_ops {

struct RecurrentSequence {
    std::size_t n_tokens = 0;
    float* state = nullptr;  // is updated
    std::size_t past = 0;    // tokens before these
};

inline constexpr std::size_t most_dilation = 64;

// KernelTable says what an operation computes, and its error.
struct ConvCall {
    const float* x;  // [n][channels]
    std::size_t channels, taps;
    std::size_t dilation = 1;     // tokens from one tap to the next
    const float* weight;          // [channels][taps]; the last tap is that of the current token
    const float* bias = nullptr;  // [channels]
    bool silu = false;            // of the result
    float* y;                     // as x; may be x
    // state: [dilation][taps - 1][channels], by the position modulo the dilation, oldest token
    // first
    std::span<const RecurrentSequence> sequences;
};
void causal_conv(const Worker& worker, const KernelTable& table, const ConvCall& call);

struct BlockMeanCall {
    const float* x;  // [n][width]
    std::size_t width, block_size;
    float* y;  // as x; may be x
    // state: [width], the sum over the tokens of the block that is not complete
    std::span<const RecurrentSequence> sequences;
};
// y = the mean of x over the block of block_size positions that the token completes; 0 for other
// tokens.  Sums are in float32, in the order of the tokens.
void block_mean(const Worker& worker, const BlockMeanCall& call);

// Which key head belongs to value head h: h / (n_v_heads / n_k_heads), or h % n_k_heads.
enum class HeadSharing : std::uint8_t { grouped, tiled };

struct DeltaRuleCall {
    const float* q;          // [n][n_k_heads][d_k]
    const float* k;          // as q
    const float* v;          // [n][n_v_heads][d_v]
    const float* log_decay;  // [n][n_v_heads], or [n][n_v_heads][d_k] if decay_by_channel
    const float* beta;       // [n][n_v_heads]
    std::size_t n_k_heads, n_v_heads, d_k, d_v;
    bool decay_by_channel = false;
    HeadSharing sharing = HeadSharing::grouped;
    float scale = 1.0f;
    float* out;                                    // as v
    std::span<const RecurrentSequence> sequences;  // state: [n_v_heads][d_k][d_v]
};
void delta_rule(const Worker& worker, const KernelTable& table, const DeltaRuleCall& call);

struct ScanCall {
    const float* x;                  // [n][n_heads][head_dim]
    const float* dt;                 // [n][n_heads]
    const float* b;                  // [n][n_groups][d_state]
    const float* c;                  // as b
    const float* a;                  // [n_heads], negative numbers
    const float* skip = nullptr;     // [n_heads]
    const float* dt_bias = nullptr;  // [n_heads]
    std::size_t n_heads, n_groups, head_dim, d_state;
    float dt_min = 0.0f, dt_max = std::numeric_limits<float>::infinity();
    float* y;                                      // as x
    std::span<const RecurrentSequence> sequences;  // state: [n_heads][head_dim][d_state]
};
// The length of a step is softplus(dt + dt_bias), held between dt_min and dt_max.  Head h uses b
// and c of group h / (n_heads / n_groups).
void ssm_scan(const Worker& worker, const KernelTable& table, const ScanCall& call);

struct SelectiveScanCall {
    const float* x;   // [n][channels]
    const float* dt;  // as x
    const float* b;   // [n][d_state]
    const float* c;   // as b
    const float* a;   // [channels][d_state], negative numbers
    std::size_t channels, d_state;
    float* y;                                      // as x
    std::span<const RecurrentSequence> sequences;  // state: [channels][d_state]
};
void selective_scan(const Worker& worker, const KernelTable& table, const SelectiveScanCall& call);

// y = x / sqrt(sum(x^2) + eps), row by row.  y may be x.
void l2_norm(const Worker& worker, const KernelTable& table, const float* x, float eps, float* y,
             std::size_t rows, std::size_t n);
// y[t][i] = a[i / (n / n_a)] * softplus(x[t][i] + bias[i]): n / n_a consecutive columns share an
// element of a[n_a].  bias[n] may be null, y may be x.  The error is that of softplus at the
// rounded sum, and one rounding more.
// A bound other than 0 is approached in place of minus infinity: y = bound * sigmoid(-a * (x +
// bias)).  The error is that of sigmoid at the argument, rounded twice, and one rounding more.
void log_decay(const Worker& worker, const KernelTable& table, const float* x, const float* bias,
               const float* a, std::size_t n_a, float bound, float* y, std::size_t rows,
               std::size_t n);
// The rms_norm of each of n_groups equal parts of a row.  weight: [n]; y may be x.
void group_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
                float eps, float* y, std::size_t rows, std::size_t n, std::size_t n_groups);

}  // namespace tensor_ops
