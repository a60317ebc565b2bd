// Runs a graph on the team of threads, all its ops under one run: a thread goes from op to op and
// waits for the others only where an op touches what another thread may still be working on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/graph.h"

namespace tensor_ops {

// What one run works on.  External buffers hold n_tokens rows; the cache holds `past` positions.
struct Batch {
    std::span<void* const> external;  // one pointer for each buffer of the graph, null for internal
    std::size_t n_tokens = 0, past = 0;
    KvCache cache;              // k is null for a graph without attention
    int max_threads = 1 << 20;  // for this run; never more than num_threads()
};

class Executor {
 public:
    // Allocates everything that a run needs, for batches of up to max_tokens.
    // Throws std::invalid_argument (see Graph::check) or std::bad_alloc.
    Executor(Graph graph, std::size_t max_tokens);

    const Graph& graph() const { return graph_; }
    std::size_t max_tokens() const { return max_tokens_; }
    std::size_t bytes() const {
        return arena_.size() + quantized_.size() + parts_.size() + expert_rows_.size();
    }

    // Weights as check_weights accepts them.  Throws std::invalid_argument when the batch does not
    // fit (n_tokens, the cache, a token id); then nothing has run.
    void run(const std::vector<Weight>& weights, const Batch& batch);

 private:
    struct Run;
    void plan_buffers();
    void plan_barriers();
    void check_batch(const std::vector<Weight>& weights, const Batch& batch) const;
    float* buffer(int index, const Batch& batch) const;

    Graph graph_;
    std::size_t max_tokens_;
    std::vector<std::size_t> offsets_;  // of internal buffers, floats per token into the arena
    std::vector<char> barrier_before_;  // of each op: may it touch what another thread works on?
    Joining joining_ = Joining::any_time;  // routed rows decide how an expert's work is dealt out
    AlignedBytes arena_;
    AlignedBytes quantized_;    // the quantised input of the linear op at hand
    AlignedBytes parts_;        // what attention to parts of a long cache gives, until it is merged
    AlignedBytes expert_rows_;  // what one expert of the op at hand takes and gives
};

}  // namespace tensor_ops
