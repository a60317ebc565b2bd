#include "ops/sparse.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

constexpr std::size_t scored_at_once = 1024;  // positions of the smallest piece of work

struct Token {
    const CachedSequence* sequence;
    std::size_t row;   // of the batch
    std::size_t seen;  // positions up to its own, or groups
};

// How many tokens of a sequence, the first ones, are at positions below `end`: they see all.
std::size_t n_dense(const CachedSequence& s, std::size_t end) {
    return s.past < end ? std::min(s.n_tokens, end - s.past) : 0;
}

// The tokens at positions from `first_sparse` on, which see a selection, or those before them.
std::vector<Token> tokens_of(std::span<const CachedSequence> sequences, std::size_t first_sparse,
                             bool dense, std::size_t every = 1) {
    std::vector<Token> found;
    std::size_t row = 0;
    for (const CachedSequence& s : sequences) {
        const std::size_t middle = n_dense(s, first_sparse);
        for (std::size_t t = dense ? 0 : middle; t < (dense ? middle : s.n_tokens); ++t)
            found.push_back({&s, row + t, (s.past + t + 1) / every});
        row += s.n_tokens;
    }
    return found;
}

// Numbers in the order of scores: NaN above all, and 0 and -0 the same.
std::uint32_t order_of(float score) {
    if (score != score) return ~std::uint32_t{0};
    const auto bits = std::bit_cast<std::uint32_t>(score + 0.0f);
    return bits >> 31 ? ~bits : bits | 1u << 31;
}

}  // namespace

void select_highest(const float* scores, std::size_t count, std::size_t n, float* out) {
    // The bits of the n-th highest, from the first on; `left`: how many with these bits are wanted.
    std::uint32_t threshold = 0;
    std::size_t left = n;
    constexpr struct {
        unsigned shift, bits;
    } digits[] = {{21, 11}, {10, 11}, {0, 10}};
    for (const auto [shift, bits] : digits) {
        std::array<std::uint32_t, 1u << 11> counts{};
        for (std::size_t p = 0; p < count; ++p) {
            const std::uint64_t order = order_of(scores[p]);
            if (order >> (shift + bits) == threshold)
                ++counts[(order >> shift) & ((1u << bits) - 1)];
        }
        std::uint32_t value = (1u << bits) - 1;
        for (; counts[value] < left; --value) left -= counts[value];
        threshold = threshold << bits | value;
    }
    for (std::size_t p = 0; p < count; ++p) {
        const std::uint32_t order = order_of(scores[p]);
        if (order < threshold || (order == threshold && left == 0)) continue;
        if (order == threshold) --left;
        *out++ = static_cast<float>(p);
    }
}

std::size_t index_score_floats(std::size_t longest, std::size_t n_tokens) {
    constexpr std::size_t grain = 1u << 16;  // the memory seldom grows
    const std::size_t row = divide_up(longest, grain) * grain;
    return row * std::clamp<std::size_t>(shared_floats / std::max<std::size_t>(row, 1), 1,
                                         std::max<std::size_t>(n_tokens, 1));
}

void index_select(const Worker& worker, const KernelTable& table, const IndexCall& call,
                  std::span<float> scores) {
    const std::size_t n = call.n_selected;
    const std::size_t first_sparse = (n + 1) * call.every - 1;
    const std::vector<Token> dense = tokens_of(call.sequences, first_sparse, true, call.every);
    for_rows(worker, dense.size(), n, [&](std::size_t first, std::size_t count) {
        for (const Token& token : std::span(dense).subspan(first, count)) {
            float* out = call.out + token.row * n;
            for (std::size_t p = 0; p < token.seen; ++p) out[p] = static_cast<float>(p);
            std::fill(out + token.seen, out + n, -1.0f);
        }
    });
    const std::vector<Token> tokens = tokens_of(call.sequences, first_sparse, false, call.every);
    if (tokens.empty()) return;
    std::size_t longest = 0;
    for (const Token& token : tokens) longest = std::max(longest, token.seen);
    const std::size_t head_dim = tokens[0].sequence->index.head_dim;
    const std::size_t at_once = scores.size() / longest;
    auto* scratch = static_cast<float*>(
        thread_scratch(table.index_scratch_floats(call.n_heads, head_dim) * sizeof(float)));
    for (std::size_t first = 0; first < tokens.size(); first += at_once) {
        const auto some =
            std::span(tokens).subspan(first, std::min(at_once, tokens.size() - first));
        if (first) worker.barrier();  // the scores before have been read
        std::size_t pieces = 0, at = 0;
        for (const Token& token : some) pieces += divide_up(token.seen, scored_at_once);
        Deal score(worker, pieces);
        for (std::size_t i = 0; i < some.size(); ++i) {
            const auto& [sequence, row, seen] = some[i];
            const std::size_t end = at + divide_up(seen, scored_at_once);
            score.within(at, end, [&](std::size_t from, std::size_t to) {
                table.index_scores({.q = call.q + row * call.n_heads * head_dim,
                                    .weights = call.weights + row * call.n_heads,
                                    .n_heads = call.n_heads,
                                    .head_dim = head_dim,
                                    .keys = sequence->index.keys(0),
                                    .type = sequence->index.type,
                                    .scores = scores.data() + i * longest},
                                   (from - at) * scored_at_once,
                                   std::min((to - at) * scored_at_once, seen), scratch);
            });
            at = end;
        }
        worker.barrier();
        deal(worker, some.size(), 1, [&](std::size_t from, std::size_t to) {
            for (std::size_t i = from; i < to; ++i)
                select_highest(scores.data() + i * longest, some[i].seen, n,
                               call.out + some[i].row * n);
        });
    }
}

// ---- attention ----------------------------------------------------------------------------------

namespace {

// The first tokens of each sequence, as attention() computes them.
void dense_attention(const Worker& worker, const KernelTable& table,
                     const SparseAttentionCall& call, float* parts) {
    AttentionCall dense{.q = call.q,
                        .n_q = 0,
                        .n_heads = call.n_heads,
                        .cache = {},
                        .n_kv = 0,
                        .scale = call.scale,
                        .sinks = call.sinks,
                        .out = call.out};
    const auto is_dense = [&](const CachedSequence& s) {
        return n_dense(s, call.n_dense) == s.n_tokens;
    };
    if (std::all_of(call.sequences.begin(), call.sequences.end(), is_dense)) {
        dense.sequences = call.sequences;
        return attention(worker, table, dense, parts);
    }
    for (const CachedSequence& s : call.sequences) {
        CachedSequence first = s;
        first.n_tokens = n_dense(s, call.n_dense);
        if (first.n_tokens) {
            dense.sequences = {&first, 1};
            dense.undivided = s.n_tokens > most_divided_queries;
            // Few rows would go through another kernel.  What further tokens get is overwritten.
            if (dense.undivided) first.n_tokens = std::max(first.n_tokens, most_divided_queries);
            attention(worker, table, dense, parts);
            worker.barrier();  // `parts` is free again
        }
        dense.q += s.n_tokens * call.n_heads * s.cache.head_dim;
        dense.out += s.n_tokens * call.n_heads * s.cache.value_dim;
    }
}

// The positions that a token sees of one choice, in their order there.
struct Selected {
    const float* entries;
    std::size_t block_size, seen;  // positions up to the token's own
    std::size_t count;

    Selected(const SparseAttentionCall& call, const Token& token, std::size_t choice)
        : entries(call.selection + (token.row * call.n_choices + choice) * call.n_selected),
          block_size(call.block_size),
          seen(token.seen),
          count(call.n_selected) {
        if (!call.blocks) return;
        const float* const end = entries + call.n_selected;
        const auto n = std::find_if(entries, end, [](float e) { return !(e >= 0.0f); }) - entries;
        const std::size_t whole = n > 1 ? static_cast<std::size_t>(n) - 1 : 0;
        count = whole * block_size + std::min(block_size, seen - block(whole) * block_size);
    }
    // The number of a block; also NaN gives 0.
    std::size_t block(std::size_t entry) const {
        const auto last = static_cast<float>((seen - 1) / block_size);
        return static_cast<std::size_t>(entries[entry] > 0.0f ? std::min(entries[entry], last)
                                                              : 0.0f);
    }

    // Copies the rows of the positions [first, first + n) to memory, one after the other.
    KvRows gather(const KvRows& rows, std::size_t first, std::size_t n, std::byte* memory) const {
        for (std::size_t i = first; i < first + n;) {
            const std::size_t in_block = i % block_size;
            const std::size_t left = std::min(block_size - in_block, first + n - i);
            const std::size_t position =
                std::min(block(i / block_size) * block_size + in_block, seen - 1);
            // A block that is no selection's last may reach beyond the token in a wrong selection.
            const std::size_t run = std::min(rows.run(position, left), seen - position);
            std::memcpy(memory + (i - first) * rows.row_bytes, rows.row(position),
                        run * rows.row_bytes);
            i += run;
        }
        return {nullptr, memory, 0, 0, rows.row_bytes};
    }
};

}  // namespace

std::size_t sparse_workspace_floats(std::size_t n_heads, std::size_t value_dim,
                                    std::size_t n_positions, std::size_t max_tokens) {
    const std::size_t floats =
        n_heads * divide_up(n_positions, gathered_positions) * (value_dim + 2);
    return floats *
           std::clamp<std::size_t>(shared_floats / floats, 1, std::max<std::size_t>(max_tokens, 1));
}

void sparse_attention(const Worker& worker, const KernelTable& table,
                      const SparseAttentionCall& call, float* parts, std::span<float> workspace) {
    if (call.sequences.empty()) return;
    dense_attention(worker, table, call, parts);
    const std::vector<Token> tokens = tokens_of(call.sequences, call.n_dense, false);
    if (tokens.empty()) return;
    const KvCache& shape = call.sequences[0].cache;
    const std::size_t heads = shape.n_kv_heads, group = call.n_heads / heads;
    const std::size_t sharing = heads / call.n_choices;
    const std::size_t n_parts = divide_up(call.most_positions(), gathered_positions),
                      runs = divide_up(group, gathered_rows);
    const std::size_t part_floats = group * (shape.value_dim + 2);
    const std::size_t at_once = workspace.size() / (heads * n_parts * part_floats);
    const std::size_t key_bytes = shape.keys(0).row_bytes;
    const std::size_t value_bytes = shape.values_in_keys() ? 0 : shape.values(0).row_bytes;
    auto* scratch =
        static_cast<float*>(thread_scratch(table.attention_scratch_floats * sizeof(float) +
                                           gathered_positions * (key_bytes + value_bytes)));
    auto* gathered = reinterpret_cast<std::byte*>(scratch + table.attention_scratch_floats);
    const auto task_of = [&](const Token& token, std::size_t head, std::size_t n) {
        return AttentionTask{
            .q = call.q + (token.row * call.n_heads + head * group) * shape.head_dim,
            .q_stride = call.n_heads * shape.head_dim,
            .k = {},
            .v = {},
            .kv_type = kv_type_of(token.sequence->cache.type),
            .n_q = 1,
            .group = group,
            .n_kv = n,
            .head_dim = shape.head_dim,
            .value_dim = shape.value_dim,
            .scale = call.scale,
            .causal = false,
            .sinks = call.sinks ? call.sinks + head * group : nullptr,
            .out = call.out + (token.row * call.n_heads + head * group) * shape.value_dim,
            .out_stride = call.n_heads * shape.value_dim,
        };
    };
    const auto layout = [&](std::size_t token_and_head) {
        return AttentionParts{gathered_positions, 0,
                              workspace.data() + token_and_head * n_parts * part_floats,
                              part_floats};
    };
    for (std::size_t first = 0; first < tokens.size(); first += at_once) {
        const auto some =
            std::span(tokens).subspan(first, std::min(at_once, tokens.size() - first));
        if (first) worker.barrier();  // the parts before have been merged
        const auto one_part = [&](std::size_t piece) {
            const std::size_t run = piece % runs, part = piece / runs % n_parts;
            const std::size_t index = piece / runs / n_parts, head = index % heads;
            const Token& token = some[index / heads];
            const KvCache& cache = token.sequence->cache;
            const Selected selected(call, token, head / sharing);
            const std::size_t begin = part * gathered_positions;
            if (begin >= selected.count) return;
            const std::size_t n = std::min(gathered_positions, selected.count - begin);
            AttentionTask task = task_of(token, head, n);
            task.k = selected.gather(cache.keys(head), begin, n, gathered);
            task.v = value_bytes ? selected.gather(cache.values(head), begin, n,
                                                   gathered + gathered_positions * key_bytes)
                                 : task.k;
            AttentionParts own = layout(index);
            own.data += part * part_floats;
            table.attention_parts(task, run * gathered_rows,
                                  std::min((run + 1) * gathered_rows, group), own, 0, 1, scratch);
        };
        deal(worker, some.size() * heads * n_parts * runs, 1,
             [&](std::size_t from, std::size_t to) {
                 for (std::size_t piece = from; piece < to; ++piece) one_part(piece);
             });
        worker.barrier();
        deal(worker, some.size() * call.n_heads,
             std::max<std::size_t>(1, dealt_elements / (n_parts * shape.value_dim)),
             [&](std::size_t from, std::size_t to) {
                 for (std::size_t row = from; row < to; ++row) {
                     const Token& token = some[row / call.n_heads];
                     const std::size_t head = row / group % heads;
                     const std::size_t n = Selected(call, token, head / sharing).count;
                     table.attention_merge(task_of(token, head, n), row % group, row % group + 1,
                                           layout(row / group));
                 }
             });
    }
}

}  // namespace tensor_ops
