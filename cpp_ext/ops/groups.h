// Groups of positions that have a key together, and attention to these beside a window (DeepSeek
// V4's compressed attention), on a team of threads (see ops.h).
//
// A group of `every` positions gets its key from its last token.  A token sees the groups that end
// at its position or before.  Numbers depend neither on the batch that a token comes in, nor on
// pages or threads.
#pragma once

#include <cstddef>
#include <span>

#include "kernels.h"
#include "ops/attention.h"
#include "threads/team.h"

namespace tensor_ops {

inline constexpr std::size_t most_in_group = 1u << 12;  // positions

// How a sequence's memory is found: the groups, the index, or what either will be made of.
using GroupMemory = KvCache CachedSequence::*;

// Writes x and gate, [n][n_parts * width] each, to `pending`, whose heads are the parts.  Then
// y[t], [width], of the last token of a group is, for each column c, the sum of the values x[.][c]
// of the group by shares that are the softmax of gate[.][c] + bias[i][c], i < every.  With two
// parts, the sum is over the first part of the group before, unless it is the first group, and over
// the second part of the group.  Of other tokens y is 0.
struct PoolCall {
    const float *x, *gate;
    const float* bias;  // [every][n_parts * width]
    std::size_t every, n_parts, width;
    GroupMemory pending;  // of float32
    float* y;             // [n][width]
    std::span<const CachedSequence> sequences;
};
void pool_groups(const Worker& worker, const KernelTable& table, const PoolCall& call);

// Writes the rows of x, [n][width], that belong to last tokens of groups, as the groups' keys.
void append_groups(const Worker& worker, const KernelTable& table, const float* x,
                   std::size_t width, std::size_t every, GroupMemory groups,
                   std::span<const CachedSequence> sequences);

struct GroupAttentionCall {
    const float* q;          // [n][n_heads][head_dim]
    const float* selection;  // [n][n_selected], as index_select writes it; null: all groups
    std::size_t n_heads, n_selected, window, every;
    float scale;
    const float* sinks;  // [n_heads], or null
    float* out;          // as q
    std::span<const CachedSequence> sequences;
};
// Attention to the last `window` positions and to groups; both have one KV head, and their values
// are their keys.  Numbers in `selection` that name no group are taken for the nearest that does.
// `workspace` has group_workspace_floats floats, the same for all workers.
void group_attention(const Worker& worker, const KernelTable& table, const GroupAttentionCall& call,
                     std::span<float> workspace);
// most_seen: positions and groups that a token sees, at most.
std::size_t group_workspace_floats(std::size_t n_heads, std::size_t head_dim, std::size_t most_seen,
                                   std::size_t n_tokens);

}  // namespace tensor_ops
