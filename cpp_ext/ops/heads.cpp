#include "ops/heads.h"

#include <algorithm>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

// The inputs of a batch of rows, head by head: head h's at x + h * rows * k, or in quantised form
// at quantized + h * quantized_bytes.
struct Gathered {
    const float* x;
    std::size_t rows, quantized_bytes;
};

// Gathers the inputs of `rows` rows from `first` on, and quantises them.  The inputs of one row lie
// head by head already.
Gathered gather(const Worker& worker, const Experts& heads, const HeadTask& task, std::size_t first,
                std::size_t rows) {
    const KernelTable& table = heads[0]->table();
    const std::size_t count = heads.size(), k = heads[0]->k(), tile = table.activation_tile;
    const bool quantize = is_quantized(heads[0]->type()) && task.kind != Activations::f32;
    const float* from = task.x + first * count * k;
    const Gathered all{rows == 1 ? from : task.scratch, rows,
                       quantize ? quantized_activation_bytes(task.kind, rows, k) : 0};
    if (rows == 1 && !quantize) return all;
    const std::size_t tiles = (rows + tile - 1) / tile;
    const std::size_t unit = std::max<std::size_t>(1, dealt_elements / (tile * k + 1));
    deal(worker, count * tiles, unit, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end; ++i) {
            const std::size_t h = i / tiles, r = i % tiles * tile, last = std::min(r + tile, rows);
            if (rows > 1)
                for (std::size_t t = r; t < last; ++t)
                    std::copy_n(from + (t * count + h) * k, k, task.scratch + (h * rows + t) * k);
            if (quantize)
                table.quantize_activations(task.kind, all.x + h * rows * k, rows, k, r, last,
                                           task.quantized + h * all.quantized_bytes);
        }
    });
    worker.barrier();
    return all;
}

}  // namespace

void head_linear(const Worker& worker, const Experts& heads, const HeadTask& task) {
    const std::size_t count = heads.size(), n = heads[0]->n(), k = heads[0]->k();
    const std::size_t groups = heads[0]->groups();
    for (std::size_t first = 0; first < task.rows; first += heads_at_once) {
        if (first) worker.barrier();  // others may still read the inputs of the rows before
        const Gathered in =
            gather(worker, heads, task, first, std::min(heads_at_once, task.rows - first));
        Deal deal(worker, count * groups, dealt_groups);
        for (std::size_t h = 0; h < count; ++h) {
            const LinearInput input{in.x + h * in.rows * k, task.kind,
                                    task.quantized + h * in.quantized_bytes, in.rows};
            deal.within(h * groups, (h + 1) * groups, [&](std::size_t begin, std::size_t end) {
                linear_groups(*heads[h], input, begin - h * groups, end - h * groups,
                              task.y + (first * count + h) * n, count * n);
            });
        }
    }
}

}  // namespace tensor_ops
