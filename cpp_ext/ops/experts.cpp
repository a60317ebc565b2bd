#include "ops/experts.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>

#include "ops/ops.h"

namespace tensor_ops {
namespace {

// The expert that a route names for item row * n_used + u, or n_experts for a number that is no
// expert's: a route that comes from outside may hold any number.
std::uint32_t expert_of(const float* route, std::size_t n_used, std::size_t n_experts,
                        std::size_t item) {
    const float e = route[item / n_used * 2 * n_used + item % n_used];
    return static_cast<std::uint32_t>(
        e >= 0.0f && e < static_cast<float>(n_experts) ? static_cast<std::size_t>(e) : n_experts);
}

// The items row * n_used + u of a task, grouped by expert: `of(e)` gives those of expert e.
class Groups {
 public:
    // Uses the thread's own scratch memory, as every worker of the team groups for itself.
    Groups(const ExpertTask& task, std::size_t n_experts) : n_experts_(n_experts) {
        const std::size_t n = task.rows * task.n_used;
        ends_ = static_cast<std::uint32_t*>(
            thread_scratch((n_experts + 1 + n) * sizeof(std::uint32_t)));
        items_ = ends_ + n_experts + 1;
        std::fill(ends_, items_, 0);
        for (std::size_t i = 0; i < n; ++i) ++ends_[task.chosen[i]];
        for (std::size_t e = 1; e <= n_experts; ++e) ends_[e] += ends_[e - 1];
        for (std::size_t i = n; i-- > 0;)
            items_[--ends_[task.chosen[i]]] = static_cast<std::uint32_t>(i);
        n_ = n;
    }
    std::span<const std::uint32_t> of(std::size_t e) const {
        const std::size_t first = ends_[e], last = e == n_experts_ ? n_ : ends_[e + 1];
        return {items_ + first, last - first};
    }
    std::span<const std::uint32_t> without_expert() const { return of(n_experts_); }

 private:
    std::size_t n_experts_, n_ = 0;
    std::uint32_t *ends_, *items_;  // ends_: in the end, where the items of each expert begin
};

// The products of a single row, as in decoding.  Those of all its experts are dealt out together,
// so that most chunks are long stretches of memory: two threads read 6 experts of 768 x 2048 in
// Q4_0 at 92 % of the speed of one matrix of 2048 x 2048, and at 82 % if they deal out each by
// itself.  A product without an expert is dealt out as well, so that Deals and barriers do not
// depend on the route, and threads may join at any time.
void one_row(const Worker& worker, const Experts& experts, const ExpertTask& task, bool quantize) {
    const std::size_t k = experts[0]->k(), n = experts[0]->n();
    const std::size_t row_bytes = quantized_activation_bytes(task.kind, 1, k);
    if (quantize && !task.ready) {
        const std::size_t inputs = task.shared ? 1 : task.n_used;
        for_rows(worker, inputs, k, [&](std::size_t first, std::size_t count) {
            for (std::size_t u = first; u < first + count; ++u)
                experts[0]->table().quantize_activations(task.kind, task.x + u * k, 1, k, 0, 1,
                                                         task.quantized + u * row_bytes);
        });
        worker.barrier();
    }
    const std::size_t size = experts[0]->groups();
    const std::size_t rows = experts[0]->table().group_rows(experts[0]->type());
    Deal deal(worker, task.n_used * size, dealt_groups);
    for (std::size_t u = 0; u < task.n_used; ++u) {
        const std::size_t at = u * size, i = task.shared ? 0 : u;
        const LinearInput input{task.x + i * k, task.kind, task.quantized + i * row_bytes, 1};
        deal.within(at, at + size, [&](std::size_t first, std::size_t last) {
            const std::size_t e = expert_of(task.route, task.n_used, experts.size(), u);
            float* const y = task.y + u * n;
            if (e < experts.size())
                linear_groups(*experts[e], input, first - at, last - at, y);
            else
                std::fill(y + (first - at) * rows, y + std::min((last - at) * rows, n),
                          std::nanf(""));
        });
    }
}

// The products of one expert's items, at most task.rows of them, by all threads together.
void one_expert(const Worker& worker, const PackedMatrix& w, const ExpertTask& task,
                std::span<const std::uint32_t> items, bool quantize) {
    const std::size_t k = w.k(), n = w.n(), rows = items.size();
    float *x = task.scratch, *y = task.scratch + task.rows * k;
    deal(worker, rows, w.table().activation_tile, [&](std::size_t first, std::size_t last) {
        for (std::size_t r = first; r < last; ++r)
            std::copy_n(task.x + (task.shared ? items[r] / task.n_used : items[r]) * k, k,
                        x + r * k);
        if (quantize)
            w.table().quantize_activations(task.kind, x, rows, k, first, last, task.quantized);
    });
    worker.barrier();
    linear(worker, w, x, task.kind, task.quantized, rows, y);
    worker.barrier();
    for_rows(worker, rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r)
            std::copy_n(y + r * n, n, task.y + items[r] * n);
    });
}

// What route compares instead of a score: the score, from the lowest float to infinity, with NaN as
// infinity; or `taken`.
constexpr float taken = -std::numeric_limits<float>::infinity();
float rank(float score) {
    if (std::isnan(score)) return std::numeric_limits<float>::infinity();
    return std::max(score, std::numeric_limits<float>::lowest());
}

void root_of_softplus(const KernelTable& table, const float* x, std::span<float> y) {
    table.softplus(x, y.data(), y.size());
    for (float& value : y) value = std::sqrt(value);
}

// The first of the highest ranks, which becomes `taken`.
std::size_t take_best(std::span<float> ranks) {
    const auto best = std::max_element(ranks.begin(), ranks.end());
    *best = taken;
    return static_cast<std::size_t>(best - ranks.begin());
}

float group_score(GroupScore kind, std::span<const float> ranks) {
    float best = ranks[0], second = taken;
    for (const float r : ranks.subspan(1)) {
        second = std::max(second, std::min(best, r));
        best = std::max(best, r);
    }
    return kind == GroupScore::max ? best : best + second;
}

// Takes the experts of all groups but the best.  groups: space for their ranks.
void take_other_groups(const RouteTask& task, std::span<float> ranks, std::span<float> groups) {
    const std::size_t size = ranks.size() / groups.size();
    for (std::size_t g = 0; g < groups.size(); ++g)
        groups[g] = rank(group_score(task.group_score, ranks.subspan(g * size, size)));
    for (std::size_t i = 0; i < task.n_groups_used; ++i) take_best(groups);
    for (std::size_t g = 0; g < groups.size(); ++g)
        if (groups[g] != taken) std::ranges::fill(ranks.subspan(g * size, size), taken);
}

// See RouteTask.  ranks, near: [n_experts], space.  experts, chosen: [n_used].
void sparsemixer(const KernelTable& table, const float* logits, std::span<float> ranks,
                 std::span<float> near, std::span<float> experts, float* chosen) {
    for (std::size_t e = 0; e < ranks.size(); ++e) ranks[e] = rank(logits[e]);
    for (std::size_t u = 0; u < experts.size(); ++u) {
        const std::size_t best = take_best(ranks);
        const float m = logits[best];
        for (std::size_t e = 0; e < ranks.size(); ++e) {
            const float x = logits[e];
            const bool far = (m - x) / std::max(std::fabs(x), m) > sparsemixer_band;
            near[e] = far || (ranks[e] == taken && e != best) ? taken : x;
        }
        table.softmax(near.data(), near.data(), 1, near.size(), false);
        experts[u] = static_cast<float>(best);
        chosen[u] = near[best];
    }
}

}  // namespace

void route(const Worker& worker, const KernelTable& table, const RouteTask& task) {
    const std::size_t n = task.n_experts, n_used = task.n_used;
    auto* const scratch =
        static_cast<float*>(thread_scratch((2 * n + task.n_groups) * sizeof(float)));
    const std::span shares(scratch, n), ranks(scratch + n, n),
        groups(scratch + 2 * n, task.n_groups);
    for_rows(worker, task.rows, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r) {
            const float* logits = task.logits + r * n;
            if (task.gating == Gating::sigmoid)
                table.sigmoid(logits, shares.data(), n);
            else if (task.gating == Gating::softmax)
                table.softmax(logits, shares.data(), 1, n, false);
            else if (task.gating == Gating::sqrtsoftplus)
                root_of_softplus(table, logits, shares);
            float *experts = task.out + r * 2 * n_used, *chosen = experts + n_used, sum = 0.0f;
            if (task.gating == Gating::sparsemixer) {
                sparsemixer(table, logits, ranks, shares, {experts, n_used}, chosen);
            } else if (task.given) {
                std::copy_n(task.given + r * n_used, n_used, experts);
            } else {
                for (std::size_t e = 0; e < n; ++e)
                    ranks[e] = rank(task.bias ? shares[e] + task.bias[e] : shares[e]);
                if (task.n_groups_used < task.n_groups) take_other_groups(task, ranks, groups);
                for (std::size_t u = 0; u < n_used; ++u)
                    experts[u] = static_cast<float>(take_best(ranks));
            }
            for (std::size_t u = 0; u < n_used; ++u) {
                const std::size_t e = expert_of(experts, n_used, n, u);
                if (task.gating != Gating::sparsemixer)
                    chosen[u] = e < n ? shares[e] : std::numeric_limits<float>::quiet_NaN();
                sum += chosen[u];
            }
            const float divisor = task.normalized ? sum + 1e-20f : 1.0f;
            for (std::size_t u = 0; u < n_used; ++u) chosen[u] = chosen[u] / divisor * task.scale;
        }
    });
}

void expert_linear(const Worker& worker, const Experts& experts, const ExpertTask& task) {
    const bool quantize = is_quantized(experts[0]->type()) && task.kind != Activations::f32;
    if (task.rows == 1) return one_row(worker, experts, task, quantize);
    // A route that comes from outside may change at any time.  One worker reads it once for all:
    // otherwise they could count differently and wait at different barriers.
    if (worker.index() == 0)
        for (std::size_t i = 0; i < task.rows * task.n_used; ++i)
            task.chosen[i] = expert_of(task.route, task.n_used, experts.size(), i);
    worker.barrier();
    const Groups groups(task, experts.size());
    for (std::size_t e = 0; e < experts.size(); ++e) {
        // A row names an expert only once, unless the route comes from outside; then there may be
        // more items than rows.
        auto items = groups.of(e);
        for (; items.size() > task.rows; items = items.subspan(task.rows))
            one_expert(worker, *experts[e], task, items.first(task.rows), quantize);
        if (!items.empty()) one_expert(worker, *experts[e], task, items, quantize);
    }
    if (worker.index() == 0)
        for (const std::size_t i : groups.without_expert())
            std::fill_n(task.y + i * experts[0]->n(), experts[0]->n(), std::nanf(""));
}

void expert_bias(const Worker& worker, const KernelTable& table, const ExpertBiasTask& task) {
    const std::size_t n = task.n;
    for_rows(worker, task.rows * task.n_used, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) {
            const std::size_t e = expert_of(task.route, task.n_used, task.n_experts, i);
            if (e < task.n_experts)
                table.add(task.x + i * n, task.biases + e * n, task.y + i * n, n);
            else
                std::fill_n(task.y + i * n, n, std::nanf(""));
        }
    });
}

void expert_scale(const Worker& worker, const ExpertScaleTask& task) {
    const std::size_t n = task.n;
    for_rows(worker, task.rows * task.n_used, n, [&](std::size_t first, std::size_t count) {
        for (std::size_t i = first; i < first + count; ++i) {
            const std::size_t e = expert_of(task.route, task.n_used, task.n_experts, i);
            const float factor = e < task.n_experts ? task.factors[e] : std::nanf("");
            for (std::size_t c = i * n; c < (i + 1) * n; ++c) task.y[c] = factor * task.x[c];
        }
    });
}

void scale_shares(const Worker& worker, const float* route, const float* factors,
                  std::size_t n_experts, std::size_t rows, std::size_t n_used, float* y) {
    for_rows(worker, rows, 2 * n_used, [&](std::size_t first, std::size_t count) {
        for (std::size_t r = first; r < first + count; ++r)
            for (std::size_t u = 0; u < n_used; ++u) {
                const std::size_t e = expert_of(route, n_used, n_experts, r * n_used + u);
                const std::size_t share = (2 * r + 1) * n_used + u;
                y[share - n_used] = route[share - n_used];
                y[share] = route[share] * (e < n_experts ? factors[e] : std::nanf(""));
            }
    });
}

void expert_sum(const Worker& worker, const float* x, const float* route, std::size_t rows,
                std::size_t n, std::size_t n_used, float* y) {
    // Deals out columns as well as rows, as a single row is common.
    deal(worker, rows * n, dealt_elements, [&](std::size_t begin, std::size_t end) {
        for (std::size_t i = begin; i < end;) {
            const std::size_t r = i / n, first = i % n, last = std::min(n, first + end - i);
            const float *shares = route + r * 2 * n_used + n_used, *in = x + r * n_used * n;
            float* out = y + r * n;
            for (std::size_t c = first; c < last; ++c) out[c] = shares[0] * in[c];
            for (std::size_t u = 1; u < n_used; ++u)
                for (std::size_t c = first; c < last; ++c) out[c] += shares[u] * in[u * n + c];
            i += last - first;
        }
    });
}

}  // namespace tensor_ops
