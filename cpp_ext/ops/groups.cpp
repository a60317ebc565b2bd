#include "ops/groups.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "ops/ops.h"
#include "ops/sparse.h"

namespace tensor_ops {
namespace {

constexpr std::size_t pooled_columns = 64;  // of the smallest piece of work

struct GroupToken {
    const CachedSequence* sequence;
    std::size_t row;       // of the batch
    std::size_t position;  // of the sequence
};

template <class F>
void for_tokens(std::span<const CachedSequence> sequences, F&& f) {
    std::size_t row = 0;
    for (const CachedSequence& s : sequences)
        for (std::size_t t = 0; t < s.n_tokens; ++t) f(GroupToken{&s, row++, s.past + t});
}

bool is_last(const GroupToken& token, std::size_t every) {
    return (token.position + 1) % every == 0;
}

std::vector<GroupToken> last_tokens(std::span<const CachedSequence> sequences, std::size_t every) {
    std::vector<GroupToken> found;
    for_tokens(sequences, [&](const GroupToken& token) {
        if (is_last(token, every)) found.push_back(token);
    });
    return found;
}

// Columns [first, first + count) of the key of the group whose last token this is.  scratch has
// count * n_parts * every floats.
void pool(const KernelTable& table, const PoolCall& call, const GroupToken& token,
          std::size_t first, std::size_t count, float* scratch) {
    const KvCache& pending = token.sequence->*call.pending;
    const std::size_t every = call.every, end = token.position + 1;
    const std::size_t all = call.n_parts * call.width;
    // A first group has no group before it.
    const std::size_t parts = std::min(call.n_parts, end / every), n = parts * every;
    const auto row = [&](const KvRows& rows, std::size_t position) {
        return reinterpret_cast<const float*>(rows.row(position)) + first;
    };
    for (std::size_t i = 0; i < n; ++i) {
        const std::size_t part = call.n_parts - parts + i / every;
        const float* gate = row(pending.values(part), end - n + i);
        const float* bias = call.bias + i % every * all + part * call.width + first;
        for (std::size_t c = 0; c < count; ++c) scratch[c * n + i] = gate[c] + bias[c];
    }
    table.softmax(scratch, scratch, count, n, false);
    float* const y = call.y + token.row * call.width + first;
    std::fill_n(y, count, 0.0f);
    for (std::size_t i = 0; i < n; ++i) {
        const float* x = row(pending.keys(call.n_parts - parts + i / every), end - n + i);
        for (std::size_t c = 0; c < count; ++c) y[c] += scratch[c * n + i] * x[c];
    }
}

}  // namespace

void pool_groups(const Worker& worker, const KernelTable& table, const PoolCall& call) {
    const float *x = call.x, *gate = call.gate;
    for (const CachedSequence& s : call.sequences) {
        kv_append(worker, table, x, gate, s.n_tokens, s.past, s.*call.pending);
        x += s.n_tokens * call.n_parts * call.width;
        gate += s.n_tokens * call.n_parts * call.width;
    }
    std::vector<GroupToken> others;
    for_tokens(call.sequences, [&](const GroupToken& token) {
        if (!is_last(token, call.every)) others.push_back(token);
    });
    for_rows(worker, others.size(), call.width, [&](std::size_t first, std::size_t count) {
        for (const GroupToken& token : std::span(others).subspan(first, count))
            std::fill_n(call.y + token.row * call.width, call.width, 0.0f);
    });
    const std::vector<GroupToken> last = last_tokens(call.sequences, call.every);
    if (last.empty()) return;
    worker.barrier();  // `pending` has all rows
    auto* scratch = static_cast<float*>(
        thread_scratch(pooled_columns * call.n_parts * call.every * sizeof(float)));
    const std::size_t pieces = divide_up(call.width, pooled_columns);
    deal(worker, last.size() * pieces, 1, [&](std::size_t from, std::size_t to) {
        for (std::size_t i = from; i < to; ++i) {
            const std::size_t first = i % pieces * pooled_columns;
            pool(table, call, last[i / pieces], first, std::min(pooled_columns, call.width - first),
                 scratch);
        }
    });
}

void append_groups(const Worker& worker, const KernelTable& table, const float* x,
                   std::size_t width, std::size_t every, GroupMemory groups,
                   std::span<const CachedSequence> sequences) {
    const std::vector<GroupToken> last = last_tokens(sequences, every);
    for_rows(worker, last.size(), width, [&](std::size_t first, std::size_t count) {
        for (const GroupToken& token : std::span(last).subspan(first, count))
            write_kv(table, x + token.row * width, nullptr, token.position / every,
                     token.sequence->*groups);
    });
}

// ---- attention ----------------------------------------------------------------------------------

namespace {

// What a token sees: its window, and then groups.
struct Seen {
    std::size_t first, n_near, n_groups;
    const float* selection;  // of the groups, or null for the first n_groups
    std::size_t end;         // of all groups
    std::size_t n() const { return n_near + n_groups; }
};

Seen seen_by(const GroupAttentionCall& call, const GroupToken& token) {
    const std::size_t first = first_seen(call.window, false, token.position);
    const std::size_t end = (token.position + 1) / call.every;
    const bool all = !call.selection || end <= call.n_selected;
    return {first, token.position + 1 - first, all ? end : call.n_selected,
            all ? nullptr : call.selection + token.row * call.n_selected, end};
}

// Copies rows [from, to) of what a token sees, one after the other.
void gather(const CachedSequence& sequence, const Seen& seen, std::size_t from, std::size_t to,
            std::byte* out) {
    const KvRows near = sequence.cache.keys(0), groups = sequence.groups.keys(0);
    const std::size_t bytes = near.row_bytes;
    for (std::size_t i = from; i < to; ++i, out += bytes) {
        if (i < seen.n_near) {
            std::memcpy(out, near.row(seen.first + i), bytes);
            continue;
        }
        std::size_t group = i - seen.n_near;
        if (seen.selection) {
            const float selected = seen.selection[group];  // NaN gives 0, too
            const auto last = static_cast<float>(seen.end - 1);
            group = static_cast<std::size_t>(selected > 0.0f ? std::min(selected, last) : 0.0f);
        }
        std::memcpy(out, groups.row(group), bytes);
    }
}

}  // namespace

std::size_t group_workspace_floats(std::size_t n_heads, std::size_t head_dim, std::size_t most_seen,
                                   std::size_t n_tokens) {
    const std::size_t floats = n_heads * divide_up(most_seen, gathered_positions) * (head_dim + 2);
    return floats * std::clamp<std::size_t>(shared_floats / std::max<std::size_t>(floats, 1), 1,
                                            std::max<std::size_t>(n_tokens, 1));
}

void group_attention(const Worker& worker, const KernelTable& table, const GroupAttentionCall& call,
                     std::span<float> workspace) {
    std::vector<GroupToken> tokens;
    std::size_t most = 0;
    for_tokens(call.sequences, [&](const GroupToken& token) {
        tokens.push_back(token);
        most = std::max(most, seen_by(call, token).n());
    });
    if (tokens.empty()) return;
    const std::size_t heads = call.n_heads, d = call.sequences[0].cache.head_dim;
    const std::size_t n_parts = divide_up(most, gathered_positions),
                      runs = divide_up(heads, gathered_rows);
    const std::size_t part_floats = heads * (d + 2);
    const std::size_t at_once = workspace.size() / (n_parts * part_floats);
    const std::size_t row_bytes = call.sequences[0].cache.keys(0).row_bytes;
    auto* scratch = static_cast<float*>(thread_scratch(
        table.attention_scratch_floats * sizeof(float) + gathered_positions * row_bytes));
    auto* gathered = reinterpret_cast<std::byte*>(scratch + table.attention_scratch_floats);
    const auto task_of = [&](const GroupToken& token, std::size_t n_kv) {
        return AttentionTask{
            .q = call.q + token.row * heads * d,
            .q_stride = heads * d,
            .k = {},
            .v = {},
            .kv_type = kv_type_of(token.sequence->cache.type),
            .n_q = 1,
            .group = heads,
            .n_kv = n_kv,
            .head_dim = d,
            .value_dim = d,
            .scale = call.scale,
            .causal = false,
            .sinks = call.sinks,
            .out = call.out + token.row * heads * d,
            .out_stride = heads * d,
        };
    };
    const auto parts_of = [&](std::size_t token) {
        return AttentionParts{gathered_positions, 0,
                              workspace.data() + token * n_parts * part_floats, part_floats};
    };
    for (std::size_t first = 0; first < tokens.size(); first += at_once) {
        const auto some =
            std::span(tokens).subspan(first, std::min(at_once, tokens.size() - first));
        if (first) worker.barrier();  // the parts before have been merged
        deal(worker, some.size() * n_parts * runs, 1, [&](std::size_t begin, std::size_t end) {
            for (std::size_t piece = begin; piece < end; ++piece) {
                const std::size_t run = piece % runs, part = piece / runs % n_parts;
                const GroupToken& token = some[piece / runs / n_parts];
                const Seen seen = seen_by(call, token);
                const std::size_t from = part * gathered_positions;
                if (from >= seen.n()) continue;
                const std::size_t to = std::min(from + gathered_positions, seen.n());
                gather(*token.sequence, seen, from, to, gathered);
                AttentionTask task = task_of(token, to - from);
                task.k = task.v = {nullptr, gathered, 0, 0, row_bytes};
                AttentionParts own = parts_of(piece / runs / n_parts);
                own.data += part * part_floats;
                table.attention_parts(task, run * gathered_rows,
                                      std::min((run + 1) * gathered_rows, heads), own, 0, 1,
                                      scratch);
            }
        });
        worker.barrier();
        deal(worker, some.size() * heads, std::max<std::size_t>(1, dealt_elements / (n_parts * d)),
             [&](std::size_t begin, std::size_t end) {
                 for (std::size_t row = begin; row < end; ++row) {
                     const GroupToken& token = some[row / heads];
                     table.attention_merge(task_of(token, seen_by(call, token).n()), row % heads,
                                           row % heads + 1, parts_of(row / heads));
                 }
             });
    }
}

}  // namespace tensor_ops
