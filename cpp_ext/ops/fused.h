// Fused operations.  Each does the work of several other operations in one pass, chunk by chunk,
// and gives the same bits.  With few rows, a chunk's product is used while it is in the nearest
// cache, and no thread waits between the steps.
#pragma once

#include <span>

#include "ops/ops.h"

namespace tensor_ops {

// y[i] = x w[i]^T.  All quantised matrices of w have the same kernel table.
void linear_many(const Worker& worker, std::span<const PackedMatrix* const> w,
                 const LinearInput& input, std::span<float* const> y);

// y = a + x w^T.  y may be a.  product: scratch of y's size.
void linear_add(const Worker& worker, const PackedMatrix& w, const LinearInput& input,
                const float* a, float* product, float* y);

enum class Glu { silu, gelu };
// y = activation(x gate^T) * (x up^T).  product: scratch of y's size.  gate and up must be `alike`.
void glu_linear(const Worker& worker, const PackedMatrix& gate, const PackedMatrix& up,
                Glu activation, const LinearInput& input, float* product, float* y);
// y = activation(gate) * up, n elements.  The activation, for gelu its tanh approximation, is
// rounded to float32 before the multiplication.  y may be gate or up.
void glu(const Worker& worker, const KernelTable& table, Glu activation, const float* gate,
         const float* up, float* y, std::size_t n);
// Whether two matrices have the same kernel table and the same number of rows in a group.
bool alike(const PackedMatrix& a, const PackedMatrix& b);

// y = rms_norm(x), [rows][n], and xq = quantize_activations(y) by the kernels `matrices`.  y may be
// x.
void norm_and_quantize(const Worker& worker, const KernelTable& table, const KernelTable& matrices,
                       const float* x, const float* weight, float eps, float* y, Activations kind,
                       std::size_t rows, std::size_t n, std::byte* xq);

// kv_append(rope(k), v), see both.
void rope_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
                 const float* angles, std::size_t n_dims, bool interleaved, std::size_t n_tokens,
                 std::size_t past, const KvCache& cache);

}  // namespace tensor_ops
