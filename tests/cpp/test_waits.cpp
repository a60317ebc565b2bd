// Where the threads of a run meet: before an op that touches what another thread may still be
// working on, and nowhere else.  A meeting that is missing shows in no result unless a thread
// happens to be slow, so the plan is looked at.

#include "graphs.h"

using graphs::Builder;
using graphs::OpKind;
using tensor_ops::Executor;
using tensor_ops::Op;

namespace {

constexpr std::size_t width = 64;

// Three external buffers and ops over them.
struct Graph3 : Builder {
    const int a = external("a", width), b = external("b", width), c = external("c", width);

    Op& op(OpKind kind, std::vector<int> inputs, int output = -1, int weight = -1) {
        Op& made = Builder::op(kind, std::move(inputs), output, weight);
        made.n_heads = 4;
        made.n_kv_heads = 4;
        made.head_dim = 16;
        return made;
    }
    // That the threads meet before the second op, or that they do not.
    void check_second(bool waits,
                      std::source_location where = std::source_location::current()) const {
        const Executor executor(graph, 4);
        check::that(!executor.waits_before(0), "a wait before the first op", where);
        check::that(executor.waits_before(1) == waits, waits ? "no wait" : "a wait", where);
    }
};

}  // namespace

TEST(an_op_waits_for_what_it_reads) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    g.op(OpKind::add, {g.a, g.b}, g.c);
    g.check_second(true);
}

TEST(an_op_waits_until_what_it_overwrites_was_read) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    g.op(OpKind::add, {g.c, g.c}, g.a);
    g.check_second(true);
}

TEST(an_op_waits_until_what_it_overwrites_was_written) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    g.op(OpKind::add, {g.c, g.c}, g.b);
    g.check_second(true);
}

TEST(ops_that_read_the_same_do_not_wait_for_each_other) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    g.op(OpKind::add, {g.a, g.a}, g.c);
    g.check_second(false);
}

TEST(a_wait_is_for_all_that_came_before) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    g.op(OpKind::add, {g.b, g.b}, g.c);
    g.op(OpKind::add, {g.b, g.b}, g.a);
    const Executor executor(g.graph, 4);
    check::that(executor.waits_before(1), "no wait for b");
    check::that(!executor.waits_before(2), "a second wait");
}

TEST(what_a_product_writes_second_is_waited_for) {
    Graph3 g;
    Op& many = g.op(OpKind::linear_many, {g.a}, g.b, g.slot("first"));
    many.more_outputs = {g.c};
    many.more_weights = {g.slot("second")};
    g.op(OpKind::silu, {g.c}, g.a);
    g.check_second(true);
}

TEST(attention_waits_for_keys_and_values) {
    Graph3 g;
    g.op(OpKind::kv_append, {g.a, g.b});
    g.op(OpKind::attention, {g.c}, g.external("y", width));
    g.check_second(true);
}

TEST(attention_waits_for_keys_that_were_turned_on_the_way) {
    Graph3 g;
    const int angles = g.external("angles", 16);
    g.op(OpKind::rope_append, {g.a, g.b, angles});
    g.op(OpKind::attention, {g.c}, g.external("y", width));
    g.check_second(true);
}

TEST(a_selection_waits_for_the_keys_of_its_index_and_these_wait_for_no_others) {
    Graph3 g;
    const int key = g.external("key", 16), weights = g.external("weights", 4);
    g.op(OpKind::index_append, {key});
    g.op(OpKind::index_select, {g.a, weights}, g.b);
    g.check_second(true);
    Graph3 other;
    const int latent = other.external("latent", 64), other_key = other.external("key", 16);
    other.op(OpKind::latent_append, {latent});
    other.op(OpKind::index_append, {other_key});
    other.check_second(false);
}

TEST(a_choice_of_blocks_waits_for_the_keys_of_its_index) {
    Graph3 g;
    const int key = g.external("key", 16), chosen = g.external("chosen", 16);
    g.op(OpKind::index_append, {key});
    Op& op = g.op(OpKind::choose_blocks, {g.a}, chosen);
    op.block_size = op.n_chosen = 4;
    g.check_second(true);
}

TEST(attention_waits_for_the_keys_of_groups_and_these_wait_for_no_others) {
    Graph3 g;
    const int key = g.external("key", 16);
    g.op(OpKind::group_append, {key});
    g.op(OpKind::group_attention, {g.a}, g.b).window = 4;
    g.check_second(true);
    Graph3 other;
    const int latent = other.external("latent", 64), other_key = other.external("key", 16);
    other.op(OpKind::latent_append, {latent});
    other.op(OpKind::group_append, {other_key});
    other.check_second(false);
}

TEST(what_groups_are_made_of_waits_for_what_was_written_there_and_for_nothing_else) {
    for (const bool of_index : {false, true}) {
        Graph3 g;
        const int y = g.external("y", width);
        g.op(OpKind::pool_groups, {g.a, g.b}, g.c, g.slot("bias"));
        Op& second = g.op(OpKind::pool_groups, {g.a, g.b}, y, g.slot("other bias"));
        second.of_index = of_index;
        g.check_second(!of_index);
    }
}

TEST(a_thread_that_wakes_late_joins_rows_of_experts_only_at_the_beginning) {
    Graph3 g;
    g.op(OpKind::add, {g.a, g.a}, g.b);
    using tensor_ops::Joining;
    check::that(Executor(g.graph, 4).joining(4) == Joining::any_time, "without experts");
    const int route = g.external("route", 2), y = g.external("y", width);
    Op& op = g.op(OpKind::expert_linear, {g.c, route}, y, g.slot("experts"));
    op.n_used = 1;
    op.shared = true;
    const Executor with_experts(g.graph, 4);
    check::that(with_experts.joining(4) == Joining::before_first_barrier, "with experts");
    check::that(with_experts.joining(1) == Joining::any_time, "of one row");
}

TEST(attention_waits_for_attention_that_keeps_results_in_the_same_memory) {
    for (const bool sparse : {false, true}) {
        Graph3 g;
        const int selection = g.external("selection", 8);
        g.op(OpKind::attention, {g.a}, g.b);
        if (sparse)
            g.op(OpKind::sparse_attention, {g.a, selection}, g.c);
        else
            g.op(OpKind::attention, {g.a}, g.c);
        g.check_second(true);
    }
}

TEST(keys_and_values_wait_for_attention_to_what_they_overwrite) {
    Graph3 g;
    g.op(OpKind::attention, {g.c}, g.external("y", width));
    g.op(OpKind::kv_append, {g.a, g.b});
    g.check_second(true);
}

TEST(products_that_hold_something_in_between_wait_for_each_other) {
    for (const OpKind kind : {OpKind::linear_add, OpKind::glu_linear}) {
        Graph3 g;
        const auto product = [&](int output) {
            if (kind == OpKind::linear_add)
                g.op(kind, {g.a, g.a}, output, g.slot("w"));
            else
                g.op(kind, {g.a}, output, g.slot("gate")).more_weights = {g.slot("up")};
        };
        product(g.b);
        product(g.c);
        g.check_second(true);
    }
}

TEST(internal_buffers_in_the_same_memory_are_waited_for) {
    // One is dead when the other begins, so that they share a place.
    Graph3 g;
    const int early = g.internal("early", width), late = g.internal("late", width);
    g.op(OpKind::add, {g.a, g.a}, early);
    g.op(OpKind::add, {early, early}, g.b);
    g.op(OpKind::add, {g.c, g.c}, late);
    g.op(OpKind::add, {late, late}, g.a);
    const Executor executor(g.graph, 4);
    check::that(executor.bytes() == 4 * width * sizeof(float), "they do not share memory");
    check::that(executor.waits_before(2), "no wait for whoever reads early");
}

TEST(what_an_op_reads_and_what_it_writes_lie_apart) {
    Graph3 g;
    const int early = g.internal("early", width), late = g.internal("late", width);
    g.op(OpKind::add, {g.a, g.a}, early);
    g.op(OpKind::add, {early, early}, late);
    g.op(OpKind::add, {late, late}, g.b);
    check::that(Executor(g.graph, 4).bytes() == 2 * 4 * width * sizeof(float), "they overlap");
}

TEST(what_an_op_reads_and_what_it_writes_lie_apart_in_either_order) {
    Graph3 g;
    const int late = g.internal("late", width), early = g.internal("early", width);
    g.op(OpKind::add, {g.a, g.a}, early);
    g.op(OpKind::add, {early, early}, late);
    g.op(OpKind::add, {late, late}, g.b);
    check::that(Executor(g.graph, 4).bytes() == 2 * 4 * width * sizeof(float), "they overlap");
}

namespace {

// Products of floats between buffers of any width, so that only the buffers take memory.
struct Wide : Builder {
    const int in = external("in", width), out = external("out", width);
    void product(int input, int output) {
        op(OpKind::linear, {input}, output, slot("w")).activations = tensor_ops::Activations::f32;
    }
    std::size_t floats() const { return Executor(graph, 1).bytes() / sizeof(float); }
};

}  // namespace

TEST(a_wide_buffer_does_not_reach_into_what_lies_behind_its_place) {
    Wide g;
    const int first = g.internal("first", 64), second = g.internal("second", 32),
              third = g.internal("third", 96);
    g.product(g.in, first);
    g.product(g.in, second);
    g.product(first, g.out);
    g.product(g.in, third);  // where the first was there is room for 64
    g.product(third, g.out);
    g.product(second, g.out);
    check::equal(g.floats(), std::size_t{96 + 96}, "floats");
}

TEST(a_buffer_does_not_begin_within_another) {
    Wide g;
    const int first = g.internal("first", 32), last = g.internal("last", 64),
              between = g.internal("between", 16);
    g.product(g.in, first);
    g.product(first, between);  // behind the first, which lies where the last will lie
    g.product(between, last);
    g.product(last, g.out);
    check::equal(g.floats(), std::size_t{64 + 16}, "floats");
}

TEST(what_a_product_writes_second_has_a_place_from_then_on) {
    Wide g;
    const int first = g.internal("first", width), second = g.internal("second", width);
    Op& many = g.op(OpKind::linear_many, {g.in}, first, g.slot("w"));
    many.activations = tensor_ops::Activations::f32;
    many.more_outputs = {second};
    many.more_weights = {g.slot("v")};
    g.product(first, g.out);
    g.product(second, g.out);
    check::equal(g.floats(), 2 * width, "floats");
}

TEST(internal_buffers_that_overlap_in_part_are_waited_for) {
    Wide g;
    const int unread = g.internal("unread", 16), early = g.internal("early", 16),
              late = g.internal("late", 32);
    const int other = g.external("other", width);
    Op& many = g.op(OpKind::linear_many, {g.in}, unread, g.slot("w"));
    many.activations = tensor_ops::Activations::f32;
    many.more_outputs = {early};
    many.more_weights = {g.slot("v")};
    g.product(early, g.out);
    g.product(other, late);  // over both, while `early` may still be read
    g.product(late, other);
    const Executor executor(g.graph, 1);
    check::equal(executor.bytes(), 32 * sizeof(float), "bytes");
    check::that(executor.waits_before(2), "no wait for whoever reads early");
}
