#include "graph/op_checks.h"

#include <algorithm>
#include <initializer_list>
#include <stdexcept>

#include "graph/op_checks_by_kind.h"

namespace tensor_ops {

void op_fault(const Graph& graph, const Op& op, const std::string& fault) {
    const std::string output =
        op.output >= 0 && static_cast<std::size_t>(op.output) < graph.buffers.size()
            ? " -> '" + graph.buffers[static_cast<std::size_t>(op.output)].name + "'"
            : "";
    throw std::invalid_argument(std::string(op_kind_name(op.kind)) + output + ": " + fault);
}

void OpCheck::run() const {
    const Signature& s = signature(op_.kind);
    require(op_.inputs.size() == s.inputs, "has " + std::to_string(op_.inputs.size()) +
                                               " inputs, expected " + std::to_string(s.inputs));
    for (const int input : op_.inputs)
        require(at(input) < graph_.buffers.size(), "an input is no buffer");
    const bool output = s.outputs != Outputs::none;
    require(output == (op_.output >= 0), output ? "has no output" : "has an output");
    for (const int out : op_.outputs())
        require(at(out) < graph_.buffers.size(), "the output is no buffer");
    const auto [least, most, role] = s.weights;
    require(most > 0 || op_.weight < 0, "has a weight");
    require(least == 0 || op_.weight >= 0, "has no weight");
    const std::vector<int> weights = op_.weights();
    for (const int weight : weights)
        require(at(weight) < graph_.weights.size(), "the weight is no slot");
    const bool many = s.outputs == Outputs::many;
    require(many || op_.more_outputs.empty(), "has several outputs");
    if (many) count_weights(weights.size(), op_.outputs().size(), op_.outputs().size());
    count_weights(weights.size(), least, most);
    foreign_fields();
    (this->*checks[static_cast<std::size_t>(op_.kind)])();
}

void OpCheck::foreign_fields() const {
    using enum OpKind;
    const auto only = [&](bool has, const char* field, std::initializer_list<OpKind> kinds) {
        require(!has || std::find(kinds.begin(), kinds.end(), op_.kind) != kinds.end(),
                std::string("has no ") + field);
    };
    only(op_.every != 1, "every",
         {index_append, index_select, pool_groups, group_append, group_attention,
          sparse_group_attention});
    only(op_.block_size != 1, "block_size", {block_mean, choose_blocks, block_attention});
    only(op_.pooled, "pooled", {choose_blocks});
    only(op_.n_choices != 1, "n_choices", {block_attention});
    only(op_.window != 0, "window", {attention, group_attention, sparse_group_attention});
    only(op_.chunked, "chunked", {attention});
}

void check_op(const Graph& graph, const Op& op) { OpCheck(graph, op).run(); }

}  // namespace tensor_ops
