// Graphs as Python describes them, and the table of ops.
#pragma once

#include <pybind11/pybind11.h>

#include <string>
#include <vector>

#include "graph/graph.h"

namespace tensor_ops::bindings {

namespace py = pybind11;

// The arguments of Executor.  ValueError or TypeError if they are no graph; Graph::check says
// whether its parts fit together.
Graph graph_argument(const py::sequence& buffers, const std::vector<std::string>& weights,
                     const py::sequence& ops);

// Of each op by name what op_kinds.h says: "inputs", a number; "output", whether it has one;
// "weights", their roles; "optional", whether it may go without weights; "many", whether it has an
// output for each weight, of which there may be several.
py::dict graph_ops();

}  // namespace tensor_ops::bindings
