// Small graphs, their weights and their runs, in few words.
#pragma once

#include <utility>

#include "graph/executor.h"
#include "matrices.h"

namespace graphs {

using tensor_ops::Activations;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;
using tensor_ops::OpKind;
using tensor_ops::Weight;

// Buffers and slots are known by the numbers that the functions return.
class Builder {
 public:
    int external(const char* name, std::size_t width) { return buffer(name, width, true); }
    int internal(const char* name, std::size_t width) { return buffer(name, width, false); }
    int slot(const char* name) {
        graph.weights.emplace_back(name);
        return static_cast<int>(graph.weights.size()) - 1;
    }
    Op& op(OpKind kind, std::vector<int> inputs, int output = -1, int weight = -1) {
        Op op{};
        op.kind = kind;
        op.inputs = std::move(inputs);
        op.output = output;
        op.weight = weight;
        graph.ops.push_back(std::move(op));
        return graph.ops.back();
    }

    Graph graph;

 private:
    int buffer(const char* name, std::size_t width, bool external) {
        graph.buffers.push_back({name, width, external});
        return static_cast<int>(graph.buffers.size()) - 1;
    }
};

inline Weight packed(const matrices::Matrix& m) {
    return std::make_shared<const tensor_ops::PackedMatrix>(
        m.type, std::span(m.bytes.data(), m.bytes.size()), m.n, m.k);
}

inline Weight vector(const arrays::Floats& values) {
    return tensor_ops::Vector{values.data(), values.size()};
}

inline Weight raw_rows(const matrices::Matrix& m) {
    return tensor_ops::RawRows{m.bytes.data(), m.type, m.n, m.k};
}

// One run; `external` says where each external buffer lies.
inline void run(Executor& executor, const std::vector<Weight>& weights,
                const std::vector<std::pair<int, void*>>& external,
                std::span<const tensor_ops::CachedSequence> sequences) {
    std::vector<void*> pointers(executor.graph().buffers.size());
    for (const auto& [buffer, pointer] : external)
        pointers[static_cast<std::size_t>(buffer)] = pointer;
    std::size_t n_tokens = 0;
    for (const auto& sequence : sequences) n_tokens += sequence.n_tokens;
    tensor_ops::check_weights(executor.graph(), weights);
    const tensor_ops::Layer layer{&weights, sequences};
    executor.run({&layer, 1}, {.external = pointers, .n_tokens = n_tokens});
}

inline void run(Executor& executor, const std::vector<Weight>& weights,
                const std::vector<std::pair<int, void*>>& external, std::size_t n_tokens,
                std::size_t past = 0, tensor_ops::KvCache cache = {}) {
    const tensor_ops::CachedSequence sequence{n_tokens, past, cache};
    run(executor, weights, external, std::span(&sequence, 1));
}

}  // namespace graphs
