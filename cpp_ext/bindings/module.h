// The parts of the extension module; each adds its functions to it.
#pragma once

#include <pybind11/pybind11.h>

namespace tensor_ops::bindings {

void bind_elementwise(pybind11::module_& m);
void bind_matrix(pybind11::module_& m);
void bind_formats(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_executor(pybind11::module_& m);
void bind_runtime(pybind11::module_& m);
void bind_sequence_state(pybind11::module_& m);
void bind_sampling(pybind11::module_& m);
void bind_stream(pybind11::module_& m);

}  // namespace tensor_ops::bindings
