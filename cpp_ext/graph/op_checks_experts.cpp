// Checks of ops: routes to experts, and what they compute.
#include <algorithm>

#include "graph/op_checks_by_kind.h"

namespace tensor_ops {

namespace {

// The most experts of a token; the largest known models use 8 to 10.
constexpr std::size_t largest_route = 1u << 12;

}  // namespace

void OpCheck::used_experts(std::size_t most) const {
    require(op_.n_used >= 1 && op_.n_used <= std::min(most, largest_route),
            "n_used is " + std::to_string(op_.n_used) + ", expected 1 to " +
                std::to_string(std::min(most, largest_route)));
}

void OpCheck::experts(std::size_t most) const {
    used_experts(most);
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
}

void OpCheck::route() const {
    const std::size_t n = input_width(0), groups = op_.n_groups, used = op_.n_groups_used;
    require(groups >= 1 && n % groups == 0,
            std::to_string(n) + " experts are no " + std::to_string(groups) + " equal groups");
    require(used >= 1 && used <= groups, "n_groups_used is " + std::to_string(used) +
                                             ", expected 1 to " + std::to_string(groups));
    require(used == groups || op_.group_score == GroupScore::max || n / groups >= 2,
            "a group is one expert, expected two or more");
    require(op_.gating != Gating::sparsemixer || (op_.weight < 0 && used == groups),
            "sparsemixer takes no bias and no groups");
    experts(used * (n / groups));
    width_of(op_.output, 2 * op_.n_used);
}

void OpCheck::route_to() const {
    require(op_.gating != Gating::sparsemixer, "sparsemixer chooses by itself");
    experts(input_width(0));
    width(1, op_.n_used);
    width_of(op_.output, 2 * op_.n_used);
}

void OpCheck::expert_linear() const {
    experts(largest_route);
    require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
    width(1, 2 * op_.n_used);
}

void OpCheck::expert_sum() const {
    experts(largest_route);
    width(0, op_.n_used * output_width());
    width(1, 2 * op_.n_used);
}

void OpCheck::of_experts() const {
    used_experts(largest_route);
    require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
    width(0, output_width());
    width(1, 2 * op_.n_used);
    apart(1);
}

void OpCheck::scale_shares() const {
    used_experts(largest_route);
    width(0, 2 * op_.n_used);
    alike();
}

}  // namespace tensor_ops
