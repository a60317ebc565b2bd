#include "graph/memory.h"

#include <algorithm>
#include <cstdint>
#include <new>
#include <stdexcept>
#include <string>

#include "ops/blocks.h"
#include "ops/groups.h"
#include "ops/heads.h"
#include "ops/sparse.h"

namespace tensor_ops {
namespace {

// Far beyond any model, but no product overflows.
constexpr std::size_t most_positions = std::size_t{1} << 32;

void check_at_most(const std::string& name, std::size_t value, std::size_t most) {
    if (value > most)
        throw std::invalid_argument(name + " is " + std::to_string(value) + "; expected at most " +
                                    std::to_string(most));
}

void grow(std::size_t& bytes, std::size_t needed) { bytes = std::max(bytes, needed); }

std::size_t width(const Graph& graph, int buffer) {
    return graph.buffers[static_cast<std::size_t>(buffer)].width;
}

// Gives each internal buffer a place for the ops between its first and last use, so that buffers
// which do not live at the same time share memory.  Returns the floats of a token.
std::size_t place_buffers(const Graph& graph, std::vector<std::size_t>& offsets) {
    const std::size_t n = graph.buffers.size();
    std::vector<std::size_t> first(n, SIZE_MAX), last(n, 0);
    for (std::size_t i = 0; i < graph.ops.size(); ++i) {
        const auto use = [&](int buffer) {
            const auto b = static_cast<std::size_t>(buffer);
            first[b] = std::min(first[b], i);
            last[b] = std::max(last[b], i);
        };
        for (const int input : graph.ops[i].inputs) use(input);
        for (const int output : graph.ops[i].outputs()) use(output);
    }
    offsets.assign(n, 0);
    std::size_t total = 0;
    for (std::size_t b = 0; b < n; ++b) {
        if (graph.buffers[b].external) continue;
        // The lowest place where it overlaps no buffer that is alive at the same time.
        std::size_t offset = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (std::size_t o = 0; o < b; ++o) {
                const bool alive =
                    !graph.buffers[o].external && first[o] <= last[b] && first[b] <= last[o];
                const bool overlaps = offset < offsets[o] + graph.buffers[o].width &&
                                      offsets[o] < offset + graph.buffers[b].width;
                if (alive && overlaps) {
                    offset = offsets[o] + graph.buffers[o].width;
                    moved = true;
                }
            }
        }
        offsets[b] = offset;
        total = std::max(total, offset + graph.buffers[b].width);
    }
    return total;
}

// Bytes of the quantised rows of an op's input.
std::size_t quantized_bytes(const Op& op, std::size_t rows, std::size_t k) {
    if (op.activations == Activations::f32) return 0;
    return quantized_activation_bytes(op.activations.value_or(Activations::q16), rows, k);
}

}  // namespace

ExecutorMemory plan_memory(const Graph& graph, std::size_t max_tokens) {
    check_at_most("max_tokens", max_tokens, largest_batch);
    ExecutorMemory memory;
    // Many buffers may be wider together than longest_row.
    const std::size_t floats = place_buffers(graph, memory.offsets);
    if (__builtin_mul_overflow(max_tokens * sizeof(float), floats, &memory.arena))
        throw std::bad_alloc();
    std::size_t embeds = 0;
    for (const Op& op : graph.ops) {
        const auto row_bytes = [&](std::size_t n) { return max_tokens * n * sizeof(float); };
        const std::size_t x = op.inputs.empty() ? 0 : width(graph, op.inputs[0]);
        const std::size_t y = op.output < 0 ? 0 : width(graph, op.output);
        memory.embeds_before.push_back(embeds);
        if (op.kind == OpKind::embed) ++embeds;
        if (op.kind == OpKind::linear_add || op.kind == OpKind::glu_linear)
            grow(memory.products, row_bytes(y));
        if (op.kind == OpKind::head_norm && op.weight < 0)
            grow(memory.ones, sizeof(float) * (y / op.n_heads));
        if (op.kind == OpKind::layer_norm && op.weight < 0) grow(memory.ones, sizeof(float) * y);
        if (op.kind == OpKind::attention || selects_positions(op.kind))
            memory.parts = attention_workspace_floats * sizeof(float);
        if (selects_positions(op.kind)) {
            const std::size_t selected = width(graph, op.inputs[1]) / op.n_choices * op.block_size;
            grow(memory.sparse,
                 sizeof(float) * sparse_workspace_floats(op.n_heads, graph.value_dim(op), selected,
                                                         max_tokens));
        }
        if (is_product(op.kind) || op.kind == OpKind::quantized_norm)
            grow(memory.quantized, quantized_bytes(op, max_tokens, x));
        if (op.kind == OpKind::expert_linear) {
            const std::size_t k = x / (op.shared ? 1 : op.n_used);
            grow(memory.chosen, max_tokens * op.n_used * sizeof(std::uint32_t));
            grow(memory.expert_rows, row_bytes(k + y / op.n_used));
            grow(memory.quantized, quantized_bytes(op, std::max(max_tokens, op.n_used), k));
        }
        if (op.kind == OpKind::head_linear) {
            const std::size_t rows = std::min(max_tokens, heads_at_once);
            grow(memory.expert_rows, rows * x * sizeof(float));
            grow(memory.quantized, quantized_bytes(op, rows * op.n_heads, x / op.n_heads));
        }
    }
    memory.ids = max_tokens * embeds * sizeof(std::int32_t);
    return memory;
}

std::size_t parts_bytes(const Graph& graph, std::span<const CachedSequence> sequences) {
    std::size_t floats = 0;
    for (const Op& op : graph.ops) {
        if (op.kind != OpKind::attention && !selects_positions(op.kind)) continue;
        std::size_t of_op = 0;
        for (const CachedSequence& sequence : sequences)
            of_op += attention_floats(op.n_heads, sequence);
        grow(floats, of_op);
    }
    return floats * sizeof(float);
}

GrowingMemory growing_memory(const Graph& graph, std::size_t n_tokens, std::size_t longest) {
    GrowingMemory memory;
    for (const Op& op : graph.ops) {
        const std::size_t groups = longest / op.every;
        if (op.kind == OpKind::index_select) {
            grow(memory.scores, sizeof(float) * index_score_floats(groups, n_tokens));
        } else if (op.kind == OpKind::choose_blocks) {
            const std::size_t n_choices = op.pooled ? 1 : op.n_heads;
            grow(memory.scores,
                 sizeof(float) * block_score_floats(n_choices, op.block_size, longest, n_tokens));
        } else if (attends_groups(op.kind)) {
            const bool selects = op.kind == OpKind::sparse_group_attention;
            const std::size_t selected = selects ? width(graph, op.inputs[1]) : groups;
            const std::size_t seen = std::min(op.window, longest) + std::min(groups, selected);
            grow(memory.sparse,
                 sizeof(float) * group_workspace_floats(op.n_heads, op.head_dim, seen, n_tokens));
        }
    }
    return memory;
}

std::size_t executor_bytes(const Graph& graph, std::size_t max_tokens, std::size_t positions) {
    graph.check();
    check_at_most("positions", positions, most_positions);
    const ExecutorMemory memory = plan_memory(graph, max_tokens);
    const GrowingMemory most = growing_memory(graph, max_tokens, positions);
    return memory.arena + memory.products + memory.quantized + memory.expert_rows + memory.chosen +
           memory.ids + memory.ones + memory.parts + std::max(memory.scores, most.scores) +
           std::max(memory.sparse, most.sparse);
}

}  // namespace tensor_ops
