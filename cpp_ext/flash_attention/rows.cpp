#include "flash_attention/rows.h"

#include <array>
#include <cmath>
#include <cstring>
#include <limits>

#include "flash_attention/tensor.h"

namespace tensor_ops::flash {
namespace {

// The value of each byte as E4M3: a sign, four bits of exponent (bias 7), three of fraction.
const std::array<float, 256> e4m3_values = [] {
    std::array<float, 256> values{};
    for (int byte = 0; byte < 256; ++byte) {
        const int exponent = byte >> 3 & 15, fraction = byte & 7;
        float value = exponent ? std::ldexp(static_cast<float>(8 + fraction), exponent - 10)
                               : std::ldexp(static_cast<float>(fraction), -9);
        if ((byte & 0x7f) == 0x7f) value = std::numeric_limits<float>::quiet_NaN();
        values[static_cast<std::size_t>(byte)] = byte & 0x80 ? -value : value;
    }
    return values;
}();

DType dtype_of(std::int32_t type) {
    return type == FA_F32    ? DType::f32
           : type == FA_F16  ? DType::f16
           : type == FA_BF16 ? DType::bf16
                             : DType::q8_0;
}

}  // namespace

void load_row(const KernelTable& table, std::int32_t type, const std::byte* row, std::size_t n,
              float* y) {
    if (type == FA_E4M3)
        for (std::size_t i = 0; i < n; ++i) y[i] = e4m3_values[static_cast<std::size_t>(row[i])];
    else if (type == FA_F32)
        std::memcpy(y, row, n * sizeof(float));
    else
        table.to_float(dtype_of(type), row, y, n);
}

void store_row(const KernelTable& table, std::int32_t type, const float* x, std::size_t n,
               std::byte* row) {
    if (type == FA_F32)
        std::memcpy(row, x, n * sizeof(float));
    else
        table.from_float(dtype_of(type), x, row, n);
}

void rotate_rows(const KernelTable& table, const Call& call, std::size_t position, std::size_t n,
                 std::size_t dim, float* rows, float* angles) {
    const fa_fwd_params& p = call.p;
    const std::size_t pairs = call.rotary_dim / 2;
    load_row(table, p.rotary_cos.type, rows_of(p.rotary_cos, 0, position), pairs, angles);
    load_row(table, p.rotary_sin.type, rows_of(p.rotary_sin, 0, position), pairs, angles + pairs);
    table.rope(rows, angles, rows, 1, n, dim, call.rotary_dim, p.flags & FA_ROTARY_INTERLEAVED);
}

}  // namespace tensor_ops::flash
