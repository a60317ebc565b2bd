// Attention over a KV cache, for one sequence or a batch of several, on a team of threads (see
// ops.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "kernels.h"
#include "threads/team.h"

namespace tensor_ops {

// A layer's KV cache, [n_kv_heads][capacity][head_dim], f32, f16 or q8_0.
struct KvCache {
    void* k = nullptr;
    void* v = nullptr;
    DType type = DType::f32;
    std::size_t n_kv_heads = 0, capacity = 0, head_dim = 0;
};
// Writes n_tokens rows of k and v, [n_tokens][n_kv_heads][head_dim], at position `past`.
void kv_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
               std::size_t n_tokens, std::size_t past, const KvCache& cache);

// A sequence with a cache of its own, which holds `past` positions and then those of n_tokens rows.
struct CachedSequence {
    std::size_t n_tokens = 0, past = 0;
    KvCache cache;
};

// Fields with the names of AttentionTask's fields mean the same.
struct AttentionCall {
    const float* q;  // [n_q][n_heads][head_dim]
    std::size_t n_q, n_heads;
    KvCache cache;
    std::size_t n_kv;  // positions that the cache holds
    float scale;
    bool causal = true;
    std::size_t window = 0;
    float softcap = 0.0f;
    const float* sinks = nullptr;  // [n_heads]
    float* out;                    // as q
    float* lse = nullptr;          // [n_q][n_heads]
    // For several sequences in `cache`: where each begins in q and in the cache, and where the last
    // one ends.
    std::span<const std::int32_t> q_starts = {}, kv_starts = {};
    // For sequences with caches of their own, in place of n_q, cache and n_kv.  The caches have the
    // same type, n_kv_heads and head_dim.  q holds the queries of the first sequence first.
    std::span<const CachedSequence> sequences = {};
};

// All workers share `workspace`, which holds attention_workspace_floats floats, or that many for
// each of `sequences`: a long KV is divided into parts, whose results are merged in order.  The
// division, and so the result, depends neither on the number of workers nor, for one of
// `sequences`, on the other sequences.
inline constexpr std::size_t attention_workspace_floats = 1u << 18;
void attention(const Worker& worker, const KernelTable& table, const AttentionCall& call,
               float* workspace);

}  // namespace tensor_ops
