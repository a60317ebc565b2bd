// The product of each head of a row with the head's own matrix.
#pragma once

#include <cstddef>

#include "ops/experts.h"
#include "ops/matrix.h"
#include "threads/team.h"

namespace tensor_ops {

// Rows that are multiplied together, whole tiles of activations on every ISA.  The inputs of a head
// are gathered for that: with DeepSeek V3's 128 heads of 512 values, those of 64 rows take 16 MB.
inline constexpr std::size_t heads_at_once = 64;

struct HeadTask {
    const float* x;  // [rows][heads][k]
    std::size_t rows;
    Activations kind;
    std::byte* quantized;  // space for `heads` times min(rows, heads_at_once) quantised rows of k,
                           // unless kind is f32
    float* scratch;        // space for as many float32 rows
    float* y;              // [rows][heads][n]
};
// y[r][h] = x[r][h] w^T for the matrix w of each head h.  heads: of one shape, type and
// instruction set.
void head_linear(const Worker& worker, const Experts& heads, const HeadTask& task);

}  // namespace tensor_ops
