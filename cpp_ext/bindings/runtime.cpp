// The ISA and threads in use, and how the extension was built.
#include "bindings/arrays.h"
#include "bindings/module.h"
#include "dispatch.h"
#include "threads/allocations.h"
#include "threads/cpu_budget.h"
#include "threads/team.h"

namespace tensor_ops::bindings {
namespace {

bool has_simd() { return std::string_view(kernels().isa) != "scalar"; }

py::dict budget() {
    const CpuBudget b = cpu_budget();
    py::dict result;
    result["affinity"] = b.affinity;
    result["cores"] = b.cores;
    result["cgroup_quota"] = b.cgroup_quota;
    result["env"] = b.env;
    result["chosen"] = b.chosen;
    result["reason"] = b.reason;
    return result;
}

py::dict optimization_info() {
    py::dict info;
    info["isa"] = kernels().isa;
    info["available_isas"] = available_isas();
    info["threads"] = num_threads();
    info["compiler"] = TENSOR_OPS_COMPILER;
    info["flags"] = TENSOR_OPS_FLAGS;
    info["version"] = TENSOR_OPS_VERSION;
    info["xsimd"] = TENSOR_OPS_XSIMD;
    return info;
}

py::object attribute(const std::string& name) {
    if (name == "simd_level") return py::str(kernels().isa);
    if (name == "has_simd") return py::bool_(has_simd());
    throw py::attribute_error("module 'tensor_ops_cpp' has no attribute '" + name + "'");
}

void set_threads(py::handle n) {
    if (!PyLong_Check(n.ptr()) && !PyIndex_Check(n.ptr()))
        throw py::type_error("set_num_threads: n is " + describe_kind(n) +
                             "; expected an integer.");
    if (PyBool_Check(n.ptr()))
        throw py::type_error("set_num_threads: n is a bool; expected an integer.");
    const py::ssize_t value = PyNumber_AsSsize_t(n.ptr(), nullptr);
    if (value == -1 && PyErr_Occurred()) throw py::error_already_set();
    if (value < 1 || value > 1024)
        value_error("set_num_threads: n is " + py::str(n).cast<std::string>() +
                    "; expected at least 1, at most 1024.");
    set_num_threads(static_cast<int>(value));
}

}  // namespace

void bind_runtime(py::module_& m) {
    m.attr("__version__") = TENSOR_OPS_VERSION;
    // Not constants: set_isa changes them.
    m.def("__getattr__", attribute);
    m.def("available_isas", available_isas, "The ISAs that can run here, slowest first.");
    m.def(
        "set_isa", [](const std::string& name) { select_isa(name); }, py::arg("name"),
        "Switch to the kernels of an ISA, \"\" for the best one; `simd_level` confirms it.\n\n"
        "For tests and comparisons; TENSOR_OPS_ISA does the same at import. Matrices packed before "
        "keep the kernels they were packed for. ValueError for an ISA that cannot run here.");
    m.def("get_num_threads", num_threads, "The threads that operations use.");
    m.def("set_num_threads", set_threads, py::arg("n"),
          "Use n threads from the next operation on; 1 to 1024.");
    m.def(
        "cpu_budget", budget,
        "How many threads this process should use, and why.\n\n"
        "affinity: logical CPUs that it may run on; cores: physical cores among them; "
        "cgroup_quota: CPUs' worth of time that its control group grants, None if unlimited; env: "
        "TENSOR_OPS_NUM_THREADS, None if unset; chosen: the number of threads; reason: why that "
        "many.");
    m.def(
        "allocations", [] { return allocations.load(); },
        "How often the extension has taken memory for matrices and for work; a decode loop takes "
        "none.");
    m.def("get_optimization_info", optimization_info,
          "isa, available_isas, threads, compiler, flags, version, xsimd (its headers' version).");
}

}  // namespace tensor_ops::bindings
