#include "ops/recurrent.h"

#include <algorithm>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

// Columns of a state of the delta rule in the smallest chunk: the kernel handles as many at once.
constexpr std::size_t dealt_columns = 32;

std::size_t n_tokens(std::span<const RecurrentSequence> sequences) {
    std::size_t n = 0;
    for (const RecurrentSequence& s : sequences) n += s.n_tokens;
    return n;
}

// Calls f(sequence, its first row) for all sequences, in order.
template <class F>
void for_sequences(std::span<const RecurrentSequence> sequences, F&& f) {
    std::size_t row = 0;
    for (const RecurrentSequence& s : sequences) {
        f(s, row);
        row += s.n_tokens;
    }
}

// Calls f(head, first, last) for this worker's parts of the `count` columns or rows of each head.
template <class F>
void for_heads(const Worker& worker, std::size_t n_heads, std::size_t count, std::size_t unit,
               F&& f) {
    const std::size_t units = (count + unit - 1) / unit;  // of a head
    Deal deal(worker, n_heads * units);
    for (std::size_t h = 0; h < n_heads; ++h)
        deal.within(h * units, (h + 1) * units, [&](std::size_t first, std::size_t last) {
            f(h, (first - h * units) * unit, std::min((last - h * units) * unit, count));
        });
}

}  // namespace

void causal_conv(const Worker& worker, const KernelTable& table, const ConvCall& call) {
    const std::size_t values = call.taps * n_tokens(call.sequences);  // that a channel reads
    if (values == 0) return;
    constexpr std::size_t fewest = 64;
    const std::size_t unit = std::max(fewest, dealt_elements / values / fewest * fewest);
    deal(worker, call.channels, unit, [&](std::size_t first, std::size_t last) {
        for_sequences(call.sequences, [&](const RecurrentSequence& s, std::size_t row) {
            // Tokens whose positions are alike modulo the dilation are a sequence of their own.
            for (std::size_t phase = 0; phase < std::min(call.dilation, s.n_tokens); ++phase) {
                const std::size_t at = (row + phase) * call.channels;
                const std::size_t own = (s.past + phase) % call.dilation;
                table.causal_conv({.n_tokens = divide_up(s.n_tokens - phase, call.dilation),
                                   .channels = call.channels,
                                   .taps = call.taps,
                                   .x = call.x + at,
                                   .stride = call.dilation * call.channels,
                                   .weight = call.weight,
                                   .bias = call.bias,
                                   .silu = call.silu,
                                   .y = call.y + at,
                                   .state = s.state + own * (call.taps - 1) * call.channels},
                                  first, last);
            }
        });
    });
}

void block_mean(const Worker& worker, const BlockMeanCall& call) {
    constexpr std::size_t fewest = 16;  // columns, a cache line
    const std::size_t tokens = n_tokens(call.sequences);
    if (tokens == 0) return;
    const std::size_t unit = std::max(fewest, dealt_elements / tokens / fewest * fewest);
    const auto size = static_cast<float>(call.block_size);
    deal(worker, call.width, unit, [&](std::size_t first, std::size_t last) {
        for_sequences(call.sequences, [&](const RecurrentSequence& s, std::size_t row) {
            for (std::size_t t = 0; t < s.n_tokens; ++t) {
                const std::size_t in_block = (s.past + t) % call.block_size;
                const bool begins = in_block == 0, ends = in_block + 1 == call.block_size;
                const float* const x = call.x + (row + t) * call.width;
                float* const y = call.y + (row + t) * call.width;
                for (std::size_t c = first; c < last; ++c) {
                    s.state[c] = begins ? x[c] : s.state[c] + x[c];
                    y[c] = ends ? s.state[c] / size : 0.0f;
                }
            }
        });
    });
}

void delta_rule(const Worker& worker, const KernelTable& table, const DeltaRuleCall& call) {
    const std::size_t heads = call.n_v_heads, d_k = call.d_k, d_v = call.d_v;
    const std::size_t decays = call.decay_by_channel ? d_k : 1;
    for_heads(
        worker, heads, d_v, dealt_columns, [&](std::size_t h, std::size_t first, std::size_t last) {
            const bool grouped = call.sharing == HeadSharing::grouped;
            const std::size_t k_head = grouped ? h / (heads / call.n_k_heads) : h % call.n_k_heads;
            for_sequences(call.sequences, [&](const RecurrentSequence& s, std::size_t row) {
                const std::size_t key = (row * call.n_k_heads + k_head) * d_k, at = row * heads + h;
                table.delta_rule({.n_tokens = s.n_tokens,
                                  .d_k = d_k,
                                  .d_v = d_v,
                                  .q = call.q + key,
                                  .k = call.k + key,
                                  .qk_stride = call.n_k_heads * d_k,
                                  .v = call.v + at * d_v,
                                  .v_stride = heads * d_v,
                                  .log_decay = call.log_decay + at * decays,
                                  .log_decay_stride = heads * decays,
                                  .decay_by_channel = call.decay_by_channel,
                                  .beta = call.beta + at,
                                  .beta_stride = heads,
                                  .scale = call.scale,
                                  .out = call.out + at * d_v,
                                  .state = s.state + h * d_k * d_v},
                                 first, last);
            });
        });
}

void ssm_scan(const Worker& worker, const KernelTable& table, const ScanCall& call) {
    const std::size_t heads = call.n_heads, width = call.head_dim, d_state = call.d_state;
    const std::size_t unit =
        std::max<std::size_t>(1, dealt_elements / std::max<std::size_t>(1, d_state));
    for_heads(worker, heads, width, unit, [&](std::size_t h, std::size_t first, std::size_t last) {
        const std::size_t group = h / (heads / call.n_groups);
        const float bias = call.dt_bias ? call.dt_bias[h] : 0.0f;
        const auto scan = [&](float* state, std::size_t row, std::size_t count) {
            constexpr std::size_t longest = 64;
            float steps[longest];
            for (; count > 0; row += std::min(longest, count), count -= std::min(longest, count)) {
                const std::size_t n = std::min(longest, count);
                for (std::size_t t = 0; t < n; ++t)
                    steps[t] = call.dt[(row + t) * heads + h] + bias;
                table.softplus(steps, steps, n);
                // std::max(x, bound) and std::min(x, bound) are x if x is NaN.
                for (float& step : std::span(steps, n))
                    step = std::min(std::max(step, call.dt_min), call.dt_max);
                const std::size_t at = (row * heads + h) * width;
                const std::size_t shared = (row * call.n_groups + group) * d_state;
                table.ssm_scan({.n_tokens = n,
                                .head_dim = width,
                                .d_state = d_state,
                                .x = call.x + at,
                                .x_stride = heads * width,
                                .dt = steps,
                                .b = call.b + shared,
                                .c = call.c + shared,
                                .bc_stride = call.n_groups * d_state,
                                .a = call.a[h],
                                .skip = call.skip ? call.skip[h] : 0.0f,
                                .y = call.y + at,
                                .state = state},
                               first, last);
            }
        };
        for_sequences(call.sequences, [&](const RecurrentSequence& s, std::size_t row) {
            scan(s.state + h * width * d_state, row, s.n_tokens);
        });
    });
}

void selective_scan(const Worker& worker, const KernelTable& table, const SelectiveScanCall& call) {
    const std::size_t channels = call.channels, d_state = call.d_state;
    const std::size_t work = std::max<std::size_t>(1, d_state * n_tokens(call.sequences));
    const std::size_t unit = std::max<std::size_t>(16, dealt_elements / work / 16 * 16);
    deal(worker, channels, unit, [&](std::size_t first, std::size_t last) {
        for_sequences(call.sequences, [&](const RecurrentSequence& s, std::size_t row) {
            table.selective_scan({.n_tokens = s.n_tokens,
                                  .d_state = d_state,
                                  .x = call.x + row * channels,
                                  .dt = call.dt + row * channels,
                                  .stride = channels,
                                  .b = call.b + row * d_state,
                                  .c = call.c + row * d_state,
                                  .a = call.a,
                                  .y = call.y + row * channels,
                                  .state = s.state},
                                 first, last);
        });
    });
}

void l2_norm(const Worker& worker, const KernelTable& table, const float* x, float eps, float* y,
             std::size_t rows, std::size_t n) {
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        table.l2_norm(x + first * n, eps, y + first * n, count, n);
    });
}

void log_decay(const Worker& worker, const KernelTable& table, const float* x, const float* bias,
               const float* a, std::size_t n_a, float bound, float* y, std::size_t rows,
               std::size_t n) {
    const auto times_a = [&](const float* from, float* to, float sign) {
        for (std::size_t i = 0; i < n_a; ++i)
            for (const float* end = to + n / n_a; to < end; ++to, ++from) *to = sign * a[i] * *from;
    };
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r) {
            float* const to = y + r * n;
            const float* from = x + r * n;
            if (bias) table.add(from, bias, to, n);
            if (bias) from = to;
            if (bound == 0.0f) {
                table.softplus(from, to, n);
                times_a(to, to, 1.0f);
            } else {
                times_a(from, to, -1.0f);
                table.sigmoid(to, to, n);
                for (std::size_t i = 0; i < n; ++i) to[i] *= bound;
            }
        }
    });
}

void group_norm(const Worker& worker, const KernelTable& table, const float* x, const float* weight,
                float eps, float* y, std::size_t rows, std::size_t n, std::size_t n_groups) {
    const std::size_t part = n / n_groups;
    for_rows(worker, rows * n_groups, part, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i)
            table.rms_norm(x + i * part, weight + i % n_groups * part, eps, y + i * part, 1, part,
                           false);
    });
}

}  // namespace tensor_ops
