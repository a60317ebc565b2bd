// Choosing a token by the probabilities that a model gives.
#pragma once

#include <cstddef>
#include <span>

namespace tensor_ops {

// In the order in which they cut the candidates down; what is left is drawn from, each by its
// probability to the power of 1 / temperature.
struct Sampling {
    double temperature;  // 0: the likeliest
    std::size_t top_k;   // only so many of the likeliest; 0: all
    double top_p;        // above 0: only the likeliest that together reach this
    double min_p;        // 0 to 1: only those at least this fraction as likely as the likeliest
};

// The token that `draw`, uniform in [0, 1), falls on; of equals the lower id is the likelier.
// Where the largest logit is NaN (which counts as larger than all) or infinite: its token.
// logits: not empty.
std::size_t sample(std::span<const float> logits, const Sampling& sampling, double draw);

}  // namespace tensor_ops
