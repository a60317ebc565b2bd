#include "ops/blocks.h"

#include <algorithm>
#include <vector>

#include "ops/ops.h"
#include "ops/sparse.h"

namespace tensor_ops {
namespace {

constexpr std::size_t keys_at_once = 1024;  // keys of the smallest piece of work

struct BlockToken {
    const CachedSequence* sequence;
    std::size_t row;   // of the batch
    std::size_t seen;  // positions up to its own
    // Of the blocks that begin there, the last ones, which it sees in any case; those before them;
    // and how many of these it sees.
    std::size_t last, others, wanted;

    bool sees_all() const { return others <= wanted; }
};

BlockToken token_at(const BlockCall& call, const CachedSequence& s, std::size_t row,
                    std::size_t seen) {
    const std::size_t n_blocks = divide_up(seen, call.block_size);
    const std::size_t last =
        call.pooled ? seen % call.block_size != 0 : std::min(call.n_local, n_blocks);
    return {&s, row, seen, last, n_blocks - last, call.n_chosen - (call.pooled ? 0 : last)};
}

}  // namespace

std::size_t block_score_floats(std::size_t n_choices, std::size_t block_size, std::size_t longest,
                               std::size_t n_tokens) {
    return index_score_floats(n_choices * divide_up(longest, block_size), n_tokens);
}

void choose_blocks(const Worker& worker, const KernelTable& table, const BlockCall& call,
                   std::span<float> scores) {
    const std::size_t n_choices = call.n_choices(), n_entries = call.n_entries();
    std::vector<BlockToken> all, chosen;
    std::size_t rows = 0, most = 0;
    for (const CachedSequence& s : call.sequences)
        for (std::size_t t = 0; t < s.n_tokens; ++t) {
            const BlockToken token = token_at(call, s, rows++, s.past + t + 1);
            (token.sees_all() ? all : chosen).push_back(token);
            if (!token.sees_all()) most = std::max(most, token.others);
        }
    const auto out = [&](const BlockToken& token, std::size_t choice) {
        return call.out + (token.row * n_choices + choice) * n_entries;
    };
    // Writes numbers from `first` on, and then -1.
    const auto finish = [&](float* to, float* end, std::size_t first, std::size_t count) {
        for (std::size_t i = 0; i < count; ++i) *to++ = static_cast<float>(first + i);
        std::fill(to, end, -1.0f);
    };
    for_rows(worker, all.size(), n_choices * n_entries, [&](std::size_t first, std::size_t count) {
        for (const BlockToken& token : std::span(all).subspan(first, count))
            for (std::size_t choice = 0; choice < n_choices; ++choice) {
                float* const to = out(token, choice);
                finish(to, to + n_entries, 0, token.others + token.last);
            }
    });
    if (chosen.empty()) return;
    const std::size_t head_dim = chosen[0].sequence->index.head_dim;
    const std::size_t token_floats = n_choices * most, at_once = scores.size() / token_floats;
    const std::size_t unit =  // blocks of a piece
        call.pooled ? keys_at_once : std::max<std::size_t>(1, keys_at_once / call.block_size);
    const std::vector<float> ones(call.pooled ? call.n_heads : 0, 1.0f);
    auto* scratch = static_cast<float*>(
        thread_scratch(table.index_scratch_floats(call.n_heads, head_dim) * sizeof(float)));
    const auto score = [&](const BlockToken& token, float* to, std::size_t first,
                           std::size_t last) {
        const KvCache& index = token.sequence->index;
        const float* const q = call.q + token.row * call.n_heads * head_dim;
        if (call.pooled)
            table.index_scores({.q = q,
                                .weights = ones.data(),
                                .n_heads = call.n_heads,
                                .head_dim = head_dim,
                                .keys = index.keys(0),
                                .type = index.type,
                                .scores = to},
                               first, last, scratch);
        else
            table.block_scores({.q = q,
                                .n_heads = call.n_heads,
                                .head_dim = head_dim,
                                .keys = index.keys(0),
                                .type = index.type,
                                .block_size = call.block_size,
                                .n_positions = token.seen,
                                .scores = to,
                                .stride = most},
                               first, last, scratch);
    };
    for (std::size_t first = 0; first < chosen.size(); first += at_once) {
        const auto some =
            std::span(chosen).subspan(first, std::min(at_once, chosen.size() - first));
        if (first) worker.barrier();  // the scores before have been read
        std::size_t pieces = 0, at = 0;
        for (const BlockToken& token : some) pieces += divide_up(token.others, unit);
        Deal dealt(worker, pieces);
        for (std::size_t i = 0; i < some.size(); ++i) {
            const std::size_t end = at + divide_up(some[i].others, unit);
            dealt.within(at, end, [&](std::size_t from, std::size_t to) {
                score(some[i], scores.data() + i * token_floats, (from - at) * unit,
                      std::min((to - at) * unit, some[i].others));
            });
            at = end;
        }
        worker.barrier();
        deal(worker, some.size() * n_choices, 1, [&](std::size_t from, std::size_t to) {
            for (std::size_t i = from; i < to; ++i) {
                const BlockToken& token = some[i / n_choices];
                float* const own = out(token, i % n_choices);
                select_highest(scores.data() + i * most, token.others, token.wanted, own);
                finish(own + token.wanted, own + n_entries, token.others, token.last);
            }
        });
    }
}

}  // namespace tensor_ops
