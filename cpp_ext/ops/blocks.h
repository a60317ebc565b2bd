// Which blocks of positions a token sees, on a team of threads (see ops.h).  Block b has the
// block_size positions from b * block_size on.  Attention to them is in sparse.h.
#pragma once

#include <cstddef>
#include <span>

#include "kernels.h"
#include "ops/attention.h"
#include "threads/team.h"

namespace tensor_ops {

struct BlockCall {
    const float* q;  // [n][n_heads][head_dim of the index]
    std::size_t n_heads, block_size, n_chosen;
    std::size_t n_local;  // of the chosen blocks, how many are the last ones in any case
    // The index has the keys of complete blocks, and not of positions.
    bool pooled;
    float* out;  // [n][n_choices()][n_entries()]
    std::span<const CachedSequence> sequences;

    // One that all heads make together, or one of each head.
    std::size_t n_choices() const { return pooled ? 1 : n_heads; }
    // Of a choice: the chosen blocks and, if pooled, the token's own while it is not complete.
    std::size_t n_entries() const { return n_chosen + pooled; }
};

// For each token and choice the numbers of blocks that begin at or before the token, in ascending
// order, and then -1: all, or the last ones and, of the others, those with the highest scores, in
// which of equal ones the earlier is chosen.  The score of a block is that of
// KernelTable::block_scores or, if pooled, that of KernelTable::index_scores, where each head
// counts once and NaN is the highest.
// `scores` has block_score_floats floats, the same for all workers.  The choice depends neither on
// the batch, nor on pages or threads.
void choose_blocks(const Worker& worker, const KernelTable& table, const BlockCall& call,
                   std::span<float> scores);
// longest: the most positions of a sequence, its part of the batch included.
std::size_t block_score_floats(std::size_t n_choices, std::size_t block_size, std::size_t longest,
                               std::size_t n_tokens);

}  // namespace tensor_ops
