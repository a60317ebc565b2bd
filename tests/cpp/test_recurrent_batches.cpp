// The operations of recurrent layers on batches: the same bits however tokens are divided among
// calls, sequences and threads.

#include <functional>
#include <memory>

#include "arrays.h"
#include "dispatch.h"
#include "ops/ops.h"
#include "ops/recurrent.h"
#include "reference.h"
#include "threads.h"

using namespace arrays;
using tensor_ops::HeadSharing;
using tensor_ops::KernelTable;
using tensor_ops::RecurrentSequence;
using tensor_ops::run_team;
using tensor_ops::Worker;
using Sequences = std::vector<RecurrentSequence>;

namespace {

constexpr std::size_t rows = 19;

// An operation with inputs of `rows` tokens.
struct Operation {
    std::string name;
    std::size_t width, state_size;  // floats of a row of the output, and of a state
    // Computes the rows from `row` on.
    std::function<void(const Worker&, const KernelTable&, std::size_t row, const Sequences&,
                       float*)>
        call;

    Floats new_state(unsigned seed) const { return normal(state_size, 100 + seed, 1, seed); }
    void run(const KernelTable& table, std::size_t row, const Sequences& sequences,
             float* out) const {
        run_team([&](const Worker& worker) { call(worker, table, row, sequences, out); }, 1);
    }
};

std::shared_ptr<const Floats> shared(Floats x) { return std::make_shared<Floats>(std::move(x)); }

// Negative numbers, most of them near 0.
Floats decays(std::size_t n, unsigned seed) {
    Floats g = normal(n, seed, 0.5);
    for (float& v : g) v = -std::abs(v);
    return g;
}

Operation conv(std::size_t channels, std::size_t taps, bool silu) {
    const auto x = shared(normal(rows * channels, 1)), w = shared(normal(channels * taps, 2));
    return {"causal_conv", channels, (taps - 1) * channels,
            [=](const Worker& worker, const KernelTable& table, std::size_t row,
                const Sequences& sequences, float* out) {
                tensor_ops::causal_conv(worker, table,
                                        {.x = x->data() + row * channels,
                                         .channels = channels,
                                         .taps = taps,
                                         .weight = w->data(),
                                         .silu = silu,
                                         .y = out,
                                         .sequences = sequences});
            }};
}

Operation delta(std::size_t n_k, std::size_t n_v, std::size_t d_k, std::size_t d_v, bool by_channel,
                HeadSharing sharing) {
    const std::size_t keys = n_k * d_k, values = n_v * d_v, n_g = n_v * (by_channel ? d_k : 1);
    const auto q = shared(normal(rows * keys, 1)), k = shared(normal(rows * keys, 2, 0.2));
    const auto v = shared(normal(rows * values, 3)), g = shared(decays(rows * n_g, 4));
    const auto beta = shared(normal(rows * n_v, 5));
    return {"delta_rule", values, n_v * d_k * d_v,
            [=](const Worker& worker, const KernelTable& table, std::size_t row,
                const Sequences& sequences, float* out) {
                tensor_ops::delta_rule(worker, table,
                                       {.q = q->data() + row * keys,
                                        .k = k->data() + row * keys,
                                        .v = v->data() + row * values,
                                        .log_decay = g->data() + row * n_g,
                                        .beta = beta->data() + row * n_v,
                                        .n_k_heads = n_k,
                                        .n_v_heads = n_v,
                                        .d_k = d_k,
                                        .d_v = d_v,
                                        .decay_by_channel = by_channel,
                                        .sharing = sharing,
                                        .scale = 0.5f,
                                        .out = out,
                                        .sequences = sequences});
            }};
}

Operation scan(std::size_t heads, std::size_t groups, std::size_t head_dim, std::size_t d_state) {
    const std::size_t width = heads * head_dim, bc = groups * d_state;
    const auto x = shared(normal(rows * width, 1)), dt = shared(normal(rows * heads, 2));
    const auto b = shared(normal(rows * bc, 3)), c = shared(normal(rows * bc, 4));
    const auto a = shared(decays(heads, 5));
    return {"ssm_scan", width, width * d_state,
            [=](const Worker& worker, const KernelTable& table, std::size_t row,
                const Sequences& sequences, float* out) {
                tensor_ops::ssm_scan(worker, table,
                                     {.x = x->data() + row * width,
                                      .dt = dt->data() + row * heads,
                                      .b = b->data() + row * bc,
                                      .c = c->data() + row * bc,
                                      .a = a->data(),
                                      .n_heads = heads,
                                      .n_groups = groups,
                                      .head_dim = head_dim,
                                      .d_state = d_state,
                                      .y = out,
                                      .sequences = sequences});
            }};
}

Operation selective(std::size_t channels, std::size_t d_state) {
    Floats steps = decays(rows * channels, 2);
    for (float& step : steps) step = -step;
    const auto x = shared(normal(rows * channels, 1)), dt = shared(std::move(steps));
    const auto b = shared(normal(rows * d_state, 3)), c = shared(normal(rows * d_state, 4));
    const auto a = shared(decays(channels * d_state, 5));
    return {"selective_scan", channels, channels * d_state,
            [=](const Worker& worker, const KernelTable& table, std::size_t row,
                const Sequences& sequences, float* out) {
                tensor_ops::selective_scan(worker, table,
                                           {.x = x->data() + row * channels,
                                            .dt = dt->data() + row * channels,
                                            .b = b->data() + row * d_state,
                                            .c = c->data() + row * d_state,
                                            .a = a->data(),
                                            .channels = channels,
                                            .d_state = d_state,
                                            .y = out,
                                            .sequences = sequences});
            }};
}

const std::vector<Operation>& operations() {
    static const std::vector<Operation> all = {
        conv(37, 4, true),
        conv(600, 3, false),
        conv(70, 1, false),
        delta(2, 6, 7, 9, false, HeadSharing::grouped),
        delta(2, 4, 16, 70, true, HeadSharing::tiled),
        scan(4, 2, 7, 19),
        scan(3, 1, 40, 128),
        selective(77, 16),
    };
    return all;
}

}  // namespace

KERNEL_TEST(tokens_one_by_one_give_the_same_as_all_at_once) {
    for (const Operation& op : operations()) {
        Floats state = op.new_state(0), other = op.new_state(0);
        Floats out(rows * op.width), one_by_one(rows * op.width);
        op.run(table, 0, {{rows, state.data()}}, out.data());
        for (std::size_t t = 0; t < rows; ++t)
            op.run(table, t, {{1, other.data()}}, one_by_one.data() + t * op.width);
        check::that(same_bytes(out, one_by_one), op.name);
        check::that(same_bytes(state, other), op.name + "'s state");
    }
}

KERNEL_TEST(a_prompt_may_be_cut_anywhere) {
    for (const Operation& op : operations()) {
        Floats state = op.new_state(0), out(rows * op.width);
        op.run(table, 0, {{rows, state.data()}}, out.data());
        for (std::size_t cut = 0; cut <= rows; ++cut) {
            Floats other = op.new_state(0), parts(rows * op.width);
            op.run(table, 0, {{cut, other.data()}}, parts.data());
            op.run(table, cut, {{rows - cut, other.data()}}, parts.data() + cut * op.width);
            check::that(same_bytes(out, parts), op.name);
            check::that(same_bytes(state, other), op.name + "'s state");
        }
    }
}

KERNEL_TEST(sequences_of_a_batch_do_not_see_each_other) {
    constexpr std::size_t lengths[] = {5, 0, 13, 1};
    for (const Operation& op : operations()) {
        Floats out(rows * op.width), alone(rows * op.width);
        std::vector<Floats> states, others;
        Sequences sequences;
        std::size_t row = 0;
        for (unsigned i = 0; i < 4; ++i) {
            states.push_back(op.new_state(i));
            others.push_back(op.new_state(i));
            sequences.push_back({lengths[i], states[i].data()});
            op.run(table, row, {{lengths[i], others[i].data()}}, alone.data() + row * op.width);
            row += lengths[i];
        }
        op.run(table, 0, sequences, out.data());
        check::that(same_bytes(out, alone), op.name);
        for (std::size_t i = 0; i < 4; ++i)
            check::that(same_bytes(states[i], others[i]), op.name + "'s state");
    }
}

KERNEL_TEST(entries_with_one_state_continue_each_other) {
    for (const Operation& op : operations()) {
        Floats a = op.new_state(0), b = op.new_state(1), out(rows * op.width);
        op.run(table, 0,
               {{3, a.data()}, {1, a.data()}, {1, a.data()}, {9, b.data()}, {5, a.data()}},
               out.data());
        Floats a_alone = op.new_state(0), b_alone = op.new_state(1), alone(rows * op.width);
        op.run(table, 0, {{5, a_alone.data()}}, alone.data());
        op.run(table, 5, {{9, b_alone.data()}}, alone.data() + 5 * op.width);
        op.run(table, 14, {{5, a_alone.data()}}, alone.data() + 14 * op.width);
        check::that(same_bytes(out, alone), op.name);
        check::that(same_bytes(a, a_alone) && same_bytes(b, b_alone), op.name + "'s state");
    }
}

KERNEL_TEST(recurrent_layers_give_the_same_on_any_number_of_threads) {
    for (const Operation& op : operations()) {
        Floats expected(rows * op.width), expected_a = op.new_state(0),
                                          expected_b = op.new_state(1);
        op.run(table, 0, {{7, expected_a.data()}, {12, expected_b.data()}}, expected.data());
        for (const int threads : {1, 2, 3}) {
            const Threads use(threads);
            Floats a = op.new_state(0), b = op.new_state(1), out(rows * op.width);
            const Sequences sequences = {{7, a.data()}, {12, b.data()}};
            std::atomic<int> arrived = 0;
            run_team([&](const Worker& worker) {
                wait_for_all(worker, arrived);
                op.call(worker, table, 0, sequences, out.data());
            });
            check::that(same_bytes(out, expected), op.name);
            check::that(same_bytes(a, expected_a) && same_bytes(b, expected_b), "the states");
        }
    }
}

KERNEL_TEST(recurrent_layers_of_no_tokens_leave_the_state_as_it_is) {
    for (const Operation& op : operations()) {
        Floats state = op.new_state(0), out(0);
        op.run(table, 0, {}, out.data());
        op.run(table, 0, {{0, state.data()}}, out.data());
        check::that(same_bytes(state, op.new_state(0)), op.name);
    }
}

// ---- operations on rows ------------------------------------------------------------------------

namespace {

// On teams of 1, 2 and 3, all of whose workers are there: run(worker, y) writes `size` floats, and
// check_result(y) looks at them.
template <class Run, class Check>
void on_each_team(std::size_t size, Run&& run, Check&& check_result) {
    for (const int threads : {1, 2, 3}) {
        const Threads use(threads);
        std::atomic<int> arrived = 0;
        Floats y(size);
        run_team([&](const Worker& worker) {
            wait_for_all(worker, arrived);
            run(worker, y.data());
        });
        check_result(y);
    }
}

constexpr std::size_t many = 700;

}  // namespace

KERNEL_TEST(log_decay_is_a_times_the_softplus_of_the_biased_row) {
    const std::size_t n = 30;
    const Floats x = normal(many * n, 1, 3), bias = normal(n, 2);
    for (const std::size_t n_a : {30u, 5u, 1u}) {
        const Floats a = decays(n_a, 3);
        for (const float* b : {bias.data(), static_cast<const float*>(nullptr)})
            on_each_team(
                x.size(),
                [&](const Worker& worker, float* y) {
                    tensor_ops::log_decay(worker, table, x.data(), b, a.data(), n_a, 0.0f, y, many,
                                          n);
                },
                [&](const Floats& y) {
                    for (std::size_t i = 0; i < y.size(); ++i) {
                        const double sum = b ? x[i] + b[i % n] : x[i];
                        const double softplus =
                            std::max(sum, 0.0) + std::log1p(std::exp(-std::abs(sum)));
                        const double exact = a[i % n / (n / n_a)] * softplus;
                        check::near("log_decay", y[i], exact, 9 * roundoff * std::abs(exact), "at ",
                                    i);
                    }
                });
    }
}

KERNEL_TEST(log_decay_in_place_gives_the_same) {
    Floats x = normal(30, 1), y(30);
    const Floats a = decays(5, 3), bias = normal(10, 2);
    run_team([&](const Worker& worker) {
        tensor_ops::log_decay(worker, table, x.data(), bias.data(), a.data(), 5, 0.0f, y.data(), 3,
                              10);
        worker.barrier();
        tensor_ops::log_decay(worker, table, x.data(), bias.data(), a.data(), 5, 0.0f, x.data(), 3,
                              10);
    });
    check::that(same_bytes(x, y), "in place");
}

KERNEL_TEST(log_decay_with_a_bound_is_a_share_of_it) {
    const std::size_t n = 30;
    const Floats x = normal(many * n, 1, 3), bias = normal(n, 2);
    for (const std::size_t n_a : {30u, 5u, 1u}) {
        const Floats a = decays(n_a, 3);
        for (const float* b : {bias.data(), static_cast<const float*>(nullptr)})
            on_each_team(
                x.size(),
                [&](const Worker& worker, float* y) {
                    tensor_ops::log_decay(worker, table, x.data(), b, a.data(), n_a, -5.0f, y, many,
                                          n);
                },
                [&](const Floats& y) {
                    for (std::size_t i = 0; i < y.size(); ++i) {
                        const double sum = b ? x[i] + b[i % n] : x[i];
                        const double z = -double{a[i % n / (n / n_a)]} * sum;
                        const double exact = -5.0 / (1.0 + std::exp(-z));
                        check::near("log_decay", y[i], exact,
                                    (5 + 2 * std::abs(z)) * roundoff * std::abs(exact) + 1e-37,
                                    "at ", i);
                    }
                });
    }
}

KERNEL_TEST(group_norm_normalises_each_part_of_a_row_by_itself) {
    const std::size_t n = 84;
    const Floats x = normal(many * n, 1), weight = normal(n, 2);
    for (const std::size_t groups : {1u, 4u, 84u}) {
        const std::size_t part = n / groups;
        on_each_team(
            x.size(),
            [&](const Worker& worker, float* y) {
                tensor_ops::group_norm(worker, table, x.data(), weight.data(), 1e-5f, y, many, n,
                                       groups);
            },
            [&](const Floats& y) {
                for (std::size_t i = 0; i < y.size(); ++i) {
                    const std::size_t first = i / part * part;
                    const double exact = reference::rms_norm(
                        x.data() + first, weight.data() + first % n, 1e-5f, part)[i - first];
                    check::near("group_norm", y[i], exact, 1e-6 * std::abs(exact), "at ", i);
                }
            });
    }
}

KERNEL_TEST(l2_norm_on_a_team_is_the_kernel_row_by_row) {
    const Floats x = normal(many * 13, 1);
    Floats expected(x.size());
    table.l2_norm(x.data(), 1e-6f, expected.data(), many, 13);
    on_each_team(
        x.size(),
        [&](const Worker& worker, float* y) {
            tensor_ops::l2_norm(worker, table, x.data(), 1e-6f, y, many, 13);
        },
        [&](const Floats& y) { check::that(same_bytes(y, expected), "l2_norm"); });
}
