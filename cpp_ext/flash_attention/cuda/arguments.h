// What a kernel is given: addresses in the device's memory, and where one sequence lies in them.
#pragma once

#include <cstdint>

#include "flash_attention/cuda/device.h"

namespace tensor_ops::flash::cuda {

// Rows of a tensor: element c of row i of head h of sequence b is at data + b * batch + i * row +
// h * head + c elements.
struct Rows {
    unsigned char* data;
    std::int64_t batch, row, head;
};

struct Arguments {
    Rows q, k, v, k_new, v_new, out;
    const unsigned char *rotary_cos, *rotary_sin;  // null: no rotation
    std::int64_t cos_row, sin_row;
    float* lse;  // or null; strides of sequences, heads and queries
    std::int64_t lse_batch, lse_head, lse_row;
    const float *sinks, *q_descale, *k_descale, *v_descale;  // or null; strides [b][h_k]
    std::int64_t q_descale_stride[2], k_descale_stride[2], v_descale_stride[2];
    const std::int32_t *cu_seqlens_q, *cu_seqlens_k, *cu_seqlens_k_new, *seqused_q, *seqused_k;
    const std::int32_t *page_table, *kv_batch_idx, *leftpad_k, *seqlens_rotary;
    std::int64_t page_table_stride;
    // Of all splits: out [split][row of all queries][h][d_v], then lse [split][row][h].
    float *out_partial, *lse_partial;
    std::int64_t total_queries;
    int most_queries, most_keys, most_new;  // of a sequence
    int heads, group;                       // query heads, and those of a KV head
    int k_dim, value_dim, rotary_dim;
    int page_size;    // 0: no pages
    int left, right;  // windows; -1: none
    int chunk;        // 0: none
    int splits;
    int out_type, table_type;  // fa_dtype, of out and of the rotary tables
    bool causal, interleaved, rotates_by_query;
    float scale, softcap;
};

// Where one sequence lies, as call.h's Sequence says it.
struct Place {
    int index, n_q, n_kv, used, leftpad, cache, n_new, rotary;
    std::int64_t q_first, k_first, new_first;  // rows
};

__device__ inline Place place_of(const Arguments& a, int b) {
    Place s;
    s.index = b;
    s.q_first = a.cu_seqlens_q ? a.cu_seqlens_q[b] : 0;
    s.n_q = a.seqused_q      ? a.seqused_q[b]
            : a.cu_seqlens_q ? a.cu_seqlens_q[b + 1] - a.cu_seqlens_q[b]
                             : a.most_queries;
    s.cache = a.kv_batch_idx ? a.kv_batch_idx[b] : b;
    s.k_first = a.cu_seqlens_k ? a.cu_seqlens_k[b] : 0;
    s.leftpad = a.leftpad_k ? a.leftpad_k[b] : 0;
    s.used = a.seqused_k      ? a.seqused_k[b]
             : a.cu_seqlens_k ? a.cu_seqlens_k[b + 1] - a.cu_seqlens_k[b]
                              : a.most_keys;
    s.new_first = a.cu_seqlens_k_new ? a.cu_seqlens_k_new[b] : 0;
    s.n_new = a.cu_seqlens_k_new ? a.cu_seqlens_k_new[b + 1] - a.cu_seqlens_k_new[b] : a.most_new;
    s.n_kv = s.used - s.leftpad + s.n_new;
    s.rotary = a.seqlens_rotary ? a.seqlens_rotary[b] : s.used;
    return s;
}

// The first row of a sequence in t, of which it has its own if there is a dimension for sequences.
template <class T>
__device__ T* row_of(const Rows& t, std::int64_t sequence, std::int64_t row, int head) {
    return reinterpret_cast<T*>(t.data) + sequence * t.batch + row * t.row + head * t.head;
}

// Row `row` of the cache of a sequence in t, which is k or v.
template <class T>
__device__ T* cache_row(const Arguments& a, const Place& s, const Rows& t, int row, int head) {
    if (!a.page_size) return row_of<T>(t, s.cache, s.k_first + row, head);
    const std::int32_t* pages = a.page_table + s.index * a.page_table_stride;
    return row_of<T>(t, pages[row / a.page_size], row % a.page_size, head);
}

// The keys [low, high) that a query sees.
struct Reach {
    int low, high;
};
__device__ inline int least(int a, int b) { return a < b ? a : b; }
__device__ inline int most(int a, int b) { return a > b ? a : b; }
__device__ inline Reach reach(const Arguments& a, const Place& s, int query) {
    const int own = query + s.n_kv - s.n_q;  // its position
    Reach seen{0, s.n_kv};
    // No window needs to be larger than all positions, and sums of these fit.
    const int all = s.n_kv + s.n_q;
    if (a.left >= 0) seen.low = most(0, own - least(a.left, all));
    if (a.right >= 0) seen.high = least(s.n_kv, own + 1 + least(a.right, all));
    if (a.causal) seen.high = least(seen.high, own + 1);
    if (a.chunk) {
        if (own < 0) return {0, 0};
        const int first = own - own % a.chunk;
        seen.low = most(seen.low, first);
        seen.high = least(seen.high, first + least(a.chunk, s.n_kv - first));
    }
    return seen.high < 0 ? Reach{0, 0} : seen;
}

__device__ inline float descale(const float* data, const std::int64_t (&stride)[2], int b,
                                int head) {
    return data ? data[b * stride[0] + head * stride[1]] : 1.0f;
}

}  // namespace tensor_ops::flash::cuda
