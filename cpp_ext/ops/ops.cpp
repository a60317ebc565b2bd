#include "ops/ops.h"

#include <algorithm>
#include <cmath>
#include <vector>

namespace tensor_ops {

namespace {

constexpr std::size_t round_up(std::size_t n, std::size_t unit) {
    return (n + unit - 1) / unit * unit;
}

// Columns in a chunk of a float product: enough to pay for the panels that each chunk packs and
// transposes, but few enough that every worker gets several chunks.
std::size_t column_unit(const Worker& worker, const KernelTable& table, std::size_t n,
                        std::size_t most) {
    const auto count = static_cast<std::size_t>(worker.count());
    const std::size_t panel = 2 * table.vector_floats;
    return round_up(std::clamp(n / (8 * count), panel, most), panel);
}

}  // namespace

void rms_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
              float eps, float* y, std::size_t rows, std::size_t n) {
    const bool streamed = is_streamed(x, y, rows * n);
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        table.rms_norm(x + first * n, weight, eps, y + first * n, count, n, streamed);
    });
}

void layer_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
                float eps, float* y, std::size_t rows, std::size_t n) {
    const bool streamed = is_streamed(x, y, rows * n);
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        table.layer_norm(x + first * n, weight, eps, y + first * n, count, n, streamed);
    });
}

void bias(const Worker& worker, const KernelTable& table, const float* x, const float* w, float* y,
          std::size_t rows, std::size_t n) {
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r) table.add(x + r * n, w, y + r * n, n);
    });
}

void softcap(const Worker& worker, const float* x, float cap, float* y, std::size_t n) {
    for_elements(worker, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) y[i] = cap * std::tanh(x[i] / cap);
    });
}

void softmax(const Worker& worker, const KernelTable& table, const float* x, float* y,
             std::size_t rows, std::size_t n) {
    const bool streamed = is_streamed(x, y, rows * n);
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        table.softmax(x + first * n, y + first * n, count, n, streamed);
    });
}

void rope(const Worker& worker, const KernelTable& table, const float* x, const float* angles,
          float* y, std::size_t rows, std::size_t n_heads, std::size_t head_dim, std::size_t n_dims,
          bool interleaved, std::size_t offset) {
    const std::size_t row = n_heads * head_dim;
    // Of each row all heads but the last, and then the last: what follows its rotating dimensions
    // is not the beginning of another head.
    const auto behind_offset = [&](std::size_t r) {
        const float* own = angles + r * n_dims;
        float* to = y + r * row + offset;
        if (x != y) std::copy_n(x + r * row, row, y + r * row);
        table.rope(to, own, to, 1, n_heads - 1, head_dim, n_dims, interleaved);
        to += (n_heads - 1) * head_dim;
        table.rope(to, own, to, 1, 1, head_dim - offset, n_dims, interleaved);
    };
    for_rows(worker, rows, row, [&](std::size_t first, std::size_t count) {
        if (offset) {
            for (std::size_t r = first; r < first + count; ++r) behind_offset(r);
            return;
        }
        table.rope(x + first * row, angles + first * n_dims, y + first * row, count, n_heads,
                   head_dim, n_dims, interleaved);
    });
}

Activations activations_for(std::size_t rows) {
    return rows <= 64 ? Activations::q16 : Activations::q8;
}

std::size_t quantized_activation_bytes(Activations kind, std::size_t rows, std::size_t k) {
    return rows * (k / quant_block) * quantized_block_bytes(kind);
}

void quantize_activations(const Worker& worker, const KernelTable& table, Activations kind,
                          const float* x, std::size_t rows, std::size_t k, std::byte* xq) {
    if (k == 0) return;
    deal(worker, rows, table.activation_tile, [&](std::size_t first, std::size_t last) {
        table.quantize_activations(kind, x, rows, k, first, last, xq);
    });
}

void linear_groups(const PackedMatrix& w, const LinearInput& input, std::size_t first,
                   std::size_t last, float* y, std::size_t y_stride) {
    const KernelTable& table = w.table();
    const std::size_t stride = y_stride ? y_stride : w.n();
    if (is_quantized(w.type()) && input.kind != Activations::f32)
        table.linear_quantized(input.kind, w.view(), input.xq, input.rows, first, last, y, stride);
    else
        table.linear_f32(w.view(), input.x, input.rows, first, last, y, stride);
}

void linear(const Worker& worker, const PackedMatrix& w, const float* x, Activations kind,
            const std::byte* xq, std::size_t rows, float* y) {
    if (rows == 0) return;
    const LinearInput input{x, kind, xq, rows};
    deal(worker, w.groups(), dealt_groups,
         [&](std::size_t first, std::size_t last) { linear_groups(w, input, first, last, y); });
}

void linear_plain(const Worker& worker, const KernelTable& table, DType type, const void* w,
                  std::size_t n, std::size_t k, const float* x, std::size_t rows, float* y) {
    if (rows == 0) return;
    auto* scratch =
        static_cast<float*>(thread_scratch(table.matmul_scratch_floats * sizeof(float)));
    deal(worker, n, column_unit(worker, table, n, 512), [&](std::size_t first, std::size_t last) {
        table.linear_plain(type, w, x, rows, k, first, last, y, n, scratch);
    });
}

namespace {

// One row, in parts of k that are the same for any number of threads.  A part reads long stretches
// of the rows of b; parts of columns alone would cut them into pieces too short for the
// prefetchers.
void matmul_one_row(const Worker& worker, const KernelTable& table, const float* a, const float* b,
                    float* c, std::size_t k, std::size_t n, float* sums) {
    constexpr std::size_t parts = matmul_sums(1) + 1;
    const auto count = static_cast<std::size_t>(worker.count());
    const std::size_t columns = round_up(count > 2 ? n / count + 1 : n, 1024);
    const std::size_t pieces = (n + columns - 1) / columns;
    deal(worker, parts * pieces, 1, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = first; i < last; ++i) {
            const std::size_t part = i / pieces, at = i % pieces * columns;
            const std::size_t begin = part * k / parts, end = (part + 1) * k / parts;
            table.matmul(a + begin, k, b + begin * n, n, part ? sums + (part - 1) * n : c, n, 1,
                         end - begin, at, std::min(at + columns, n), nullptr);
        }
    });
    worker.barrier();
    deal(worker, n, 4096, [&](std::size_t first, std::size_t last) {
        for (std::size_t i = 0; i < parts - 1; ++i)
            table.add(c + first, sums + i * n + first, c + first, last - first);
    });
}

}  // namespace

void matmul(const Worker& worker, const KernelTable& table, const float* a, const float* b,
            float* c, std::size_t m, std::size_t k, std::size_t n, float* sums) {
    if (m == 0 || n == 0) return;
    if (m == 1 && n >= 1024) return matmul_one_row(worker, table, a, b, c, k, n, sums);
    auto* scratch =
        static_cast<float*>(thread_scratch(table.matmul_scratch_floats * sizeof(float)));
    if (m <= matmul_few_rows) {
        // They read b once, without packing, and stretches shorter than a page stop the
        // prefetchers.
        const std::size_t unit = n >= 4096 ? 1024 : column_unit(worker, table, n, 512);
        deal(worker, n, unit, [&](std::size_t first, std::size_t last) {
            table.matmul(a, k, b, n, c, n, m, k, first, last, scratch);
        });
        return;
    }
    // Divides the columns, so that each thread packs its own part of b; the rows too if there are
    // too few columns, in pieces that are worth the packing.
    constexpr std::size_t unit = 128, piece = 64;
    const std::size_t units = (n + unit - 1) / unit;
    const bool enough = units >= 4 * static_cast<std::size_t>(worker.count());
    const std::size_t pieces = enough ? 1 : std::max<std::size_t>(m / piece, 1);
    deal(worker, pieces * units, 1, [&](std::size_t first, std::size_t last) {
        while (first < last) {
            const std::size_t p = first / units, u = first % units;
            const std::size_t end = std::min(u + last - first, units);
            const std::size_t row = m * p / pieces, rows = m * (p + 1) / pieces - row;
            table.matmul(a + row * k, k, b, n, c + row * n, n, rows, k, u * unit,
                         std::min(end * unit, n), scratch);
            first += end - u;
        }
    });
}

void embed(const Worker& worker, const KernelTable& table, const RawRows& rows,
           const std::int32_t* ids, std::size_t n_tokens, float scale, float* y) {
    const std::size_t bytes = row_bytes(rows.type, rows.k);
    for_rows(worker, n_tokens, rows.k, [&](std::size_t first, std::size_t count) {
        for (std::size_t t = first; t < first + count; ++t) {
            float* row = y + t * rows.k;
            table.to_float(rows.type, rows.data + static_cast<std::size_t>(ids[t]) * bytes, row,
                           rows.k);
            if (scale != 1.0f)
                for (std::size_t i = 0; i < rows.k; ++i) row[i] *= scale;
        }
    });
}

}  // namespace tensor_ops
