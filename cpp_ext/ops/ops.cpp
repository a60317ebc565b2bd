#include "ops/ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tensor_ops {

void rms_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
              float eps, float* y, std::size_t rows, std::size_t n) {
    const Share part = share(worker, rows);
    table.rms_norm(x + part.first * n, weight, eps, y + part.first * n, part.last - part.first, n);
}

void bias(const Worker& worker, const KernelTable& table, const float* x, const float* w, float* y,
          std::size_t rows, std::size_t n) {
    const Share part = share(worker, rows);
    for (std::size_t r = part.first; r < part.last; ++r) table.add(x + r * n, w, y + r * n, n);
}

void geglu(const Worker& worker, const KernelTable& table, const float* gate, const float* up,
           float* y, std::size_t n) {
    constexpr std::size_t step = 256;  // stays in the first cache
    float gelu[step];
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; i += step) {
            const std::size_t m = std::min(step, first + count - i);
            table.gelu_tanh(gate + i, gelu, m);
            for (std::size_t j = 0; j < m; ++j) y[i + j] = gelu[j] * up[i + j];
        }
    });
}

void softcap(const Worker& worker, const float* x, float cap, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) y[i] = cap * std::tanh(x[i] / cap);
    });
}

void softmax(const Worker& worker, const KernelTable& table, const float* x, float* y,
             std::size_t rows, std::size_t n) {
    const Share part = share(worker, rows);
    table.softmax(x + part.first * n, y + part.first * n, part.last - part.first, n);
}

void rope(const Worker& worker, const KernelTable& table, const float* x, const float* angles,
          float* y, std::size_t rows, std::size_t n_heads, std::size_t head_dim, std::size_t n_dims,
          bool interleaved) {
    const Share part = share(worker, rows);
    const std::size_t row = n_heads * head_dim;
    table.rope(x + part.first * row, angles + part.first * n_dims, y + part.first * row,
               part.last - part.first, n_heads, head_dim, n_dims, interleaved);
}

Activations activations_for(std::size_t rows) {
    return rows <= 64 ? Activations::q16 : Activations::q8;
}

std::size_t quantized_activation_bytes(Activations kind, std::size_t rows, std::size_t k) {
    return rows * (k / quant_block) * quantized_block_bytes(kind);
}

void quantize_activations(const Worker& worker, const KernelTable& table, Activations kind,
                          const float* x, std::size_t rows, std::size_t k, std::byte* xq) {
    const Share part = share(worker, rows, table.activation_tile);
    table.quantize_activations(kind, x, rows, k, part.first, part.last, xq);
}

void linear(const Worker& worker, const PackedMatrix& w, const float* x, Activations kind,
            const std::byte* xq, std::size_t rows, float* y) {
    const Share part = share(worker, w.groups());
    const KernelTable& table = w.table();
    if (is_quantized(w.type()) && kind != Activations::f32)
        table.linear_quantized(kind, w.view(), xq, rows, part.first, part.last, y, w.n());
    else
        table.linear_f32(w.view(), x, rows, part.first, part.last, y, w.n());
}

void linear_plain(const Worker& worker, const KernelTable& table, DType type, const void* w,
                  std::size_t n, std::size_t k, const float* x, std::size_t rows, float* y) {
    auto* scratch =
        static_cast<float*>(thread_scratch(table.matmul_scratch_floats * sizeof(float)));
    const Share part = share(worker, n, 2 * table.vector_floats);
    table.linear_plain(type, w, x, rows, k, part.first, part.last, y, n, scratch);
}

void matmul(const Worker& worker, const KernelTable& table, const float* a, const float* b,
            float* c, std::size_t m, std::size_t k, std::size_t n) {
    auto* scratch =
        static_cast<float*>(thread_scratch(table.matmul_scratch_floats * sizeof(float)));
    const std::size_t panel = 2 * table.vector_floats;
    // By columns, so that each thread packs its own part of b; by rows when there are too few.
    const bool by_columns = m < 16 || n >= 4 * panel * static_cast<std::size_t>(worker.count());
    const Share rows = by_columns ? Share{0, m} : share(worker, m, 4);
    const Share columns = by_columns ? share(worker, n, panel) : Share{0, n};
    table.matmul(a + rows.first * k, k, b, n, c + rows.first * n, n, rows.last - rows.first, k,
                 columns.first, columns.last, scratch);
}

void embed(const Worker& worker, const KernelTable& table, const RawRows& rows,
           const std::int32_t* ids, std::size_t n_tokens, float scale, float* y) {
    const Share part = share(worker, n_tokens);
    const std::size_t bytes = row_bytes(rows.type, rows.k);
    for (std::size_t t = part.first; t < part.last; ++t) {
        float* row = y + t * rows.k;
        table.to_float(rows.type, rows.data + static_cast<std::size_t>(ids[t]) * bytes, row,
                       rows.k);
        if (scale != 1.0f)
            for (std::size_t i = 0; i < rows.k; ++i) row[i] *= scale;
    }
}

}  // namespace tensor_ops
