// Attention forward: a block computes a tile of rows of one KV head over a range of keys, with an
// online softmax. A row is one query head of one query: row = query * group + head, so that the
// heads that share keys read them once.
//
// The products are multiply-adds of single numbers, which every GPU has. A thread has `thread_rows`
// rows, and every eighth column of them: of the scores, and of the values.
#pragma once

#include "flash_attention/cuda/results.h"
#include "flash_attention/cuda/rotary.h"

namespace tensor_ops::flash::cuda {

inline constexpr int threads = 128;
inline constexpr int columns = 8;  // threads side by side, lanes of one warp
inline constexpr int row_threads = threads / columns;

// What a block keeps in shared memory, for rows of up to D elements.
template <int D, class T>
struct Tiles {
    static constexpr int thread_rows = D <= 128 ? 4 : 2;
    static constexpr int rows = row_threads * thread_rows, keys = 32;
    // Rows begin in different banks.
    static constexpr int row = D + 4 / static_cast<int>(sizeof(T));
    T q[rows][row], k[keys][row], v[keys][row];
    float weights[rows][keys + 1];
};

// Copies n elements of a row, and zeros up to D.
template <int D, class T>
__device__ void copy_row(const T* from, int n, T* to, int first, int step) {
    for (int c = first; c < D; c += step) to[c] = c < n ? from[c] : T{};
}

template <int D, class T>
class ForwardBlock {
    using Memory = Tiles<D, T>;
    static constexpr int thread_rows = Memory::thread_rows, keys = Memory::keys;
    static constexpr int scores = keys / columns, values = D / columns;  // of a row and thread

    const Arguments& a_;
    const Place s_;
    Memory& m_;
    const int kv_head_, first_row_, n_rows_;
    const int column_ = static_cast<int>(threadIdx.x) % columns;
    const int row_ =
        static_cast<int>(threadIdx.x) / columns * thread_rows;  // the first, in the tile
    RowState state_[thread_rows];
    float sum_[thread_rows][values];

 public:
    __device__ ForwardBlock(const Arguments& a, const Place& s, Memory& m, int kv_head, int tile)
        : a_(a),
          s_(s),
          m_(m),
          kv_head_(kv_head),
          first_row_(tile * Memory::rows),
          n_rows_(least(Memory::rows, s.n_q * a.group - tile * Memory::rows)) {
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) {
            state_[r] = {minus_infinity, 0.0f};
#pragma unroll
            for (int c = 0; c < values; ++c) sum_[r][c] = 0.0f;
        }
    }

    __device__ void load_queries() {
        for (int r = static_cast<int>(threadIdx.x) / warp; r < Memory::rows; r += threads / warp) {
            T* to = m_.q[r];
            const int lane = static_cast<int>(threadIdx.x) % warp;
            if (r >= n_rows_) {
                copy_row<D, T>(nullptr, 0, to, lane, warp);
                continue;
            }
            const int query = query_of(r);
            const T* from = row_of<T>(a_.q, s_.index, s_.q_first + query, head_of(r));
            copy_row<D>(from, a_.k_dim, to, lane, warp);
            if constexpr (sizeof(T) > 1) {
                const int position = s_.rotary + (a_.rotates_by_query ? query : 0);
                for (int c = lane; c < a_.rotary_dim; c += warp)
                    set(to[c], rotated(a_, from, c, position));
            }
        }
    }

    // Adds keys [first, first + n) to all rows.
    __device__ void attend(int first, int n) {
        __syncthreads();  // the tiles before were read
        const int warp_index = static_cast<int>(threadIdx.x) / warp,
                  lane = static_cast<int>(threadIdx.x) % warp;
        for (int j = warp_index; j < keys; j += threads / warp) {
            const int key = s_.leftpad + first + j;
            const bool there = j < n;
            copy_row<D>(there ? cache_row<T>(a_, s_, a_.k, key, kv_head_) : nullptr,
                        there ? a_.k_dim : 0, m_.k[j], lane, warp);
            copy_row<D>(there ? cache_row<T>(a_, s_, a_.v, key, kv_head_) : nullptr,
                        there ? a_.value_dim : 0, m_.v[j], lane, warp);
        }
        __syncthreads();
        score(first, n);
        __syncthreads();
        add_values();
    }

    // Writes the rows' results; those of one split of several to the workspace.
    __device__ void finish(int split) const {
        const float v_scale = descale(a_.v_descale, a_.v_descale_stride, s_.index, kv_head_);
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) {
            RowState row = state_[r];
            for (int mask = 1; mask < columns; mask *= 2) row.sum += other_lane(row.sum, mask);
            if (row_ + r >= n_rows_) continue;
            const int query = query_of(row_ + r), head = head_of(row_ + r);
            const bool partial = a_.splits > 1;
            const RowEnd end = end_of(row, a_.sinks && !partial ? a_.sinks[head] : minus_infinity);
            const std::int64_t to =
                (split * a_.total_queries + partial_row(a_, s_, query)) * a_.heads + head;
#pragma unroll
            for (int i = 0; i < values; ++i) {
                const int c = i * columns + column_;
                if (c >= a_.value_dim) break;
                // A row that has seen nothing: 0, though its values may have been NaN.
                const float x = end.factor == 0.0f ? 0.0f : sum_[r][i] * end.factor * v_scale;
                if (partial)
                    a_.out_partial[to * a_.value_dim + c] = x;
                else
                    store_out(a_, s_, query, head, c, x);
            }
            if (column_ != 0) continue;
            if (partial)
                a_.lse_partial[to] = end.lse;
            else
                store_lse(a_, s_, query, head, end.lse);
        }
    }

    // The keys that any of the rows sees.
    __device__ Reach all() const {
        Reach seen{s_.n_kv, 0};
        const int last = query_of(n_rows_ - 1);
        // Reaches move with the query, one end at a time.
        for (const int query : {query_of(0), last}) {
            const Reach own = reach(a_, s_, query);
            seen.low = least(seen.low, own.low);
            seen.high = most(seen.high, own.high);
        }
        return seen;
    }

 private:
    __device__ int query_of(int r) const { return (first_row_ + r) / a_.group; }
    __device__ int head_of(int r) const {
        return kv_head_ * a_.group + (first_row_ + r) % a_.group;
    }

    // Scores of the tile's keys, as weights relative to the rows' new maxima.
    __device__ void score(int first, int n) {
        float dot[thread_rows][scores] = {};
#pragma unroll 4
        for (int c = 0; c < D; ++c) {
            float k[scores];
#pragma unroll
            for (int j = 0; j < scores; ++j) k[j] = value(m_.k[j * columns + column_][c]);
#pragma unroll
            for (int r = 0; r < thread_rows; ++r) {
                const float q = value(m_.q[row_ + r][c]);
#pragma unroll
                for (int j = 0; j < scores; ++j) dot[r][j] += q * k[j];
            }
        }
        const float scale = a_.scale *
                            descale(a_.q_descale, a_.q_descale_stride, s_.index, kv_head_) *
                            descale(a_.k_descale, a_.k_descale_stride, s_.index, kv_head_);
#pragma unroll
        for (int r = 0; r < thread_rows; ++r) {
            const Reach seen = reach(a_, s_, query_of(least(row_ + r, n_rows_ - 1)));
            float top = state_[r].top;
#pragma unroll
            for (int j = 0; j < scores; ++j) {
                const int key = first + j * columns + column_;
                float& x = dot[r][j];
                x *= scale;
                if (a_.softcap != 0.0f) x = a_.softcap * tanhf(x / a_.softcap);
                if (j * columns + column_ >= n || key < seen.low || key >= seen.high)
                    x = minus_infinity;
                top = fmaxf(top, x);
            }
            for (int mask = 1; mask < columns; mask *= 2) top = fmaxf(top, other_lane(top, mask));
            const float shift = top == minus_infinity ? 0.0f : top;  // -inf - -inf would be NaN
            const float factor = expf(state_[r].top - shift);
            state_[r].sum *= factor;
            state_[r].top = top;
#pragma unroll
            for (int j = 0; j < scores; ++j) {
                const float weight = expf(dot[r][j] - shift);
                state_[r].sum += weight;
                m_.weights[row_ + r][j * columns + column_] = weight;
            }
#pragma unroll
            for (int c = 0; c < values; ++c) sum_[r][c] *= factor;
        }
    }

    __device__ void add_values() {
        for (int j = 0; j < keys; ++j) {
            float weight[thread_rows];
#pragma unroll
            for (int r = 0; r < thread_rows; ++r) weight[r] = m_.weights[row_ + r][j];
#pragma unroll
            for (int c = 0; c < values; ++c) {
                const float v = value(m_.v[j][c * columns + column_]);
#pragma unroll
                for (int r = 0; r < thread_rows; ++r) sum_[r][c] += weight[r] * v;
            }
        }
    }
};

// A block for each tile of rows, KV head and split, and sequence.
template <int D, class T>
__global__ void __launch_bounds__(threads) forward_kernel(const __grid_constant__ Arguments a) {
    using Memory = Tiles<D, T>;
    const int kv_heads = a.heads / a.group;
    const int tile = static_cast<int>(blockIdx.x), split = static_cast<int>(blockIdx.y) / kv_heads;
    const Place s = place_of(a, static_cast<int>(blockIdx.z));
    if (tile * Memory::rows >= s.n_q * a.group) return;
    ForwardBlock<D, T> block(a, s, *reinterpret_cast<Memory*>(shared_memory()),
                             static_cast<int>(blockIdx.y) % kv_heads, tile);
    block.load_queries();
    const Reach seen = block.all();
    const int of_split = (s.n_kv + a.splits - 1) / a.splits;
    const int low = most(seen.low, split * of_split),
              high = least(seen.high, (split + 1) * of_split);
    for (int first = low; first < high; first += Memory::keys)
        block.attend(first, least(Memory::keys, high - first));
    block.finish(split);
}

}  // namespace tensor_ops::flash::cuda
