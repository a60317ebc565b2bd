// Whether an op of a graph fits its buffers, and its weights.
#pragma once

#include <string>

#include "graph/graph.h"

namespace tensor_ops {

// Throws std::invalid_argument, which names the op and its output.
[[noreturn]] void op_fault(const Graph& graph, const Op& op, const std::string& fault);

// Throws std::invalid_argument if the op could read or write outside of its buffers, or over what
// it still reads.
void check_op(const Graph& graph, const Op& op);

}  // namespace tensor_ops
