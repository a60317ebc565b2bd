#include "ops/slices.h"

#include <algorithm>

#include "ops/q80.h"

namespace tensor_ops {
namespace {

constexpr std::size_t step = 512;  // values at a time, few enough for the L1 cache

// Calls f(row, first column, count) for this worker's part of rows x n values, in whole blocks and
// at most `step` values at a time.
template <class F>
void for_pieces(const Worker& worker, std::size_t rows, std::size_t n, F&& f) {
    const std::size_t blocks = (n + quant_block - 1) / quant_block;  // of a row
    deal(worker, rows * blocks, step / quant_block, [&](std::size_t first, std::size_t last) {
        for (std::size_t b = first; b < last;) {
            const std::size_t row = b / blocks, at = b % blocks;
            const std::size_t count = std::min({blocks - at, last - b, step / quant_block});
            f(row, at * quant_block, std::min(count * quant_block, n - at * quant_block));
            b += count;
        }
    });
}

std::byte* at(const Rows& rows, std::size_t row, std::size_t column) {
    const DType type = rows.quantized ? DType::q8_0 : DType::f32;
    return static_cast<std::byte*>(rows.data) + row * row_bytes(type, rows.stride) +
           row_bytes(type, column);
}

}  // namespace

void put_columns(const Worker& worker, const KernelTable& table, const float* from, const Rows& to,
                 std::size_t rows, std::size_t n, std::size_t offset) {
    for_pieces(worker, rows, n, [&](std::size_t r, std::size_t i, std::size_t count) {
        if (to.quantized)
            quantize_q80(table, from + r * n + i, at(to, r, offset + i), count);
        else
            std::copy_n(from + r * n + i, count, reinterpret_cast<float*>(at(to, r, offset + i)));
    });
}

void take_columns(const Worker& worker, const KernelTable& table, const Rows& from, float* to,
                  std::size_t rows, std::size_t n, std::size_t offset) {
    for_pieces(worker, rows, n, [&](std::size_t r, std::size_t i, std::size_t count) {
        if (from.quantized)
            dequantize_q80(table, at(from, r, offset + i), to + r * n + i, count);
        else
            std::copy_n(reinterpret_cast<const float*>(at(from, r, offset + i)), count,
                        to + r * n + i);
    });
}

void merge_add(const Worker& worker, const KernelTable& table, const float* x, const Rows& parts,
               float* y, std::size_t rows, std::size_t n, std::size_t n_parts) {
    float decoded[step];
    for_pieces(worker, rows, n, [&](std::size_t r, std::size_t i, std::size_t count) {
        const float* sum = x + r * n + i;
        float* out = y + r * n + i;
        for (std::size_t p = 0; p < n_parts; ++p) {
            const std::byte* part = at(parts, r, p * n + i);
            if (parts.quantized) dequantize_q80(table, part, decoded, count);
            table.add(sum, parts.quantized ? decoded : reinterpret_cast<const float*>(part), out,
                      count);
            sum = out;
        }
    });
}

void round_q8(const Worker& worker, const KernelTable& table, const float* x, float* y,
              std::size_t rows, std::size_t n) {
    for_pieces(worker, rows, n, [&](std::size_t r, std::size_t i, std::size_t count) {
        round_q80(table, x + r * n + i, y + r * n + i, count);
    });
}

void multiply(const Worker& worker, const float* a, const float* b, float* y, std::size_t n) {
    deal(worker, n, step, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) y[i] = a[i] * b[i];
    });
}

}  // namespace tensor_ops
