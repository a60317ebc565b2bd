// The plans that an executor makes once: what memory it takes, and where threads must meet.
#include <algorithm>

#include "graph/executor.h"

namespace tensor_ops {

Executor::Executor(Graph graph, std::size_t max_tokens)
    : graph_(std::move(graph)), max_tokens_(max_tokens) {
    graph_.check();
    plan_external();
    const ExecutorMemory memory = plan_memory(graph_, max_tokens_);
    offsets_ = memory.offsets;
    embeds_before_ = memory.embeds_before;
    allocate(memory);
    plan_barriers();
    plan_norms();
    plan_recurrent();
    for (const Op& op : graph_.ops) {
        if (op.kind == OpKind::expert_linear) joining_rows_ = Joining::before_first_barrier;
        slopes_.push_back(op.alibi > 0.0f ? alibi_slopes(op.n_heads, op.alibi)
                                          : std::vector<float>());
    }
}

void Executor::allocate(const ExecutorMemory& memory) {
    arena_ = AlignedBytes(memory.arena);
    expert_rows_ = AlignedBytes(memory.expert_rows);
    products_ = AlignedBytes(memory.products);
    chosen_ = AlignedBytes(memory.chosen);
    ids_ = AlignedBytes(memory.ids);
    quantized_ = AlignedBytes(memory.quantized);
    parts_ = AlignedBytes(memory.parts);
    sparse_ = AlignedBytes(memory.sparse);
    ones_.assign(memory.ones / sizeof(float), 1.0f);
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

// An op keeps at most 2^39 floats (conv: 7 taps before, 64 apart, 2^30 wide), so it takes 2^25 ops,
// more than 10 GB of them, until their sum overflows.
void Executor::plan_recurrent() {
    for (const Op& op : graph_.ops) {
        recurrent_first_.push_back(recurrent_floats_);
        recurrent_floats_ += graph_.recurrent_floats(op);
    }
}

}  // namespace tensor_ops
