// The arguments of a forward pass, checked and completed.
#pragma once

#include <cstddef>

#include "flash_attention/flash_attn.h"
#include "kernels.h"

namespace tensor_ops::flash {

// What a call is checked for.
enum class Use { forward, append };

// Shapes and settings, which hold for every sequence.
struct Call {
    fa_fwd_params p;
    std::size_t batch, heads, kv_heads, group;
    std::size_t k_dim, value_dim;
    std::size_t query_dim;                // of queries: k_dim, or with q_v k_dim + value_dim
    std::size_t total_queries;            // rows of q and out
    std::size_t most_queries, most_keys;  // of a sequence
    std::size_t page_size;                // 0: no pages
    std::size_t page_bits;                // the kernels see pages of 2^page_bits rows
    std::size_t rotary_dim;               // 0: no rotation
    std::size_t most_parts;               // into which keys are divided
    bool appends, causal;
    std::size_t left, right, chunk;  // windows as in AttentionTask
    float scale;

    // Whether a rotated query stands at a position of its own, or all at that of the first new key.
    bool rotates_by_query() const {
        return chunk || left != unlimited_window || right != unlimited_window;
    }
};

// Where one sequence lies, in rows.
struct Sequence {
    std::size_t index;
    std::size_t q_first, n_q;   // q_first: of all rows of q, for [b][s_q] too
    std::size_t cache, first;   // the row of k and v, or with cu_seqlens_k the first key
    std::size_t leftpad, used;  // of the cache's keys
    std::size_t new_first, n_new;
    std::size_t n_kv;    // keys that queries may see: used - leftpad + n_new
    std::size_t rotary;  // the position of the first new key
};

// Refuses what is wrong with a struct, its tensors and its numbers; reads no array.
Call checked_call(const fa_fwd_params* params, Use use);
// Refuses a workspace that is too small or holds something else; needed: bytes.
void check_workspace(const Call& call, std::size_t needed);
// Refuses what is wrong with the contents of the arrays of lengths, starts and pages.
void check_arrays(const Call& call);

Sequence sequence(const Call& call, std::size_t b);

}  // namespace tensor_ops::flash
