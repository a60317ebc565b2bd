// Checks of ops: norms, products with matrices, and what works on each element.
#include <algorithm>

#include "graph/op_checks_by_kind.h"
#include "ops/residuals.h"

namespace tensor_ops {

// The inputs are as wide as the output, which may be any of them.
void OpCheck::alike() const {
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) width(i, output_width());
}

void OpCheck::tokens() const { width(0, 1); }

void OpCheck::head_norm() const {
    require(op_.n_heads >= 1 && output_width() % op_.n_heads == 0,
            "the output does not divide into n_heads");
    alike();
}

void OpCheck::group_norm() const {
    require(op_.n_groups >= 1 && output_width() % op_.n_groups == 0,
            "the output does not divide into n_groups");
    alike();
}

void OpCheck::linear() const { apart(0); }

void OpCheck::linear_many() const {
    const std::vector<int> outputs = op_.outputs();
    for (const int output : outputs) {
        require(op_.inputs[0] != output, "cannot overwrite its input");
        require(std::count(outputs.begin(), outputs.end(), output) == 1, "writes a buffer twice");
    }
}

void OpCheck::linear_add() const {
    apart(0);
    width(1, output_width());
}

void OpCheck::residual_attention() const {
    const std::size_t n = output_width();
    width(0, n);
    require(n >= 1 && input_width(1) % n == 0, "the width of earlier rows is no multiple of x's");
    const std::size_t most = std::min(input_width(1) / n, residual_attention_max_earlier);
    require(op_.n_earlier >= 1 && op_.n_earlier <= most,
            "n_earlier is " + std::to_string(op_.n_earlier) + ", expected 1 to " +
                std::to_string(most));
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
}

void OpCheck::softcap() const {
    require(op_.cap > 0.0f, "cap is not above 0");
    alike();
}

void OpCheck::swiglu_oai() const {
    require(op_.limit > 0.0f, "limit is not above 0");
    alike();
}

void OpCheck::xielu() const {
    require(op_.eps <= 0.0f, "eps is above 0");
    alike();
}

void OpCheck::scale_rows() const {
    const std::size_t factors = input_width(1);
    width(0, output_width());
    require(
        factors >= 1 && output_width() % factors == 0,
        "input 1 has width " + std::to_string(factors) + ", expected a divisor of the output's");
    apart(1);
}

void OpCheck::clamp() const {
    require(op_.low <= op_.high, "low is not below high");
    alike();
}

void OpCheck::signed_root() const {
    require(op_.least >= 0.0f, "least is below 0");
    alike();
}

}  // namespace tensor_ops
