// Operations on a team of threads.  Every worker of a run calls the function, which does that
// worker's share.  The operation is complete when all workers have returned from the function and
// have met at a barrier or left the run.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "kernels.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/matrix.h"
#include "threads/team.h"

namespace tensor_ops {

// Elements of the smallest chunk that is dealt out: whole cache lines, a microsecond's work or
// more.
inline constexpr std::size_t dealt_elements = 2048;

constexpr std::size_t divide_up(std::size_t n, std::size_t unit) { return (n + unit - 1) / unit; }

// Calls f(first, count) for this worker's chunks of n elements.
template <class F>
void for_elements(const Worker& worker, std::size_t n, F&& f) {
    deal(worker, n, dealt_elements,
         [&](std::size_t first, std::size_t last) { f(first, last - first); });
}

// Calls f(first, count) for this worker's chunks of rows of n elements.  If n is 0, it visits no
// row: such rows take no memory, so there may be 2^63 of them.
template <class F>
void for_rows(const Worker& worker, std::size_t rows, std::size_t n, F&& f) {
    if (n == 0) return;
    deal(worker, rows, std::max<std::size_t>(1, dealt_elements / n),
         [&](std::size_t first, std::size_t last) { f(first, last - first); });
}

// Whether n floats of an op over rows are to go past the caches (see KernelTable): 16 MB or more
// that do not overwrite x.  On a Zen 4, over 2048 x 4096, rms_norm takes 2.5 ms in place of 3.6 and
// softmax 3.7 in place of 4.1.  (Elementwise ops compute more for each line and lose: silu
// takes 3.2 ms in place of 2.8.)
inline bool is_streamed(const float* x, const float* y, std::size_t n) {
    return n >= (4u << 20) && x != y;
}

void rms_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
              float eps, float* y, std::size_t rows, std::size_t n);
// The same for the layer_norm of KernelTable.
void layer_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
                float eps, float* y, std::size_t rows, std::size_t n);
// y = x + w, for each row.  y may be x.
void bias(const Worker& worker, const KernelTable& table, const float* x, const float* w, float* y,
          std::size_t rows, std::size_t n);
// y = cap * tanh(x / cap).  y may be x.
void softcap(const Worker& worker, const float* x, float cap, float* y, std::size_t n);
void softmax(const Worker& worker, const KernelTable& table, const float* x, float* y,
             std::size_t rows, std::size_t n);
// offset: the first dimension of each head that rotates.
void rope(const Worker& worker, const KernelTable& table, const float* x, const float* angles,
          float* y, std::size_t rows, std::size_t n_heads, std::size_t head_dim, std::size_t n_dims,
          bool interleaved, std::size_t offset = 0);

// The default form of the activations in a linear operation of `rows` rows.  Up to 64 rows
// (decoding, a turn of a chat) it is q16, which is as good as exact and costs little while reading
// the weights is most of the work.  For more rows it is q8, which is twice as fast.
Activations activations_for(std::size_t rows);

// Bytes of quantised activations [rows][k].
std::size_t quantized_activation_bytes(Activations kind, std::size_t rows, std::size_t k);
void quantize_activations(const Worker& worker, const KernelTable& table, Activations kind,
                          const float* x, std::size_t rows, std::size_t k, std::byte* xq);

// The input x[rows][k] of a product.  For a quantised matrix, unless kind is f32, xq must be x as
// quantize_activations writes it, with a barrier between that call and the product.
struct LinearInput {
    const float* x;
    Activations kind;
    const std::byte* xq;
    std::size_t rows;
};
// Groups of rows in the smallest chunk of a matrix: 147 KB of Q4_0 with 4096 columns on AVX-512.
inline constexpr std::size_t dealt_groups = 4;
// Computes the columns of y[rows][n] = x w^T for groups [first, last) of w, on the calling thread.
// y_stride: floats from one row of y to the next; 0: n.
void linear_groups(const PackedMatrix& w, const LinearInput& input, std::size_t first,
                   std::size_t last, float* y, std::size_t y_stride = 0);

// y[rows][n] = x[rows][k] w^T; see LinearInput.
void linear(const Worker& worker, const PackedMatrix& w, const float* x, Activations kind,
            const std::byte* xq, std::size_t rows, float* y);
// The same for a plain row-major array w[n][k] of type f32, f16 or bf16.
void linear_plain(const Worker& worker, const KernelTable& table, DType type, const void* w,
                  std::size_t n, std::size_t k, const float* x, std::size_t rows, float* y);
// c[m][n] = a[m][k] b[k][n].  `sums` holds matmul_sums(m) * n floats, the same for all workers.
constexpr std::size_t matmul_sums(std::size_t m) { return m == 1 ? 3 : 0; }
void matmul(const Worker& worker, const KernelTable& table, const float* a, const float* b,
            float* c, std::size_t m, std::size_t k, std::size_t n, float* sums);

// y[t] = scale * row ids[t] of a table of embeddings; each id must be below rows.n.
void embed(const Worker& worker, const KernelTable& table, const RawRows& rows,
           const std::int32_t* ids, std::size_t n_tokens, float scale, float* y);

}  // namespace tensor_ops
