#include "bindings/module.h"

#include <cstdlib>
#include <stdexcept>

#include "dispatch.h"

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
    tensor_ops::bindings::bind_sampling(m);
    tensor_ops::bindings::bind_stream(m);
}
