// How often threads meet within the operations that select positions, blocks or groups: when scores
// or parts that all share are complete, and when the next tokens take their memory.  Counted on one
// thread, as in test_meetings.cpp.

#include "arrays.h"
#include "check.h"
#include "dispatch.h"
#include "ops/blocks.h"
#include "ops/groups.h"
#include "ops/sparse.h"

using namespace arrays;
using tensor_ops::CachedSequence;
using tensor_ops::DType;
using tensor_ops::KvCache;
using tensor_ops::Worker;

namespace {

constexpr std::size_t dim = 16, capacity = 64;

template <class F>
std::size_t meetings_of(F&& f) {
    const Worker worker(0, 1, nullptr);
    f(worker, tensor_ops::kernels());
    return worker.barriers();
}

// A sequence of one head, with the same numbers for all that it keeps, and room for results.
struct Sequence {
    Floats k = normal(capacity * dim, 1), v = normal(capacity * dim, 2);
    Floats rows = normal(capacity * dim, 3), out = Floats(capacity * dim);
    CachedSequence sequence;

    Sequence(std::size_t n_tokens, std::size_t past) {
        const KvCache cache{k.data(), v.data(), DType::f32, 1, capacity, dim};
        sequence = {.n_tokens = n_tokens, .past = past, .cache = cache};
        sequence.index = sequence.groups = sequence.pending = cache;
    }
    std::span<const CachedSequence> all() const { return {&sequence, 1}; }
};

std::size_t meetings_of_selection(std::size_t n_tokens, std::size_t past, std::size_t n_scores) {
    Sequence s(n_tokens, past);
    Floats scores(n_scores);
    return meetings_of([&](const Worker& worker, const auto& table) {
        tensor_ops::index_select(worker, table,
                                 {.q = s.rows.data(),
                                  .weights = s.rows.data(),
                                  .n_heads = 1,
                                  .n_selected = 4,
                                  .out = s.out.data(),
                                  .sequences = s.all()},
                                 {scores.data(), n_scores});
    });
}

std::size_t meetings_of_attention(std::size_t n_tokens, std::size_t past, std::size_t at_once) {
    Sequence s(n_tokens, past);
    Floats parts(tensor_ops::attention_workspace_floats), workspace(at_once * (dim + 2));
    return meetings_of([&](const Worker& worker, const auto& table) {
        tensor_ops::sparse_attention(worker, table,
                                     {.q = s.rows.data(),
                                      .selection = filled(4 * n_tokens, 1.0f).data(),
                                      .n_heads = 1,
                                      .n_selected = 4,
                                      .n_dense = 4,
                                      .scale = 0.25f,
                                      .out = s.out.data(),
                                      .sequences = s.all()},
                                     parts.data(), {workspace.data(), at_once * (dim + 2)});
    });
}

}  // namespace

TEST(tokens_that_see_all_positions_are_not_waited_for) {
    check::equal(meetings_of_selection(3, 0, 8), std::size_t{0}, "meetings");
}

TEST(scores_are_complete_before_the_highest_are_looked_for) {
    check::equal(meetings_of_selection(2, 6, 16), std::size_t{1}, "meetings");
}

TEST(scores_of_the_next_tokens_wait_until_those_before_were_read) {
    check::equal(meetings_of_selection(3, 5, 8), std::size_t{1 + 2 + 2}, "meetings");
}

TEST(parts_of_a_selection_are_complete_before_they_are_merged) {
    check::equal(meetings_of_attention(2, 6, 2), std::size_t{1}, "meetings");
}

TEST(parts_of_the_next_tokens_wait_until_those_before_were_merged) {
    check::equal(meetings_of_attention(3, 6, 1), std::size_t{1 + 2 + 2}, "meetings");
}

TEST(tokens_with_a_selection_wait_for_those_that_see_all) {
    // The positions 2 and 3 see all; 4 and 5 come at once.
    check::equal(meetings_of_attention(4, 2, 2), std::size_t{1 + 1}, "meetings");
}

TEST(scores_of_blocks_are_complete_before_and_read_after) {
    for (const std::size_t at_once : {1u, 3u}) {
        Sequence s(3, 8);
        const std::size_t blocks = 6;
        Floats scores(at_once * blocks);
        const std::size_t meetings = meetings_of([&](const Worker& worker, const auto& table) {
            tensor_ops::choose_blocks(worker, table,
                                      {.q = s.rows.data(),
                                       .n_heads = 1,
                                       .block_size = 2,
                                       .n_chosen = 1,
                                       .n_local = 0,
                                       .pooled = false,
                                       .out = s.out.data(),
                                       .sequences = s.all()},
                                      {scores.data(), at_once * blocks});
        });
        check::equal(meetings, std::size_t{at_once == 1 ? 1u + 2 + 2 : 1u}, "meetings");
    }
}

TEST(a_group_is_made_of_rows_that_are_all_there) {
    for (const std::size_t n_tokens : {1u, 2u}) {
        Sequence s(n_tokens, 0);
        const std::size_t meetings = meetings_of([&](const Worker& worker, const auto& table) {
            tensor_ops::pool_groups(worker, table,
                                    {.x = s.rows.data(),
                                     .gate = s.rows.data(),
                                     .bias = s.rows.data(),
                                     .every = 2,
                                     .n_parts = 1,
                                     .width = dim,
                                     .pending = &CachedSequence::pending,
                                     .y = s.out.data(),
                                     .sequences = s.all()});
        });
        check::equal(meetings, n_tokens - 1, "meetings");  // the second token ends a group
    }
}

TEST(parts_of_attention_to_groups_are_merged_before_the_next_tokens) {
    for (const std::size_t at_once : {1u, 3u}) {
        Sequence s(3, 8);
        Floats workspace(at_once * (dim + 2));
        const std::size_t meetings = meetings_of([&](const Worker& worker, const auto& table) {
            tensor_ops::group_attention(worker, table,
                                        {.q = s.rows.data(),
                                         .selection = nullptr,
                                         .n_heads = 1,
                                         .n_selected = 0,
                                         .window = 2,
                                         .every = 2,
                                         .scale = 0.25f,
                                         .sinks = nullptr,
                                         .out = s.out.data(),
                                         .sequences = s.all()},
                                        {workspace.data(), at_once * (dim + 2)});
        });
        check::equal(meetings, std::size_t{at_once == 1 ? 1u + 2 + 2 : 1u}, "meetings");
    }
}
