// Attention to the positions that an index selects (DeepSeek Sparse Attention, arXiv:2512.02556),
// or to blocks of positions, on a team of threads (see ops.h).
//
// The first tokens see all positions up to their own: their attention is that of attention.h, bit
// for bit.  Later tokens see what is selected.  Their numbers depend
// neither on the batch that they come in, nor on pages or threads.
#pragma once

#include <cstddef>
#include <span>

#include "kernels.h"
#include "ops/attention.h"
#include "threads/team.h"

namespace tensor_ops {

inline constexpr std::size_t most_selected = 1u << 16;
// Selections are float32, which has every integer up to this one.
inline constexpr std::size_t most_indexed = 1u << 24;

// Positions of a selection, and rows, of the smallest piece of work: 16 pieces for a token with
// 2048 positions and 128 heads.
inline constexpr std::size_t gathered_positions = 256, gathered_rows = 64;
inline constexpr std::size_t shared_floats = 1u << 20;  // of memory that all workers share: 4 MB

struct IndexCall {
    const float* q;        // [n][n_heads][head_dim of the index]
    const float* weights;  // [n][n_heads]
    std::size_t n_heads, n_selected;
    float* out;  // [n][n_selected]
    std::span<const CachedSequence> sequences;
    std::size_t every = 1;  // if above 1, groups of so many positions are selected, see groups.h
};

// For each token the n_selected positions, up to its own, that have the highest scores (see
// KernelTable::index_scores), in ascending order; or all of them and then -1, if these are fewer.
// NaN counts as the highest score; of equal ones the earlier position is selected.
// `scores` has index_score_floats floats, the same for all workers.
void index_select(const Worker& worker, const KernelTable& table, const IndexCall& call,
                  std::span<float> scores);
// longest: the most positions, or groups, of a sequence, its part of the batch included.
std::size_t index_score_floats(std::size_t longest, std::size_t n_tokens);

// Writes the positions of the n highest of `count` scores to out, n < count, in ascending order.
// NaN is the highest; of equal scores the earlier is taken.
void select_highest(const float* scores, std::size_t count, std::size_t n, float* out);

struct SparseAttentionCall {
    const float* q;  // [n][n_heads][head_dim]
    const float*
        selection;  // [n][n_choices][n_selected], as index_select or choose_blocks writes it
    std::size_t n_heads, n_selected;
    std::size_t n_dense;         // tokens at positions below this see all
    bool blocks = false;         // the selection is of blocks, up to the first -1
    std::size_t block_size = 1;  // positions of a block
    std::size_t n_choices = 1;   // each for as many KV heads, one after another
    float scale;
    const float* sinks = nullptr;  // [n_heads]
    float* out;                    // [n][n_heads][value_dim]
    std::span<const CachedSequence> sequences;

    std::size_t most_positions() const { return n_selected * block_size; }  // of a token
};

// Positions in `selection` that the token does not see are taken for the nearest that it sees.
// parts: memory for attention(), see there.  `workspace` has sparse_workspace_floats floats.  Both
// are the same for all workers.
void sparse_attention(const Worker& worker, const KernelTable& table,
                      const SparseAttentionCall& call, float* parts, std::span<float> workspace);
// n_positions: the most that a token sees of a selection.
std::size_t sparse_workspace_floats(std::size_t n_heads, std::size_t value_dim,
                                    std::size_t n_positions, std::size_t max_tokens);

}  // namespace tensor_ops
