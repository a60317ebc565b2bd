// Rows of a tensor as float32 and back, and their rotation.
#pragma once

#include "flash_attention/call.h"

namespace tensor_ops::flash {

// y[n] = a row of that type; f32, f16, bf16 or e4m3.
void load_row(const KernelTable& table, std::int32_t type, const std::byte* row, std::size_t n,
              float* y);
// A row of that type = x[n]; any type but e4m3.
void store_row(const KernelTable& table, std::int32_t type, const float* x, std::size_t n,
               std::byte* row);
// Rotates n rows of `dim` elements, one after another, which all stand at that position.
// angles: room for rotary_dim floats.
void rotate_rows(const KernelTable& table, const Call& call, std::size_t position, std::size_t n,
                 std::size_t dim, float* rows, float* angles);

}  // namespace tensor_ops::flash
