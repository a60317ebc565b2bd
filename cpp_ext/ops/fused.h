// Operations that do in one pass, chunk by chunk, what several others do one after the other, with
// the same numbers: what a chunk's product is needed for is done while it is in the nearest cache,
// and no thread waits in between.
#pragma once

#include <span>

#include "ops/ops.h"

namespace tensor_ops {

// y[i] = x w[i]^T.  What is quantised of w has one table.
void linear_many(const Worker& worker, std::span<const PackedMatrix* const> w,
                 const LinearInput& input, std::span<float* const> y);

// y = a + x w^T.  y may be a; product: as y, for what is in between.
void linear_add(const Worker& worker, const PackedMatrix& w, const LinearInput& input,
                const float* a, float* product, float* y);

enum class Glu { silu, gelu };
// y = activation(x gate^T) * (x up^T).  product: as y, for what is in between.  The matrices have
// one table and groups of as many rows: see alike.
void glu_linear(const Worker& worker, const PackedMatrix& gate, const PackedMatrix& up,
                Glu activation, const LinearInput& input, float* product, float* y);
// y = activation(gate) * up by itself, n elements; the activation, for gelu its tanh approximation,
// is rounded to float32 first.  y may be either.
void glu(const Worker& worker, const KernelTable& table, Glu activation, const float* gate,
         const float* up, float* y, std::size_t n);
bool alike(const PackedMatrix& a, const PackedMatrix& b);

// y = rms_norm(x), [rows][n], and xq what quantize_activations makes of it for `matrices`.  y may
// be x.
void norm_and_quantize(const Worker& worker, const KernelTable& table, const KernelTable& matrices,
                       const float* x, const float* weight, float eps, float* y, Activations kind,
                       std::size_t rows, std::size_t n, std::byte* xq);

// kv_append of v and of rope(k), see both.
void rope_append(const Worker& worker, const KernelTable& table, const float* k, const float* v,
                 const float* angles, std::size_t n_dims, bool interleaved, std::size_t n_tokens,
                 std::size_t past, const KvCache& cache);

}  // namespace tensor_ops
