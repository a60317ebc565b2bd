#include "ops/sampling.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace tensor_ops {
namespace {

// The logits of a group are skipped together if the largest of them is too small to matter.
constexpr std::size_t group_size = 64, lanes = 16;

// Maps floats to integers in the same order, with NaN above all.  Compilers vectorise comparisons
// of integers, but not of floats, because of the rules about NaN.
std::int32_t order(float x) {
    const auto bits = std::bit_cast<std::int32_t>(x);
    const std::int32_t magnitude = bits & 0x7fffffff;
    const std::int32_t value = bits < 0 ? -magnitude : magnitude;
    return magnitude > 0x7f800000 ? magnitude : value;
}

// The largest of n logits, at most a group; NaN if one is NaN.
float largest_of(const float* x, std::size_t n) {
    std::int32_t top[lanes];
    std::fill_n(top, lanes, std::numeric_limits<std::int32_t>::min());
    std::size_t i = 0;
    for (; i + lanes <= n; i += lanes)
        for (std::size_t lane = 0; lane < lanes; ++lane) {
            const std::int32_t here = order(x[i + lane]);
            top[lane] = here > top[lane] ? here : top[lane];
        }
    for (; i < n; ++i) top[0] = std::max(top[0], order(x[i]));
    const std::int32_t largest = *std::max_element(top, top + lanes);
    return std::bit_cast<float>(largest < 0 ? -largest | std::numeric_limits<std::int32_t>::min()
                                            : largest);
}

struct Candidate {
    float logit;
    std::size_t id;
};
// Each thread keeps one, so that it allocates nothing after its first token.
struct Room {
    std::vector<float> largest;  // of each group
    std::vector<float> sorted;
    std::vector<Candidate> left;
};

void look_at_groups(std::span<const float> logits, std::vector<float>& largest) {
    largest.resize((logits.size() + group_size - 1) / group_size);
    for (std::size_t g = 0; g < largest.size(); ++g)
        largest[g] = largest_of(&logits[g * group_size],
                                std::min(group_size, logits.size() - g * group_size));
}

// The index of the first largest value, or of the first NaN.
std::size_t likeliest(std::span<const float> x) {
    std::size_t best = 0;
    for (std::size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) return i;
        if (x[i] > x[best]) best = i;
    }
    return best;
}

bool likelier(const Candidate& a, const Candidate& b) {
    return a.logit > b.logit || (a.logit == b.logit && a.id < b.id);
}

// Puts the k likeliest candidates, or all if k is 0, into room.left, in no particular order.
void take_candidates(std::span<const float> logits, std::size_t k, Room& room) {
    if (k == 0) k = logits.size();
    float floor = -std::numeric_limits<float>::infinity();
    if (k <= room.largest.size()) {  // k groups have a largest logit of at least `floor`
        room.sorted = room.largest;
        const auto kth = room.sorted.begin() + static_cast<std::ptrdiff_t>(k - 1);
        std::nth_element(room.sorted.begin(), kth, room.sorted.end(), std::greater<>());
        floor = *kth;
    }
    room.left.clear();
    for (std::size_t g = 0; g < room.largest.size(); ++g) {
        if (room.largest[g] < floor) continue;
        for (std::size_t id = g * group_size; id < std::min((g + 1) * group_size, logits.size());
             ++id)
            if (logits[id] >= floor) room.left.push_back({logits[id], id});
    }
    if (k < room.left.size()) {
        const auto end = room.left.begin() + static_cast<std::ptrdiff_t>(k);
        std::nth_element(room.left.begin(), end, room.left.end(), likelier);
        room.left.erase(end, room.left.end());
    }
}

}  // namespace

// 20 us for 49,152 logits and a top_k of 40.
std::size_t sample(std::span<const float> logits, const Sampling& sampling, double draw) {
    thread_local Room room;
    look_at_groups(logits, room.largest);
    const std::size_t best_group = likeliest(room.largest) * group_size;
    const std::size_t best_id =
        best_group +
        likeliest(
            logits.subspan(best_group).first(std::min(group_size, logits.size() - best_group)));
    if (sampling.temperature == 0.0 || !std::isfinite(logits[best_id])) return best_id;

    take_candidates(logits, sampling.top_k, room);
    std::vector<Candidate>& left = room.left;
    const double best = logits[best_id];
    const auto relative = [&](const Candidate& c) { return std::exp(c.logit - best); };
    double total = 0.0;
    for (const Candidate& c : left) total += relative(c);
    // min_p comes first: it removes the same candidates as after top_p, and they need no sorting.
    std::erase_if(left, [&](const Candidate& c) { return relative(c) < sampling.min_p; });
    std::sort(left.begin(), left.end(), likelier);
    std::size_t n = 0;  // candidates that reach top_p: the one that crosses it is the last
    for (double share = 0.0; n < left.size() && share < sampling.top_p * total; ++n)
        share += relative(left[n]);
    left.resize(n);

    const auto shaped = [&](const Candidate& c) {
        return std::exp((c.logit - best) / sampling.temperature);
    };
    double sum = 0.0;
    for (const Candidate& c : left) sum += shaped(c);
    double so_far = 0.0;
    for (const Candidate& c : left) {
        so_far += shaped(c);
        if (so_far > draw * sum) return c.id;
    }
    return left.back().id;  // draw * sum has rounded up to the sum
}

}  // namespace tensor_ops
