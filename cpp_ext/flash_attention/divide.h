// How the work on each sequence is divided: queries into runs, keys into parts. That depends on
// shapes and lengths alone, so that results do not depend on the number of threads.
#pragma once

#include <cstdint>

#include "flash_attention/call.h"

namespace tensor_ops::flash {

// A run: queries [token, token + n_tokens) of a sequence and, of the heads that share a KV head,
// heads [head, head + n_heads).
struct Run {
    std::size_t token, n_tokens, head, n_heads;
    std::size_t rows() const { return n_tokens * n_heads; }
};

// The division of a sequence's work. Each of its KV heads has `runs` runs and `parts` parts.
struct Division {
    std::size_t token_runs, head_runs, parts;
    std::size_t positions, first_part;  // if there are several parts, as in AttentionParts
    std::size_t runs() const { return token_runs * head_runs; }
    Run run(const Call& call, const Sequence& s, std::size_t i) const;
};

Division divide(const Call& call, const Sequence& s);
// The most parts of any sequence of the call.
std::size_t most_parts(const Call& call);

// The call's workspace, in bytes from its first multiple of 64.
struct Workspace {
    std::size_t pages_k, pages_v;  // if there are pages: pointers [b][pages_of_sequence]
    std::size_t pages_of_sequence;
    std::size_t parts;    // floats [part][row of all queries and heads][d_v + 2], by sequence
    std::size_t scratch;  // of each thread
    std::size_t scratch_bytes;
    std::size_t bytes;  // in all, with room for the alignment
};
// Refuses a call for which no memory suffices.
Workspace workspace_of(const Call& call, std::size_t threads, std::size_t kernel_floats);

// What lies in a thread's scratch, in floats from its beginning; the kernels' scratch comes first.
struct Scratch {
    std::size_t q, out, angles, row, floats;
};
Scratch scratch_of(const Call& call, std::size_t kernel_floats);

}  // namespace tensor_ops::flash
