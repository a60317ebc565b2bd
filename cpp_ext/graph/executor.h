// Runs a graph on the team of threads, all its ops in one run of the team.  A thread goes from op
// to op, and waits for the others only before an op that touches memory which another thread may
// still be working on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "graph/graph.h"
#include "graph/memory.h"

namespace tensor_ops {

// The weights of a layer, as check_weights accepts them, the sequences with their caches, of
// n_tokens tokens in all, and the layer's number.  A graph without attention does not read the
// sequences.
struct Layer {
    const std::vector<Weight>* weights;
    std::span<const CachedSequence> sequences = {};
    std::size_t number = 0;
};

// The data of one run.  External buffers hold n_tokens rows, those of the first sequence first.
struct Batch {
    std::span<void* const> external;  // one pointer for each buffer of the graph, null for internal
    std::size_t n_tokens = 0;
    int max_threads = 1 << 20;  // for this run; never more than num_threads()
    // If not empty: an element for each op, to which the run adds the op's time.  The team then
    // meets after each op.
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
    // When a thread that wakes late may join a run of n_tokens.
    Joining joining(std::size_t n_tokens) const {
        return n_tokens == 1 ? Joining::any_time : joining_rows_;
    }
    // How often the threads of the last run met.
    std::size_t meetings() const { return meetings_; }
    std::size_t bytes() const {
        return arena_.size() + quantized_.size() + parts_.size() + expert_rows_.size() +
               chosen_.size() + products_.size() + ids_.size() + scores_.size() + sparse_.size() +
               ones_.size() * sizeof(float);
    }

    // Runs the graph for one layer after another, on the same buffers.
    // Throws std::invalid_argument if the batch does not fit (n_tokens, a cache, a token id); then
    // nothing has run.
    // Throws std::bad_alloc; then a part may have run, and have changed what sequences keep.
    void run(std::span<const Layer> layers, const Batch& batch);

 private:
    struct Run;
    void allocate(const ExecutorMemory& memory);
    void plan_external();
    void plan_barriers();
    void plan_norms();
    void plan_recurrent();
    void check_sequences(const Op& op, const Layer& layer) const;
    void check_tokens(const Layer& layer, std::size_t n_tokens) const;
    void check_layer(const Layer& layer, const Batch& batch) const;
    void check_external(const Batch& batch) const;
    std::int32_t* ids(std::size_t op) const;
    float* buffer(int index, const Batch& batch) const;

    Graph graph_;
    std::size_t max_tokens_;
    std::vector<std::size_t> offsets_;  // of internal buffers, floats per token into the arena
    std::vector<std::size_t> external_bytes_;  // of each buffer for each token, 0 for internal ones
    std::vector<char> written_;                // of each buffer: does an op write it?
    std::vector<std::size_t> embeds_before_;   // of each op: how many embed ops come before it
    std::vector<std::size_t> recurrent_first_;  // of each op: its floats in the recurrent memory
    std::size_t recurrent_floats_ = 0;          // of all ops
    std::vector<char> barrier_before_;  // of each op: may it touch what another thread works on?
    // Of several rows; before_first_barrier with experts, as the route decides how their work is
    // dealt out.
    Joining joining_rows_ = Joining::any_time;
    std::size_t meetings_ = 0;
    AlignedBytes arena_;
    std::vector<std::vector<int>> matrices_;  // of each quantized_norm: the slots of its readers
    AlignedBytes products_;                   // the products of linear_add and glu_linear
    AlignedBytes quantized_;                  // the quantised input of the current linear op
    AlignedBytes parts_;   // attention's results for parts of a long cache, until they are merged;
                           // grows when a run has more sequences than any before
    AlignedBytes scores_;  // those of index_select; grows with the positions
    AlignedBytes sparse_;  // sparse_attention's results for parts of a selection, and those of
                           // group_attention, for which it grows with the positions
    AlignedBytes expert_rows_;  // the inputs and outputs of one expert of the current op, or the
                                // inputs of all heads
    AlignedBytes chosen_;       // the experts that its route names
    std::vector<float> ones_;   // the weight of norms without a weight
    std::vector<std::vector<float>> slopes_;  // of each op: attention's, if it has some
    AlignedBytes ids_;  // a copy for each embed op, which is checked: the caller's may change
};

}  // namespace tensor_ops
