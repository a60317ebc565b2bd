// Attention over the sequences of a call, and what goes into the cache before, on a team of
// threads.
#pragma once

#include "flash_attention/call.h"
#include "threads/team.h"

namespace tensor_ops::flash {

// Appends the new keys, then computes out and lse. The workspace is that of the call's params.
void forward(const KernelTable& table, int threads, const Call& call);
// Writes new keys and values into the cache, by all workers. row: a row of floats of each worker's
// own; angles: likewise rotary_dim floats.
void append(const Worker& worker, const KernelTable& table, const Call& call, float* row,
            float* angles);
// Appends alone; needs no workspace.
void append(const KernelTable& table, int threads, const Call& call);

}  // namespace tensor_ops::flash
