// How much memory the executor of a graph takes, and where its buffers lie in it.  Nothing is
// allocated here: a plan of a model's memory asks as well.
#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "graph/graph.h"
#include "ops/attention.h"

namespace tensor_ops {

// Memory that grows with the positions of a run, in bytes.
struct GrowingMemory {
    std::size_t scores = 0;  // those of index_select and choose_blocks
    std::size_t sparse = 0;  // results of attention over selected positions, and over groups
};

// What an executor allocates for good, in bytes.
struct ExecutorMemory : GrowingMemory {
    std::vector<std::size_t> offsets;        // of internal buffers, floats per token into the arena
    std::vector<std::size_t> embeds_before;  // of each op: how many embed ops come before it
    std::size_t parts = 0;  // attention's results for parts of the positions, of one sequence
    std::size_t arena = 0, products = 0, quantized = 0, expert_rows = 0, chosen = 0, ids = 0,
                ones = 0;
};

// Of a graph that has been checked, for batches of up to max_tokens.  Throws std::invalid_argument
// for more than largest_batch, std::bad_alloc if the bytes are more than any memory has.
ExecutorMemory plan_memory(const Graph& graph, std::size_t max_tokens);

// What a run needs: n_tokens of sequences, the longest of which has `longest` positions with them.
GrowingMemory growing_memory(const Graph& graph, std::size_t n_tokens, std::size_t longest);

// Bytes of attention's results for parts of the positions of a layer's sequences.
std::size_t parts_bytes(const Graph& graph, std::span<const CachedSequence> sequences);

// All bytes of an executor that has run batches of max_tokens of a sequence, up to `positions`.
// Throws as plan_memory, and std::invalid_argument (see Graph::check).
std::size_t executor_bytes(const Graph& graph, std::size_t max_tokens, std::size_t positions);

}  // namespace tensor_ops
