// Runs a graph on the team of threads, all its ops under one run: a thread goes from op to op and
// waits for the others only where an op touches what another thread may still be working on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/graph.h"

namespace tensor_ops {

// Weights as check_weights accepts them, and the sequences with their caches, which have n_tokens
// in all and are not read without attention.
struct Layer {
    const std::vector<Weight>* weights;
    std::span<const CachedSequence> sequences = {};
};

// What one run works on.  External buffers hold n_tokens rows, those of the first sequence first.
struct Batch {
    std::span<void* const> external;  // one pointer for each buffer of the graph, null for internal
    std::size_t n_tokens = 0;
    int max_threads = 1 << 20;  // for this run; never more than num_threads()
    // If not empty, one for each op, to which the time that it took is added; the team then meets
    // after each op.
    std::span<double> seconds = {};
};

class Executor {
 public:
    // Allocates everything that a run needs, for batches of up to max_tokens.
    // Throws std::invalid_argument (see Graph::check) or std::bad_alloc.
    Executor(Graph graph, std::size_t max_tokens);

    const Graph& graph() const { return graph_; }
    std::size_t max_tokens() const { return max_tokens_; }
    // Whether the threads of a run meet before an op.
    bool waits_before(std::size_t op) const { return barrier_before_[op] != 0; }
    std::size_t bytes() const {
        return arena_.size() + quantized_.size() + parts_.size() + expert_rows_.size() +
               chosen_.size() + products_.size() + ids_.size();
    }

    // Runs the graph with one layer's weights and caches after another's, on the same buffers.
    // Throws std::invalid_argument when the batch does not fit (n_tokens, a cache, a token id);
    // then nothing has run.
    void run(std::span<const Layer> layers, const Batch& batch);

 private:
    struct Run;
    void plan_external();
    void plan_buffers();
    void plan_barriers();
    void plan_norms();
    void check_sequences(const Op& op, const Layer& layer, std::size_t n_tokens) const;
    void check_layer(const Layer& layer, const Batch& batch) const;
    void check_external(const Batch& batch) const;
    std::int32_t* ids(std::size_t op) const;
    float* buffer(int index, const Batch& batch) const;

    Graph graph_;
    std::size_t max_tokens_;
    std::vector<std::size_t> offsets_;  // of internal buffers, floats per token into the arena
    std::vector<std::size_t> external_bytes_;  // of each buffer for each token, 0 for internal ones
    std::vector<char> written_;                // of each buffer: does an op write it?
    std::vector<std::size_t> embeds_before_;   // of each op
    std::vector<char> barrier_before_;     // of each op: may it touch what another thread works on?
    Joining joining_ = Joining::any_time;  // routed rows decide how an expert's work is dealt out
    AlignedBytes arena_;
    std::vector<std::vector<int>> matrices_;  // of each quantized_norm: the slots that it is for
    AlignedBytes products_;                   // what a product with an epilogue holds in between
    AlignedBytes quantized_;                  // the quantised input of the linear op at hand
    AlignedBytes parts_;  // what attention to parts of a long cache gives, until it is merged;
                          // grows with the number of sequences, when one runs with more
    AlignedBytes expert_rows_;  // what one expert of the op at hand takes and gives
    AlignedBytes chosen_;       // the experts that its route names
    AlignedBytes ids_;  // of each embed op, as they were checked: what is outside may change
};

}  // namespace tensor_ops
