// Checks of ops: several residual streams of a token.
#include "graph/op_checks_by_kind.h"
#include "ops/streams.h"

namespace tensor_ops {

void OpCheck::mix_streams() const {
    const std::size_t from = op_.n_streams, all = input_width(0), factors = input_width(1);
    apart(0);
    apart(1);
    require(from >= 1 && all % from == 0 && factors % from == 0,
            "the inputs do not divide into n_streams");
    width_of(op_.output, factors / from * (all / from));
}

void OpCheck::hyper_factors() const {
    const std::size_t n = op_.n_streams;
    require(n >= 1 && n <= most_hyper_streams, "n_streams is out of range");
    require(op_.n_iterations >= 1 && op_.n_iterations <= 1u << 16, "n_iterations is out of range");
    require(output_width() == n || output_width() == n * (2 + n),
            "the output does not fit n_streams");
    width(0, output_width());
    apart(0);
}

void OpCheck::hyper_mix() const {
    const std::size_t n = op_.n_streams;
    require(n >= 1 && n <= most_hyper_streams, "n_streams is out of range");
    require(output_width() % n == 0, "the output does not divide into n_streams");
    width(0, output_width());
    width(1, output_width() / n);
    width(2, n * (2 + n));
    apart(1);
    apart(2);
}

void OpCheck::add_to_streams() const {
    width(0, output_width());
    require(input_width(1) >= 1 && output_width() % input_width(1) == 0,
            "the output's width is no multiple of what is added");
    apart(1);
}

void OpCheck::match_rms() const { add_to_streams(); }

void OpCheck::stream_products() const {
    const std::size_t n = op_.n_streams;
    require(n >= 1 && input_width(0) % n == 0, "the inputs do not divide into n_streams");
    width(1, input_width(0));
    apart(0);
    apart(1);
    width_of(op_.output, n);
}

}  // namespace tensor_ops
