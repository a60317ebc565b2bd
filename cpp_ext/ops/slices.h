// Operations for the nodes of a cluster: on columns of rows that all nodes share, as float32 or
// Q8_0 blocks, and the elementwise steps that the nodes' programs name one by one.
//
// They run on a team, see ops.h.  A row of Q8_0 holds n / 32 blocks.  Offsets and counts are in
// values; for Q8_0 they are multiples of 32.
#pragma once

#include <cstddef>

#include "kernels.h"
#include "threads/team.h"

namespace tensor_ops {

// Rows of n values each, `stride` values apart.
struct Rows {
    void* data;
    std::size_t stride;
    bool quantized;  // Q8_0 instead of float32
};

// to[r][offset + i] = from[r][i] for i < n, rounded to Q8_0 if `to` is quantized.
void put_columns(const Worker& worker, const KernelTable& table, const float* from, const Rows& to,
                 std::size_t rows, std::size_t n, std::size_t offset);
// to[r][i] = from[r][offset + i] for i < n.
void take_columns(const Worker& worker, const KernelTable& table, const Rows& from, float* to,
                  std::size_t rows, std::size_t n, std::size_t offset);
// y[r] = x[r] + parts[r][0 .. n) + parts[r][n .. 2n) + ..., in this order.  y may be x.
void merge_add(const Worker& worker, const KernelTable& table, const float* x, const Rows& parts,
               float* y, std::size_t rows, std::size_t n, std::size_t n_parts);
// y = x rounded to Q8_0.  y may be x.
void round_q8(const Worker& worker, const KernelTable& table, const float* x, float* y,
              std::size_t rows, std::size_t n);
// y = a * b, n elements.  y may be a or b.
void multiply(const Worker& worker, const float* a, const float* b, float* y, std::size_t n);

}  // namespace tensor_ops
