#include "bindings/module.h"

#include <cstdlib>
#include <stdexcept>

#include "dispatch.h"

// pybind11's entry point, under another name: ours, below, looks at the interpreter first.
#define PyInit_tensor_ops_cpp tensor_ops_cpp_init
PYBIND11_MODULE(tensor_ops_cpp, m) {
    m.doc() =
        "SIMD kernels for transformers. The kernels of the best ISA for this CPU are picked at "
        "import; the environment variable TENSOR_OPS_ISA names another.";
    const char* wanted = std::getenv("TENSOR_OPS_ISA");
    try {
        tensor_ops::select_isa(wanted ? wanted : "");
    } catch (const std::invalid_argument& error) {
        throw pybind11::import_error(std::string("tensor_ops_cpp: ") + error.what());
    }
    tensor_ops::bindings::bind_elementwise(m);
    tensor_ops::bindings::bind_matrix(m);
    tensor_ops::bindings::bind_formats(m);
    tensor_ops::bindings::bind_attention(m);
    tensor_ops::bindings::bind_executor(m);
    tensor_ops::bindings::bind_runtime(m);
    tensor_ops::bindings::bind_sequence_state(m);
    tensor_ops::bindings::bind_sampling(m);
    tensor_ops::bindings::bind_stream(m);
}
#undef PyInit_tensor_ops_cpp

// In a sub-interpreter pybind11 would wait for ever, for a lock that the importing thread holds.
extern "C" PYBIND11_EXPORT PyObject* PyInit_tensor_ops_cpp() {
    if (PyInterpreterState_Get() == PyInterpreterState_Main()) return tensor_ops_cpp_init();
    PyErr_SetString(PyExc_ImportError,
                    "tensor_ops_cpp runs in Python's main interpreter only, and this is a "
                    "sub-interpreter; under mod_wsgi, WSGIApplicationGroup %{GLOBAL} chooses the "
                    "main one");
    return nullptr;
}
