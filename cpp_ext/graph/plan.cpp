// The plans that an executor makes once: where buffers lie, and where threads must meet.
#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "graph/executor.h"
#include "ops/heads.h"
#include "ops/sparse.h"

namespace tensor_ops {

Executor::Executor(Graph graph, std::size_t max_tokens)
    : graph_(std::move(graph)), max_tokens_(max_tokens) {
    graph_.check();
    if (max_tokens > largest_batch)
        throw std::invalid_argument("max_tokens is " + std::to_string(max_tokens) +
                                    "; expected at most " + std::to_string(largest_batch));
    plan_external();
    plan_buffers();
    plan_barriers();
    plan_norms();
    plan_recurrent();
    for (const Op& op : graph_.ops)
        if (op.kind == OpKind::expert_linear) joining_rows_ = Joining::before_first_barrier;
}

void Executor::plan_external() {
    const std::size_t n = graph_.buffers.size();
    external_bytes_.assign(n, 0);
    written_.assign(n, 0);
    for (std::size_t b = 0; b < n; ++b)
        if (graph_.buffers[b].external)
            external_bytes_[b] = row_bytes(DType::f32, graph_.buffers[b].width);
    for (const Op& op : graph_.ops) {
        for (const int output : op.outputs()) written_[static_cast<std::size_t>(output)] = 1;
        if (const int b = quantized_buffer(op); b >= 0)
            external_bytes_[static_cast<std::size_t>(b)] =
                row_bytes(DType::q8_0, graph_.buffers[static_cast<std::size_t>(b)].width);
    }
}

// Gives each internal buffer a place for the ops between its first and last use, so that buffers
// which do not live at the same time share memory.
void Executor::plan_buffers() {
    const std::size_t n = graph_.buffers.size();
    std::vector<std::size_t> first(n, SIZE_MAX), last(n, 0);
    std::size_t quantized_bytes = 0, parts_floats = 0, expert_floats = 0, product_floats = 0;
    std::size_t embeds = 0, most_used = 0, head_floats = 0, sparse_floats = 0;
    for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        const Op& op = graph_.ops[i];
        const auto use = [&](int buffer) {
            const auto b = static_cast<std::size_t>(buffer);
            first[b] = std::min(first[b], i);
            last[b] = std::max(last[b], i);
        };
        for (const int input : op.inputs) use(input);
        for (const int output : op.outputs()) use(output);
        if (op.kind == OpKind::linear_add || op.kind == OpKind::glu_linear)
            product_floats =
                std::max(product_floats, graph_.buffers[static_cast<std::size_t>(op.output)].width);
        if (op.kind == OpKind::head_norm && op.weight < 0)
            ones_.resize(
                std::max(ones_.size(),
                         graph_.buffers[static_cast<std::size_t>(op.output)].width / op.n_heads),
                1.0f);
        if (op.kind == OpKind::attention || selects_positions(op.kind))
            parts_floats = attention_workspace_floats;
        if (selects_positions(op.kind))
            sparse_floats = std::max(
                sparse_floats, sparse_workspace_floats(
                                   op.n_heads, graph_.value_dim(op),
                                   graph_.buffers[static_cast<std::size_t>(op.inputs[1])].width /
                                       op.n_choices * op.block_size,
                                   max_tokens_));
        const bool quantizes = is_product(op.kind) || op.kind == OpKind::quantized_norm;
        if (quantizes && op.activations != Activations::f32) {
            const auto kind = op.activations.value_or(Activations::q16);
            const Buffer& x = graph_.buffers[static_cast<std::size_t>(op.inputs[0])];
            quantized_bytes =
                std::max(quantized_bytes, quantized_activation_bytes(kind, max_tokens_, x.width));
        }
        embeds_before_.push_back(embeds);
        if (op.kind == OpKind::embed) ++embeds;
        if (op.kind == OpKind::expert_linear) {
            most_used = std::max(most_used, op.n_used);
            const std::size_t k = graph_.buffers[static_cast<std::size_t>(op.inputs[0])].width /
                                  (op.shared ? 1 : op.n_used);
            const std::size_t y = graph_.buffers[static_cast<std::size_t>(op.output)].width;
            expert_floats = std::max(expert_floats, k + y / op.n_used);
            if (op.activations != Activations::f32)
                quantized_bytes =
                    std::max(quantized_bytes,
                             quantized_activation_bytes(op.activations.value_or(Activations::q16),
                                                        std::max(max_tokens_, op.n_used), k));
        }
    }
    for (const Op& op : graph_.ops) {
        if (op.kind != OpKind::head_linear) continue;
        const std::size_t x = graph_.buffers[static_cast<std::size_t>(op.inputs[0])].width;
        const std::size_t rows = std::min(max_tokens_, heads_at_once);
        head_floats = std::max(head_floats, rows * x);
        if (op.activations != Activations::f32)
            quantized_bytes =
                std::max(quantized_bytes,
                         quantized_activation_bytes(op.activations.value_or(Activations::q16),
                                                    rows * op.n_heads, x / op.n_heads));
    }
    offsets_.assign(n, 0);
    std::size_t total = 0;
    for (std::size_t b = 0; b < n; ++b) {
        if (graph_.buffers[b].external) continue;
        // The lowest place where it overlaps no buffer that is alive at the same time.
        std::size_t offset = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (std::size_t o = 0; o < b; ++o) {
                const bool alive =
                    !graph_.buffers[o].external && first[o] <= last[b] && first[b] <= last[o];
                const bool overlaps = offset < offsets_[o] + graph_.buffers[o].width &&
                                      offsets_[o] < offset + graph_.buffers[b].width;
                if (alive && overlaps) {
                    offset = offsets_[o] + graph_.buffers[o].width;
                    moved = true;
                }
            }
        }
        offsets_[b] = offset;
        total = std::max(total, offset + graph_.buffers[b].width);
    }
    // Many buffers may be wider together than longest_row.
    std::size_t bytes;
    if (__builtin_mul_overflow(max_tokens_ * sizeof(float), total, &bytes)) throw std::bad_alloc();
    arena_ = AlignedBytes(bytes);
    expert_rows_ = AlignedBytes(sizeof(float) * std::max(max_tokens_ * expert_floats, head_floats));
    products_ = AlignedBytes(max_tokens_ * sizeof(float) * product_floats);
    chosen_ = AlignedBytes(max_tokens_ * most_used * sizeof(std::uint32_t));
    ids_ = AlignedBytes(max_tokens_ * embeds * sizeof(std::int32_t));
    quantized_ = AlignedBytes(quantized_bytes);
    parts_ = AlignedBytes(parts_floats * sizeof(float));
    sparse_ = AlignedBytes(sparse_floats * sizeof(float));
}

// A barrier comes before each op that reads memory written since the last barrier, or writes memory
// read or written since then.  Places in memory are compared, as buffers share them.  The KV cache
// counts as one more buffer, `products_` as another, and so do the index, the groups, what groups
// and the index are made of, and the memory in which attention and scores of the index keep results
// of their own.
void Executor::plan_barriers() {
    const std::size_t n = graph_.buffers.size();
    std::vector<char> written(n + 7), read(n + 7);
    const auto touched = [&](const std::vector<char>& marks, std::size_t b) {
        for (std::size_t o = 0; o < n; ++o) {
            const bool same =
                o == b || (b < n && !graph_.buffers[o].external && !graph_.buffers[b].external &&
                           offsets_[o] < offsets_[b] + graph_.buffers[b].width &&
                           offsets_[b] < offsets_[o] + graph_.buffers[o].width);
            if (marks[o] && same) return true;
        }
        return b >= n && marks[b] != 0;
    };
    for (const Op& op : graph_.ops) {
        std::vector<std::size_t> inputs(op.inputs.begin(), op.inputs.end()), outputs;
        for (const int output : op.outputs()) outputs.push_back(static_cast<std::size_t>(output));
        if (appends_keys(op.kind)) outputs.push_back(n);
        if (op.kind == OpKind::linear_add || op.kind == OpKind::glu_linear)
            outputs.push_back(n + 1);
        const bool attends =
            op.kind == OpKind::attention || selects_positions(op.kind) || attends_groups(op.kind);
        if (attends) inputs.push_back(n);
        if (op.kind == OpKind::group_append) outputs.push_back(n + 4);
        if (attends_groups(op.kind)) inputs.push_back(n + 4);
        if (op.kind == OpKind::pool_groups) outputs.push_back(n + 5 + op.of_index);
        if (op.kind == OpKind::index_append) outputs.push_back(n + 2);
        if (scores_index(op.kind)) inputs.push_back(n + 2);
        if (attends || scores_index(op.kind)) outputs.push_back(n + 3);
        bool conflict = false;
        for (const std::size_t b : inputs) conflict |= touched(written, b);
        for (const std::size_t b : outputs) conflict |= touched(written, b) || touched(read, b);
        if (conflict) {
            std::fill(written.begin(), written.end(), 0);
            std::fill(read.begin(), read.end(), 0);
        }
        for (const std::size_t b : inputs) read[b] = 1;
        for (const std::size_t b : outputs) written[b] = 1;
        barrier_before_.push_back(conflict);
    }
}

void Executor::plan_norms() {
    matrices_.resize(graph_.ops.size());
    for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        if (graph_.ops[i].kind != OpKind::quantized_norm) continue;
        const int normed = graph_.ops[i].output;
        for (std::size_t j = i + 1; j < graph_.ops.size(); ++j) {
            const Op& op = graph_.ops[j];
            if (is_product(op.kind) && op.inputs[0] == normed)
                for (const int slot : op.weights()) matrices_[i].push_back(slot);
            const std::vector<int> outputs = op.outputs();
            if (std::find(outputs.begin(), outputs.end(), normed) != outputs.end()) break;
        }
    }
}

void Executor::plan_recurrent() {
    for (const Op& op : graph_.ops) {
        recurrent_first_.push_back(recurrent_floats_);
        if (__builtin_add_overflow(recurrent_floats_, graph_.recurrent_floats(op),
                                   &recurrent_floats_))
            throw std::bad_alloc();
    }
}

}  // namespace tensor_ops
