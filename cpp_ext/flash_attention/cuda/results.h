// The end of a row: sums over all its keys become out and lse. And rows of splits, combined.
#pragma once

#include <cmath>

#include "flash_attention/cuda/arguments.h"
#include "flash_attention/cuda/numbers.h"
#include "flash_attention/flash_attn.h"

namespace tensor_ops::flash::cuda {

// A row's largest score and, relative to it, the sum of the weights.
struct RowState {
    float top, sum;
};

inline constexpr float minus_infinity = -INFINITY;

// What the sums of values are multiplied by, and the row's lse. sink: one more score, or -infinity.
struct RowEnd {
    float factor, lse;
};
__device__ inline RowEnd end_of(RowState row, float sink) {
    const float top = fmaxf(row.top, sink);
    if (top == minus_infinity) return {0.0f, minus_infinity};  // it has seen nothing
    const float weight = expf(row.top - top), total = row.sum * weight + expf(sink - top);
    return {weight / total, top + logf(total)};
}

__device__ inline void store_out(const Arguments& a, const Place& s, int query, int head, int c,
                                 float x) {
    const std::int64_t row = s.q_first + query;
    if (a.out_type == FA_F16)
        set(row_of<Half>(a.out, s.index, row, head)[c], x);
    else if (a.out_type == FA_BF16)
        set(row_of<Bfloat16>(a.out, s.index, row, head)[c], x);
    else
        set(row_of<float>(a.out, s.index, row, head)[c], x);
}

__device__ inline void store_lse(const Arguments& a, const Place& s, int query, int head,
                                 float lse) {
    if (!a.lse) return;
    const std::int64_t row = s.q_first + query;
    a.lse[s.index * a.lse_batch + head * a.lse_head + row * a.lse_row] = lse;
}

// The row of all queries that partial results are kept under.
__device__ inline std::int64_t partial_row(const Arguments& a, const Place& s, int query) {
    return a.cu_seqlens_q ? s.q_first + query
                          : static_cast<std::int64_t>(s.index) * a.most_queries + query;
}

// A block for each query and head.
template <int = 0>
__global__ void combine_splits_kernel(const __grid_constant__ Arguments a) {
    const int query = static_cast<int>(blockIdx.x), head = static_cast<int>(blockIdx.y);
    const Place s = place_of(a, static_cast<int>(blockIdx.z));
    if (query >= s.n_q) return;
    const std::int64_t row = partial_row(a, s, query) * a.heads + head,
                       of_split = a.total_queries * a.heads;
    const float sink = a.sinks ? a.sinks[head] : minus_infinity;
    float top = sink;
    for (int i = 0; i < a.splits; ++i) top = fmaxf(top, a.lse_partial[i * of_split + row]);
    float total = top == minus_infinity ? 1.0f : expf(sink - top);
    for (int i = 0; i < a.splits && top != minus_infinity; ++i)
        total += expf(a.lse_partial[i * of_split + row] - top);
    const int first = static_cast<int>(threadIdx.x), step = static_cast<int>(blockDim.x);
    for (int c = first; c < a.value_dim; c += step) {
        float sum = 0.0f;
        for (int i = 0; i < a.splits && top != minus_infinity; ++i) {
            const float weight = expf(a.lse_partial[i * of_split + row] - top) / total;
            if (weight != 0.0f)  // what has seen nothing may be anything
                sum += weight * a.out_partial[(i * of_split + row) * a.value_dim + c];
        }
        store_out(a, s, query, head, c, sum);
    }
    if (first == 0) store_lse(a, s, query, head, top == minus_infinity ? top : top + logf(total));
}

}  // namespace tensor_ops::flash::cuda
