// Attention over a KV cache, for one sequence or a batch of several, on a team of threads (see
// ops.h).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kernels.h"
#include "threads/team.h"

namespace tensor_ops {

// The keys and values of a layer, for `capacity` positions from position `first` on.  In pages of
// 2^page_bits = page_rows positions: each page has the layer's keys,
// [n_kv_heads][page_rows][head_dim], at k_offset, and its values,
// [n_kv_heads][page_rows][value_dim], at v_offset; or, if both offsets are the same, the values are
// the first value_dim dimensions of the keys.  Without pages: k is
// [n_kv_heads][capacity][head_dim], and v likewise.
struct KvCache {
    void* k = nullptr;
    void* v = nullptr;
    DType type = DType::f32;  // f32, f16 or q8_0
    std::size_t n_kv_heads = 0, capacity = 0, head_dim = 0, value_dim = head_dim;
    std::byte* const* pages = nullptr;
    std::size_t page_bits = 0, k_offset = 0, v_offset = 0, first = 0;

    bool exists() const { return k || pages; }
    bool values_in_keys() const { return pages && k_offset == v_offset; }
    KvRows keys(std::size_t head) const { return rows(head, k, k_offset, head_dim); }
    KvRows values(std::size_t head) const {
        return rows(head, v, v_offset, values_in_keys() ? head_dim : value_dim);
    }

 private:
    KvRows rows(std::size_t head, const void* data, std::size_t offset, std::size_t width) const {
        const std::size_t bytes = row_bytes(type, width);
        if (pages) return {pages, nullptr, offset + (head << page_bits) * bytes, page_bits, bytes};
        return {nullptr, static_cast<const std::byte*>(data) + head * capacity * bytes, 0, 0,
                bytes};
    }
};

// The first position that a query at `position` sees; see AttentionTask.
constexpr std::size_t first_seen(std::size_t window, bool chunked, std::size_t position) {
    if (window == 0) return 0;
    if (chunked) return position - position % window;
    return position < window ? 0 : position - window + 1;
}

// What a layer keeps of a sequence, and the sequence's part of a batch: n_tokens rows after `past`
// positions.
struct CachedSequence {
    std::size_t n_tokens = 0, past = 0;
    KvCache cache;
    std::span<float> recurrent = {};  // the memory of the layer's recurrent ops
    KvCache index = {};               // keys that select positions, see sparse.h
    KvCache groups = {};              // keys that several positions have together, see groups.h
    KvCache pending = {}, index_pending = {};  // what groups, and keys of the index, are made of
};

// Writes n_tokens rows of k, [n_tokens][n_kv_heads][head_dim], and of v, likewise with value_dim,
// at position `past`.  v is null if the values are in the keys.
void kv_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
               std::size_t n_tokens, std::size_t past, const KvCache& cache);
// The row of one position, by one thread.
void write_kv(const KernelTable& table, const float* k, const float* v, std::size_t position,
              const KvCache& cache);

// Fields with the names of AttentionTask's fields mean the same.
struct AttentionCall {
    const float* q;  // [n_q][n_heads][head_dim of `cache`]
    std::size_t n_q, n_heads;
    KvCache cache;
    std::size_t n_kv;  // positions that the cache holds
    float scale;
    bool causal = true;
    std::size_t window = 0;
    bool chunked = false;
    float softcap = 0.0f;
    const float* sinks = nullptr;   // [n_heads]
    const float* slopes = nullptr;  // [n_heads]
    float* out;                     // [n_q][n_heads][value_dim]
    float* lse = nullptr;           // [n_q][n_heads]
    // For several sequences in `cache`: where each begins in q and in the cache, and where the last
    // one ends.
    std::span<const std::int32_t> q_starts = {}, kv_starts = {};
    // For sequences with caches of their own, in place of n_q, cache and n_kv.  The caches have the
    // same type, n_kv_heads and widths.  q holds the queries of the first sequence first.
    std::span<const CachedSequence> sequences = {};
    bool undivided = false;  // the queries are a part of a batch of more than most_divided_queries
};

// The slopes of linear biases (ALiBi, arXiv:2108.12409), [n_heads].  Of 2^m heads, head h has
// 2^(-largest (h + 1) / 2^m); of others the first 2^m have those of 2^m heads, and the rest every
// other one of those of 2^(m + 1).
std::vector<float> alibi_slopes(std::size_t n_heads, float largest);

// With more query tokens than this, the KV positions are not divided into parts, so that the
// results do not depend on the batches in which a prompt is evaluated.  The pieces are then the
// runs of rows of each KV head: 12 for 144 tokens of 9 heads that share 3 KV heads.
inline constexpr std::size_t most_divided_queries = 64;
// All workers share `workspace`, which holds attention_workspace_floats floats, or for each of
// `sequences` the attention_floats that it takes: a long KV is divided into parts, whose results
// are merged in order.  The division, and so the result, depends neither on the number of workers
// nor, for one of `sequences`, on the other sequences.
inline constexpr std::size_t attention_workspace_floats = 1u << 18;
// At most attention_workspace_floats.  A token after 1,000 positions takes 8 KB with 8 heads of
// 128.
std::size_t attention_floats(std::size_t n_heads, const CachedSequence& sequence);
void attention(const Worker& worker, const KernelTable& table, const AttentionCall& call,
               float* workspace);

}  // namespace tensor_ops
