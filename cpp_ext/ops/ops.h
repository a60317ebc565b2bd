// Operations on a team: each function does what its worker is dealt of one operation, and the
// operation is complete when all workers of the run have called it and met at a barrier (or left).
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

// The least that is dealt out at a time, in elements: a microsecond's work or more, whole lines.
inline constexpr std::size_t dealt_elements = 2048;

// Calls f(first, count) for this worker's chunks of n elements.
template <class F>
void for_elements(const Worker& worker, std::size_t n, F&& f) {
    deal(worker, n, dealt_elements,
         [&](std::size_t first, std::size_t last) { f(first, last - first); });
}

// Calls f(first, count) for this worker's chunks of rows of n elements.  Rows of none are not
// visited: without a byte of memory there may be 2^63 of them.
template <class F>
void for_rows(const Worker& worker, std::size_t rows, std::size_t n, F&& f) {
    if (n == 0) return;
    deal(worker, rows, std::max<std::size_t>(1, dealt_elements / n),
         [&](std::size_t first, std::size_t last) { f(first, last - first); });
}

// y = f(x), row by row: calls f(first, count, to), to for y's row `first` on, for this worker's
// chunks of rows of n elements.  An output of 16 MB or more, unless it overwrites x, is made in the
// first cache and written past the others, as a plain store reads the line that it overwrites:
// rms_norm over 2048 x 4096 goes from 69 to 99 % of memcpy's speed on a Zen 4.  (Elementwise ops,
// which compute more for each line, lose: silu 92 to 80 %.)
template <class F>
void write_rows(const Worker& worker, const KernelTable& table, const float* x, float* y,
                std::size_t rows, std::size_t n, F&& f) {
    constexpr std::size_t longest = 4096;
    const bool streamed = rows * n >= (4u << 20) && x != y && n <= longest;
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        if (!streamed) return f(first, count, y + first * n);
        alignas(64) float buffer[longest];
        for (std::size_t r = first; r < first + count; ++r) {
            f(r, 1, buffer);
            table.stream(buffer, y + r * n, n);
        }
    });
}

void rms_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
              float eps, float* y, std::size_t rows, std::size_t n);
// y = x + w, for each row.  y may be x.
void bias(const Worker& worker, const KernelTable& table, const float* x, const float* w, float* y,
          std::size_t rows, std::size_t n);
// y = cap * tanh(x / cap).  y may be x.
void softcap(const Worker& worker, const float* x, float cap, float* y, std::size_t n);
void softmax(const Worker& worker, const KernelTable& table, const float* x, float* y,
             std::size_t rows, std::size_t n);
void rope(const Worker& worker, const KernelTable& table, const float* x, const float* angles,
          float* y, std::size_t rows, std::size_t n_heads, std::size_t head_dim, std::size_t n_dims,
          bool interleaved);

// What a linear operation of that many rows does unless told otherwise.  Up to 64 rows (decoding, a
// turn of a chat) the 16-bit form: it costs little where reading the weights is the work, and is as
// good as exact.  Longer batches take the 8-bit one, at twice the speed.
Activations activations_for(std::size_t rows);

// Bytes that quantised activations take.
std::size_t quantized_activation_bytes(Activations kind, std::size_t rows, std::size_t k);
void quantize_activations(const Worker& worker, const KernelTable& table, Activations kind,
                          const float* x, std::size_t rows, std::size_t k, std::byte* xq);

// x[rows][k] as matrices take it.  For quantised ones, unless kind is f32, xq is what
// quantize_activations made of x, and a barrier lies between.
struct LinearInput {
    const float* x;
    Activations kind;
    const std::byte* xq;
    std::size_t rows;
};
// Groups of rows of a matrix that are dealt out at once: 147 KB of Q4_0 4096 columns wide.
inline constexpr std::size_t dealt_groups = 4;
// The columns of y[rows][n] = x w^T that groups [first, last) of w give, on this thread.
void linear_groups(const PackedMatrix& w, const LinearInput& input, std::size_t first,
                   std::size_t last, float* y);

// y[rows][n] = x[rows][k] w^T; see LinearInput.
void linear(const Worker& worker, const PackedMatrix& w, const float* x, Activations kind,
            const std::byte* xq, std::size_t rows, float* y);
// The same for rows of w as they lie in a plain array of type f32, f16 or bf16.
void linear_plain(const Worker& worker, const KernelTable& table, DType type, const void* w,
                  std::size_t n, std::size_t k, const float* x, std::size_t rows, float* y);
// c[m][n] = a[m][k] b[k][n].  `sums` holds matmul_sums(m) * n floats, the same for all workers.
constexpr std::size_t matmul_sums(std::size_t m) { return m == 1 ? 3 : 0; }
void matmul(const Worker& worker, const KernelTable& table, const float* a, const float* b,
            float* c, std::size_t m, std::size_t k, std::size_t n, float* sums);

// y = scale * rows `ids` of a table of embeddings; ids must be below rows.n.
void embed(const Worker& worker, const KernelTable& table, const RawRows& rows,
           const std::int32_t* ids, std::size_t n_tokens, float scale, float* y);

}  // namespace tensor_ops
