// The kernels of recurrent layers within the bounds of kernels.h, token by token: the reference
// takes the state that the kernel had before the token.

#include "arrays.h"
#include "ops/recurrent.h"
#include "reference.h"

using namespace arrays;
using reference::Values;
using tensor_ops::HeadSharing;
using tensor_ops::KernelTable;
using tensor_ops::RecurrentSequence;

namespace {

// A team of one.
const tensor_ops::Worker alone(0, 1, nullptr);

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }

// Numbers between low and high.
Floats uniform(std::size_t n, unsigned seed, double low, double high) {
    std::mt19937 engine(seed + 1);
    std::uniform_real_distribution<double> distribution(low, high);
    Floats x(n);
    for (float& v : x) v = static_cast<float>(distribution(engine));
    return x;
}

}  // namespace

// ---- softplus ----------------------------------------------------------------------------------

namespace {

void check_softplus(const KernelTable& table, const Floats& x, std::size_t offset = 0,
                    std::source_location where = std::source_location::current()) {
    Floats y(x.size(), offset);
    table.softplus(x.data(), y.data(), x.size());
    for (std::size_t i = 0; i < x.size(); ++i) {
        const double exact = softplus(x[i]);
        const double bound = x[i] < -87.33f ? smallest_normal : 4 * ulp(exact);
        check::near({"softplus", where}, y[i], exact, bound, "of ", x[i]);
    }
}

}  // namespace

KERNEL_TEST(softplus_of_every_size_at_any_start) {
    for (const std::size_t n : sizes())
        check_softplus(table, normal(n, 1, 5, n % 16), (n + 3) % 16);
}

KERNEL_TEST(softplus_of_numbers_of_every_size) {
    for (const double scale : {1e-40, 1e-20, 1e-7, 1e-3, 0.1, 1.0, 10.0, 30.0, 100.0, 1e10, 1e38})
        check_softplus(table, normal(4097, 1, scale));
    check_softplus(table, uniform(200000, 1, -90, 90));
}

KERNEL_TEST(softplus_of_infinities_and_nan) {
    const Floats x = copy<float>(std::vector{infinity, -infinity, not_a_number, 0.0f, -0.0f});
    Floats y(5);
    table.softplus(x.data(), y.data(), 5);
    check::equal(y[0], infinity, "softplus(inf)");
    check::equal(y[1], 0.0f, "softplus(-inf)");
    check::that(std::isnan(y[2]), "softplus(nan)");
    check::near("softplus(0)", y[3], std::log(2), ulp(0.5), "");
    check::equal(y[4], y[3], "softplus(-0)");
}

// ---- l2_norm -----------------------------------------------------------------------------------

namespace {

void check_l2_norm(const KernelTable& table, const Floats& x, std::size_t n, float eps,
                   std::size_t offset = 0,
                   std::source_location where = std::source_location::current()) {
    Floats y(x.size(), offset);
    table.l2_norm(x.data(), eps, y.data(), x.size() / n, n);
    for (std::size_t r = 0; r < x.size(); r += n) {
        double sum = eps;
        for (std::size_t i = r; i < r + n; ++i) sum += static_cast<double>(x[i]) * x[i];
        for (std::size_t i = r; i < r + n; ++i) {
            const double exact = x[i] / std::sqrt(sum);
            check::near({"l2_norm", where}, y[i], exact, std::max(1e-6 * std::abs(exact), tiny),
                        "of ", n, " at ", i);
        }
    }
}

}  // namespace

KERNEL_TEST(l2_norm_of_every_size_at_any_start) {
    for (const std::size_t n : sizes())
        if (n > 0) check_l2_norm(table, normal(3 * n, 1, 1, n % 16), n, 1e-6f, (n + 3) % 16);
}

KERNEL_TEST(l2_norm_of_long_rows_of_equal_numbers) {
    for (const float value : {0.1f, 0.7f, 1.7f})
        check_l2_norm(table, filled(65536, value), 65536, 0);
}

KERNEL_TEST(l2_norm_of_numbers_of_every_size) {
    for (const double scale : {1e-44, 1e-38, 1e-19, 1e-10, 1e10, 1e19, 1e25, 1e37})
        for (const float eps : {0.0f, 1e-6f}) check_l2_norm(table, normal(140, 1, scale), 70, eps);
}

KERNEL_TEST(l2_norm_of_zeros_is_zeros) { check_l2_norm(table, filled(66, 0), 33, 1e-6f); }

KERNEL_TEST(l2_norm_spreads_nan_over_its_row_alone) {
    Floats x = normal(3 * 21, 1);
    x[21 + 20] = not_a_number;
    check_l2_norm(table, x, 21, 1e-6f);
}

KERNEL_TEST(l2_norm_in_place_gives_the_same) {
    for (const std::size_t n : {1u, 16u, 70u, 4097u}) {
        Floats x = normal(3 * n, 1), y(3 * n);
        table.l2_norm(x.data(), 1e-6f, y.data(), 3, n);
        table.l2_norm(x.data(), 1e-6f, x.data(), 3, n);
        check::that(same_bytes(x, y), "in place");
    }
}

// ---- causal_conv -------------------------------------------------------------------------------

namespace {

struct ConvShape {
    std::size_t n, channels, taps;
    bool silu, bias;
};

void check_conv(const KernelTable& table, const ConvShape& s,
                std::source_location where = std::source_location::current()) {
    const std::size_t kept = s.taps - 1;
    const Floats x = normal(s.n * s.channels, 1, 1, 3), bias = normal(s.channels, 3, 1, 5);
    const Floats weight = normal(s.channels * s.taps, 2, 1, 1);
    Floats state = normal(kept * s.channels, 4, 1, 7), y(s.n * s.channels, 2);
    std::vector<double> inputs(state.begin(), state.end());  // from the state's first token on
    inputs.insert(inputs.end(), x.begin(), x.end());
    const RecurrentSequence sequence{s.n, state.data()};
    tensor_ops::causal_conv(alone, table,
                            {.x = x.data(),
                             .channels = s.channels,
                             .taps = s.taps,
                             .weight = weight.data(),
                             .bias = s.bias ? bias.data() : nullptr,
                             .silu = s.silu,
                             .y = y.data(),
                             .sequences = {&sequence, 1}});
    for (std::size_t t = 0; t < s.n; ++t) {
        for (std::size_t c = 0; c < s.channels; ++c) {
            double sum = s.bias ? bias[c] : 0, magnitude = std::abs(sum);
            for (std::size_t j = 0; j < s.taps; ++j) {
                const double term = weight[c * s.taps + j] * inputs[(t + j) * s.channels + c];
                sum += term;
                magnitude += std::abs(term);
            }
            double bound = static_cast<double>(s.taps + 1) * roundoff * magnitude;
            if (s.silu) {
                sum = reference::silu(sum);
                bound = 1.1 * bound + 3 * ulp(sum);
            }
            check::near({"causal_conv", where}, y[t * s.channels + c], sum, bound, "of ", s.taps,
                        " taps at ", t, ", ", c);
        }
    }
    for (std::size_t i = 0; i < state.size(); ++i)
        check::equal(static_cast<double>(state[i]), inputs[s.n * s.channels + i], "the state",
                     where);
}

}  // namespace

KERNEL_TEST(causal_conv_of_all_numbers_of_taps) {
    for (std::size_t taps = 1; taps <= tensor_ops::conv_max_taps; ++taps)
        for (const std::size_t n : {1u, 2u, 3u, 9u})
            for (const bool on : {false, true}) check_conv(table, {n, 37, taps, on, on});
}

KERNEL_TEST(causal_conv_of_every_number_of_channels) {
    for (const std::size_t channels : sizes()) check_conv(table, {5, channels, 4, true, false});
    for (const std::size_t channels : {255u, 256u, 257u, 513u})
        check_conv(table, {5, channels, 3, false, true});
}

KERNEL_TEST(causal_conv_in_place_gives_the_same) {
    for (const bool silu : {false, true}) {
        const Floats weight = normal(300 * 4, 2);
        Floats x = normal(7 * 300, 1), y(7 * 300);
        for (Floats* out : {&y, &x}) {
            Floats state = filled(3 * 300, 0.5f);
            table.causal_conv(
                {7, 300, 4, x.data(), 300, weight.data(), nullptr, silu, out->data(), state.data()},
                0, 300);
        }
        check::that(same_bytes(x, y), "in place");
    }
}

KERNEL_TEST(causal_conv_spreads_nan_over_the_taps_of_its_channel_alone) {
    const std::size_t n = 8, channels = 21;
    Floats x = normal(n * channels, 1), state = filled(3 * channels, 0), y(n * channels);
    const Floats weight = normal(channels * 4, 2);
    x[2 * channels + 20] = not_a_number;
    table.causal_conv(
        {n, channels, 4, x.data(), channels, weight.data(), nullptr, true, y.data(), state.data()},
        0, channels);
    for (std::size_t i = 0; i < y.size(); ++i) {
        const std::size_t t = i / channels;
        check::equal(std::isnan(y[i]), i % channels == 20 && t >= 2 && t < 6, "NaN");
    }
}

// ---- delta_rule --------------------------------------------------------------------------------

namespace {

struct DeltaShape {
    std::size_t n, n_k, n_v, d_k, d_v;
    bool by_channel = false;
    HeadSharing sharing = HeadSharing::grouped;
};

// Inputs of any size, or as models have them: keys and queries of length 1.
struct DeltaInputs {
    DeltaShape s;
    Floats q, k, v, g, beta;
    DeltaInputs(const KernelTable& table, const DeltaShape& shape, bool unit)
        : s(shape),
          q(normal(s.n * s.n_k * s.d_k, 1, 1, 1)),
          k(normal(s.n * s.n_k * s.d_k, 2, 1, 2)),
          v(normal(s.n * s.n_v * s.d_v, 3, 1, 3)),
          g(uniform(s.n * s.n_v * (s.by_channel ? s.d_k : 1), 4, -1.5, 0)),
          beta(uniform(s.n * s.n_v, 5, 0, 1)) {
        if (!unit) return;
        table.l2_norm(q.data(), 1e-6f, q.data(), s.n * s.n_k, s.d_k);
        table.l2_norm(k.data(), 1e-6f, k.data(), s.n * s.n_k, s.d_k);
    }

    std::size_t k_head(std::size_t h) const {
        return s.sharing == HeadSharing::grouped ? h / (s.n_v / s.n_k) : h % s.n_k;
    }
    // The `count` tokens from `t` on.
    void run(const KernelTable& table, std::size_t t, std::size_t count, float* state,
             float* out) const {
        const RecurrentSequence sequence{count, state};
        const std::size_t decays = s.by_channel ? s.d_k : 1;
        tensor_ops::delta_rule(alone, table,
                               {.q = q.data() + t * s.n_k * s.d_k,
                                .k = k.data() + t * s.n_k * s.d_k,
                                .v = v.data() + t * s.n_v * s.d_v,
                                .log_decay = g.data() + t * s.n_v * decays,
                                .beta = beta.data() + t * s.n_v,
                                .n_k_heads = s.n_k,
                                .n_v_heads = s.n_v,
                                .d_k = s.d_k,
                                .d_v = s.d_v,
                                .decay_by_channel = s.by_channel,
                                .sharing = s.sharing,
                                .scale = scale,
                                .out = out,
                                .sequences = {&sequence, 1}});
    }
    static constexpr float scale = 0.3f;
};

// Column j of the state of head h after token t, in float64, and the element of out.  `column` is
// that of the state before.  errors: the bounds for them.
struct DeltaColumn {
    Values column, errors;
    double out, out_error;
    DeltaColumn(const DeltaInputs& in, std::size_t t, std::size_t h, std::size_t j,
                const Values& before)
        : column(before), errors(before.size()), out(0) {
        const DeltaShape& s = in.s;
        const auto d_k = static_cast<double>(s.d_k);
        const float* q = in.q.data() + (t * s.n_k + in.k_head(h)) * s.d_k;
        const float* k = in.k.data() + (t * s.n_k + in.k_head(h)) * s.d_k;
        const double v = in.v[(t * s.n_v + h) * s.d_v + j], beta = in.beta[t * s.n_v + h];
        double recalled = 0, magnitude = 0;
        for (std::size_t i = 0; i < s.d_k; ++i) {
            const std::size_t at = t * s.n_v + h;
            column[i] *= std::exp(static_cast<double>(in.g[s.by_channel ? at * s.d_k + i : at]));
            recalled += column[i] * k[i];
            magnitude += std::abs(column[i] * k[i]);
        }
        const double delta = beta * (v - recalled);
        const double largest = std::abs(beta) * (std::abs(v) + magnitude);
        double sum = 0;
        for (std::size_t i = 0; i < s.d_k; ++i) {
            const double kept = std::abs(column[i]), added = std::abs(k[i]) * largest;
            column[i] += k[i] * delta;
            errors[i] = roundoff * (5 * kept + (d_k + 10) * added);
            out += q[i] * column[i] * static_cast<double>(DeltaInputs::scale);
            sum += std::abs(q[i]) * (kept + added) * static_cast<double>(DeltaInputs::scale);
        }
        out_error = (2 * d_k + 14) * roundoff * sum;
    }
};

Values column_of(const Floats& state, const DeltaShape& s, std::size_t h, std::size_t j) {
    Values column(s.d_k);
    for (std::size_t i = 0; i < s.d_k; ++i) column[i] = state[(h * s.d_k + i) * s.d_v + j];
    return column;
}

void check_delta(const KernelTable& table, const DeltaShape& s,
                 std::source_location where = std::source_location::current()) {
    const DeltaInputs in(table, s, false);
    Floats state = normal(s.n_v * s.d_k * s.d_v, 6, 1, 5);
    for (std::size_t t = 0; t < s.n; ++t) {
        const Floats before = copy<float>(state);
        Floats out(s.n_v * s.d_v, 7);
        in.run(table, t, 1, state.data(), out.data());
        for (std::size_t h = 0; h < s.n_v; ++h) {
            for (std::size_t j = 0; j < s.d_v; ++j) {
                const DeltaColumn exact(in, t, h, j, column_of(before, s, h, j));
                check::near({"out", where}, out[h * s.d_v + j], exact.out, exact.out_error, "of ",
                            s.d_k, " x ", s.d_v, " at ", t, ", ", h, ", ", j);
                for (std::size_t i = 0; i < s.d_k; ++i)
                    check::near({"state", where}, state[(h * s.d_k + i) * s.d_v + j],
                                exact.column[i], exact.errors[i], "of ", s.d_k, " x ", s.d_v,
                                " at ", t, ", ", h, ", ", i, ", ", j);
            }
        }
    }
}

}  // namespace

KERNEL_TEST(delta_rule_of_every_number_of_columns) {
    for (const std::size_t d_v : sizes())
        if (d_v < 100) check_delta(table, {2, 1, 1, 5, d_v});
}

KERNEL_TEST(delta_rule_of_all_kinds_of_heads) {
    for (const bool by_channel : {false, true})
        for (const HeadSharing sharing : {HeadSharing::grouped, HeadSharing::tiled}) {
            check_delta(table, {3, 2, 6, 7, 9, by_channel, sharing});
            check_delta(table, {3, 3, 3, 13, 64, by_channel, sharing});
            check_delta(table, {2, 1, 2, 128, 128, by_channel, sharing});
        }
    check_delta(table, {1, 1, 1, tensor_ops::delta_rule_max_key_dim, 33, true});
}

// With keys no longer than 1, the error of a state's column is at most the sum of what each token
// adds: a token makes no column longer, nor the error of a column.
KERNEL_TEST(delta_rule_does_not_amplify_errors_over_many_tokens) {
    const DeltaShape s{300, 1, 1, 64, 40, true};
    const DeltaInputs in(table, s, true);
    Floats state = normal(s.d_k * s.d_v, 6), out(s.n * s.d_v);
    std::vector<Values> columns;
    for (std::size_t j = 0; j < s.d_v; ++j) columns.push_back(column_of(state, s, 0, j));
    in.run(table, 0, s.n, state.data(), out.data());
    for (std::size_t j = 0; j < s.d_v; ++j) {
        double allowed = 0, squares = 0;
        for (std::size_t t = 0; t < s.n; ++t) {
            const DeltaColumn exact(in, t, 0, j, columns[j]);
            columns[j] = exact.column;
            double added = 0;
            for (const double error : exact.errors) added += error * error;
            allowed += std::sqrt(added);
            check::near("out", out[t * s.d_v + j], exact.out,
                        exact.out_error + DeltaInputs::scale * allowed, "at ", t, ", ", j);
        }
        for (std::size_t i = 0; i < s.d_k; ++i)
            squares += std::pow(static_cast<double>(state[i * s.d_v + j]) - columns[j][i], 2);
        check::that(std::sqrt(squares) <= allowed, "the error of a column");
    }
}

KERNEL_TEST(delta_rule_forgets_all_at_a_log_decay_of_minus_infinity) {
    const DeltaShape s{1, 1, 1, 6, 11};
    DeltaInputs in(table, s, false);
    in.g[0] = -infinity;
    Floats state = filled(6 * 11, 1e30f), out(11);
    in.run(table, 0, 1, state.data(), out.data());
    for (std::size_t i = 0; i < 6; ++i)
        for (std::size_t j = 0; j < 11; ++j)
            check::equal(state[i * 11 + j], in.k[i] * (in.beta[0] * in.v[j]), "the state");
}

KERNEL_TEST(a_log_decay_above_88_counts_as_88) {
    for (const bool by_channel : {false, true}) {
        DeltaInputs in(table, {1, 1, 1, 6, 11, by_channel}, false);
        std::vector<Floats> states;
        for (const float g : {88.0f, 88.5f, 1000.0f, infinity}) {
            for (float& value : in.g) value = g;
            states.push_back(filled(6 * 11, 1e-30f));
            Floats out(11);
            in.run(table, 0, 1, states.back().data(), out.data());
            check::that(same_bytes(states.back(), states.front()), "the state");
        }
    }
}

KERNEL_TEST(delta_rule_of_decays_that_are_no_numbers_spoils_their_head_alone) {
    for (const bool by_channel : {false, true})
        for (const float bad : {not_a_number, infinity}) {
            const DeltaShape s{20, 1, 3, 5, 9, by_channel};
            DeltaInputs in(table, s, false);
            in.g[by_channel ? 5 : 1] = bad;  // the first token's, of head 1
            Floats state = filled(3 * 45, 1), out(20 * 27);
            in.run(table, 0, 20, state.data(), out.data());
            for (std::size_t i = 0; i < state.size(); ++i)
                if (i / 45 != 1)
                    check::that(std::isfinite(state[i]), "another head's");
                else if (std::isnan(bad))
                    check::that(std::isnan(state[i]), "the head's");
            for (std::size_t i = 0; i < out.size(); ++i)
                if (i / 9 % 3 != 1) check::that(std::isfinite(out[i]), "another head's output");
        }
}

KERNEL_TEST(delta_rule_of_any_division_of_the_columns_gives_the_same) {
    const std::size_t n = 11, d_k = 9, d_v = 77;
    const Floats q = normal(n * d_k, 1), k = normal(n * d_k, 2, 0.3), v = normal(n * d_v, 3);
    const Floats g = uniform(n, 4, -1, 0), beta = uniform(n, 5, 0, 1);
    const auto run = [&](std::size_t cut) {
        Floats state = normal(d_k * d_v, 6), out(n * d_v);
        const tensor_ops::DeltaRuleTask task{
            n,        d_k, d_v,   q.data(),    k.data(), d_k,  v.data(),   d_v,
            g.data(), 1,   false, beta.data(), 1,        1.0f, out.data(), state.data()};
        table.delta_rule(task, 0, cut);
        table.delta_rule(task, cut, d_v);
        return std::pair(std::move(out), std::move(state));
    };
    const auto whole = run(0);
    for (std::size_t cut = 1; cut <= d_v; ++cut) {
        const auto parts = run(cut);
        check::that(same_bytes(parts.first, whole.first), "out");
        check::that(same_bytes(parts.second, whole.second), "state");
    }
}

// ---- ssm_scan ----------------------------------------------------------------------------------

namespace {

struct ScanShape {
    std::size_t n, heads, groups, head_dim, d_state;
};

struct ScanInputs {
    ScanShape s;
    Floats x, dt, b, c, a, skip, bias;
    explicit ScanInputs(const ScanShape& shape)
        : s(shape),
          x(normal(s.n * s.heads * s.head_dim, 1, 1, 1)),
          dt(normal(s.n * s.heads, 2, 2, 2)),
          b(normal(s.n * s.groups * s.d_state, 3, 1, 3)),
          c(normal(s.n * s.groups * s.d_state, 4, 1, 4)),
          a(uniform(s.heads, 5, -16, -0.5)),
          skip(normal(s.heads, 6)),
          bias(normal(s.heads, 7)) {}

    void run(const KernelTable& table, std::size_t t, std::size_t count, float* state, float* y,
             float dt_min = 0, float dt_max = infinity) const {
        const RecurrentSequence sequence{count, state};
        tensor_ops::ssm_scan(alone, table,
                             {.x = x.data() + t * s.heads * s.head_dim,
                              .dt = dt.data() + t * s.heads,
                              .b = b.data() + t * s.groups * s.d_state,
                              .c = c.data() + t * s.groups * s.d_state,
                              .a = a.data(),
                              .skip = skip.data(),
                              .dt_bias = bias.data(),
                              .n_heads = s.heads,
                              .n_groups = s.groups,
                              .head_dim = s.head_dim,
                              .d_state = s.d_state,
                              .dt_min = dt_min,
                              .dt_max = dt_max,
                              .y = y,
                              .sequences = {&sequence, 1}});
    }
    // The length of a step: float32's, as the kernel's bounds are for a given one.
    float step(const KernelTable& table, std::size_t t, std::size_t h, float low,
               float high) const {
        float value = dt[t * s.heads + h] + bias[h];
        table.softplus(&value, &value, 1);
        return std::min(std::max(value, low), high);
    }
};

void check_scan(const KernelTable& table, const ScanShape& s, float dt_min = 0,
                float dt_max = infinity,
                std::source_location where = std::source_location::current()) {
    const ScanInputs in(s);
    Floats state = normal(s.heads * s.head_dim * s.d_state, 8, 1, 5);
    for (std::size_t t = 0; t < s.n; ++t) {
        const Floats before = copy<float>(state);
        Floats y(s.heads * s.head_dim, 7);
        in.run(table, t, 1, state.data(), y.data(), dt_min, dt_max);
        for (std::size_t row = 0; row < s.heads * s.head_dim; ++row) {
            const std::size_t h = row / s.head_dim, group = h / (s.heads / s.groups);
            const double dt = in.step(table, t, h, dt_min, dt_max), x = in.x[t * y.size() + row];
            const double decay = std::exp(dt * in.a[h]), length = std::abs(dt * in.a[h]);
            double sum = in.skip[h] * x, magnitude = std::abs(sum);
            for (std::size_t j = 0; j < s.d_state; ++j) {
                const std::size_t at = (t * s.groups + group) * s.d_state + j;
                const double kept = decay * before[row * s.d_state + j], added = dt * x * in.b[at];
                const double most = std::abs(kept) + std::abs(added);
                check::near({"state", where}, state[row * s.d_state + j], kept + added,
                            (6 + length) * roundoff * most + tiny, "at ", t, ", ", row, ", ", j);
                sum += (kept + added) * in.c[at];
                magnitude += std::abs(in.c[at]) * most;
            }
            const double terms = static_cast<double>(s.d_state) + 8 + length;
            check::near({"y", where}, y[row], sum, terms * roundoff * magnitude, "of ", s.head_dim,
                        " x ", s.d_state, " at ", t, ", ", row);
        }
    }
}

}  // namespace

KERNEL_TEST(ssm_scan_of_every_size_of_state) {
    for (const std::size_t d_state : sizes())
        if (d_state < 100) check_scan(table, {2, 1, 1, 5, d_state});
    for (std::size_t head_dim = 0; head_dim < 40; ++head_dim)
        check_scan(table, {2, 1, 1, head_dim, 19});
}

KERNEL_TEST(ssm_scan_of_heads_that_share_groups) {
    check_scan(table, {3, 6, 2, 7, 16});
    check_scan(table, {3, 3, 3, 16, 128});
    check_scan(table, {2, 4, 1, 64, 128});
}

KERNEL_TEST(ssm_scan_holds_the_step_between_its_limits) {
    check_scan(table, {3, 6, 2, 7, 16}, 0.5f, 1.0f);
    check_scan(table, {3, 6, 2, 7, 16}, 0.0f, 0.25f);
}

KERNEL_TEST(ssm_scan_of_steps_that_are_no_numbers_spoils_their_head_alone) {
    for (const float bad : {not_a_number, infinity, -infinity}) {
        ScanInputs in({70, 3, 1, 9, 21});
        in.dt[1] = bad;  // the first token's, of head 1
        Floats state = filled(3 * 9 * 21, 1), y(70 * 27);
        in.run(table, 0, 70, state.data(), y.data());
        for (std::size_t i = 0; i < state.size(); ++i)
            if (i / (9 * 21) != 1 || bad == -infinity)
                check::that(std::isfinite(state[i]), "another head's");
            else if (std::isnan(bad))
                check::that(std::isnan(state[i]), "the head's");
        for (std::size_t i = 0; i < y.size(); ++i)
            if (i / 9 % 3 != 1) check::that(std::isfinite(y[i]), "another head's output");
    }
}

KERNEL_TEST(ssm_scan_of_any_division_of_the_rows_gives_the_same) {
    const std::size_t n = 70, width = 37, d_state = 21;
    const Floats x = normal(n * width, 1), dt = uniform(n, 2, 0, 1);
    const Floats b = normal(n * d_state, 3), c = normal(n * d_state, 4);
    const auto run = [&](std::size_t cut) {
        Floats state = normal(width * d_state, 6), y(n * width);
        const tensor_ops::ScanTask task{n,         width,    d_state,     x.data(), width,
                                        dt.data(), b.data(), c.data(),    d_state,  -1.5f,
                                        0.5f,      y.data(), state.data()};
        table.ssm_scan(task, 0, cut);
        table.ssm_scan(task, cut, width);
        return std::pair(std::move(y), std::move(state));
    };
    const auto whole = run(0);
    for (std::size_t cut = 1; cut <= width; ++cut) {
        const auto parts = run(cut);
        check::that(same_bytes(parts.first, whole.first), "y");
        check::that(same_bytes(parts.second, whole.second), "state");
    }
}
