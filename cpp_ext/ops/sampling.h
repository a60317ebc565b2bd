// Choosing a token by the probabilities that a model gives.
#pragma once

#include <cstddef>
#include <span>

namespace tensor_ops {

// top_k, top_p and min_p cut the candidates down, in this order.  The token is drawn from those
// that are left, each weighted by its probability to the power of 1 / temperature.
struct Sampling {
    double temperature;  // 0: takes the likeliest
    std::size_t top_k;   // keeps only so many of the likeliest; 0: all
    double top_p;        // above 0: keeps only the likeliest that together reach this share
    double min_p;        // 0 to 1: keeps only those at least this fraction as likely as the best
};

// The token that `draw`, uniform in [0, 1), selects.  Of equal logits, the lower id counts as the
// likelier.  If the largest logit is infinite or NaN (which counts as larger than all), the result
// is its token.  logits must not be empty.
std::size_t sample(std::span<const float> logits, const Sampling& sampling, double draw);

}  // namespace tensor_ops
