// Elementwise operations, and those over rows.
#include <cmath>
#include <vector>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/parallel.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace tensor_ops::bindings {
namespace {

using Unary = void (*)(const float*, float*, std::size_t);
using Binary = void (*)(const float*, const float*, float*, std::size_t);

py::array unary(const char* op, py::handle x_object, py::handle out_object, Unary kernel) {
    const Array x = float_array(op, "x", x_object);
    Output out(op, out_object, x.shape(), {{x, true}});
    const float* input = x.floats();
    float* output = out.data();
    run_parallel(x.size(), [&](const Worker& worker) {
        for_elements(worker, x.size(),
                     [&](std::size_t i, std::size_t n) { kernel(input + i, output + i, n); });
    });
    return out.release();
}

py::array silu(py::handle x, py::handle out) { return unary("silu", x, out, kernels().silu); }

py::array gelu(py::handle x, py::handle approximate, py::handle out) {
    const std::size_t form = choice({"gelu", "approximate", approximate}, {"tanh", "none"});
    return unary("gelu", x, out, form == 0 ? kernels().gelu_tanh : kernels().gelu_erf);
}

py::array swiglu(py::handle gate_object, py::handle up_object, py::handle out_object) {
    const Array gate = float_array("swiglu", "gate", gate_object);
    const Array up = float_array("swiglu", "up", up_object);
    up.require_shape(gate.shape(), "the shape of gate");
    Output out("swiglu", out_object, gate.shape(), {{gate, true}, {up, true}});
    const float *g = gate.floats(), *u = up.floats();
    float* output = out.data();
    const Binary kernel = kernels().swiglu;
    run_parallel(gate.size(), [&](const Worker& worker) {
        for_elements(worker, gate.size(),
                     [&](std::size_t i, std::size_t n) { kernel(g + i, u + i, output + i, n); });
    });
    return out.release();
}

py::array rms_norm(py::handle x_object, py::handle weight_object, py::handle eps_object,
                   py::handle out_object) {
    const Array x = float_array("rms_norm", "x", x_object);
    const Array weight = float_array("rms_norm", "weight", weight_object);
    weight.require_shape(x.shape().last(1), "one weight for each feature of x");
    const auto eps = static_cast<float>(number({"rms_norm", "eps", eps_object}, 0.0, true));
    Output out("rms_norm", out_object, x.shape(), {{x, true}, {weight, false}});
    const float *input = x.floats(), *w = weight.floats();
    float* output = out.data();
    const std::size_t rows = x.rows(), n = x.axis(-1);
    const KernelTable& table = kernels();
    run_parallel(x.size(), [&](const Worker& worker) {
        tensor_ops::rms_norm(worker, table, input, w, eps, output, rows, n);
    });
    return out.release();
}

py::array softmax(py::handle x_object, py::handle out_object) {
    const Array x = float_array("softmax", "x", x_object);
    Output out("softmax", out_object, x.shape(), {{x, true}});
    const float* input = x.floats();
    float* output = out.data();
    const std::size_t rows = x.rows(), n = x.axis(-1);
    const KernelTable& table = kernels();
    run_parallel(x.size(), [&](const Worker& worker) {
        tensor_ops::softmax(worker, table, input, output, rows, n);
    });
    return out.release();
}

// The angles' cosines and sines, [n_tokens][cos of each pair, sin of each pair]; in float64, so
// that a long context does not lose the fast pairs.
std::vector<float> angle_table(const Array& positions, const std::vector<double>& frequencies) {
    const std::size_t pairs = frequencies.size();
    const auto* position = static_cast<const std::int32_t*>(positions.data());
    std::vector<float> table(positions.size() * 2 * pairs);
    for (std::size_t t = 0; t < positions.size(); ++t) {
        for (std::size_t i = 0; i < pairs; ++i) {
            const double angle = position[t] * frequencies[i];
            table[t * 2 * pairs + i] = static_cast<float>(std::cos(angle));
            table[t * 2 * pairs + pairs + i] = static_cast<float>(std::sin(angle));
        }
    }
    return table;
}

py::array rope(py::handle x_object, py::handle positions_object, py::handle theta_object,
               py::handle inv_freq_object, py::handle interleaved_object, py::handle out_object) {
    const Array x = float_array("rope", "x", x_object);
    x.require_axes(3, "[n_tokens, n_heads, head_dim]");
    const std::size_t rows = x.axis(0), n_heads = x.axis(1), head_dim = x.axis(2);
    const Array positions({"rope", "positions", positions_object}, {Dtype::int32});
    positions.require_shape(x.shape().first(1), "one position for each token of x");
    const bool interleaved = flag({"rope", "interleaved", interleaved_object});
    std::vector<double> frequencies;
    const void* inv_freq_data = nullptr;
    if (inv_freq_object.is_none()) {
        const double theta = number({"rope", "theta", theta_object}, 0.0, false);
        if (head_dim % 2)
            value_error("rope: x has head_dim " + std::to_string(head_dim) +
                        "; expected an even number, as features turn in pairs. Pass inv_freq to "
                        "turn only the first of them.");
        for (std::size_t i = 0; x.size() && i < head_dim / 2; ++i)
            frequencies.push_back(
                std::pow(theta, -2.0 * static_cast<double>(i) / static_cast<double>(head_dim)));
    } else {
        const Array inv_freq = float_array("rope", "inv_freq", inv_freq_object);
        inv_freq.require_axes(1, "[n_dims / 2]");
        if (2 * inv_freq.size() > head_dim)
            value_error("rope: inv_freq has shape " + to_text(inv_freq.shape()) +
                        "; expected at most (" + std::to_string(head_dim / 2) +
                        ",), one for each pair of x's " + std::to_string(head_dim) + " features.");
        frequencies.assign(inv_freq.floats(), inv_freq.floats() + inv_freq.size());
        inv_freq_data = inv_freq.data();
    }
    Output out(
        "rope", out_object, x.shape(),
        {{x, true},
         {positions, false},
         {"inv_freq", inv_freq_data, inv_freq_data ? frequencies.size() * sizeof(float) : 0}});
    if (x.size() == 0) return out.release();  // without heads, head_dim may be anything
    const float* input = x.floats();
    float* output = out.data();
    const KernelTable& table = kernels();
    const std::vector<float> angles = angle_table(positions, frequencies);
    run_parallel(x.size(), [&](const Worker& worker) {
        tensor_ops::rope(worker, table, input, angles.data(), output, rows, n_heads, head_dim,
                         2 * frequencies.size(), interleaved);
    });
    return out.release();
}

}  // namespace

void bind_elementwise(py::module_& m) {
    using py::arg;
    m.def("silu", silu, arg("x"), py::kw_only(), arg("out") = py::none(),
          "x * sigmoid(x).\n\nx: float32 [...]; out: float32 [...], may be x. Returns out.");
    m.def("gelu", gelu, arg("x"), arg("approximate") = "tanh", py::kw_only(),
          arg("out") = py::none(),
          "x * Phi(x), Phi the normal distribution's cumulative function (arXiv:1606.08415).\n\n"
          "x: float32 [...]; out: float32 [...], may be x. Returns out.\n"
          "approximate: \"tanh\", the paper's approximation, or \"none\", by erf.");
    m.def("swiglu", swiglu, arg("gate"), arg("up"), py::kw_only(), arg("out") = py::none(),
          "silu(gate) * up (arXiv:2002.05202).\n\n"
          "gate, up: float32 [...] of one shape; out: float32 [...], may be gate or up. Returns "
          "out.");
    m.def("rms_norm", rms_norm, arg("x"), arg("weight"), arg("eps") = 1e-6, py::kw_only(),
          arg("out") = py::none(),
          "x * weight / sqrt(mean(x^2) + eps), the mean over the last axis (arXiv:1910.07467).\n\n"
          "x: float32 [..., n]; weight: float32 [n]; eps: a number, at least 0.\n"
          "out: float32 [..., n], may be x. Returns out.");
    m.def("softmax", softmax, arg("x"), py::kw_only(), arg("out") = py::none(),
          "exp(x) / sum(exp(x)) over the last axis, computed from x - max(x).\n\n"
          "A row of -inf alone gives zeros: it has nothing to attend to. A row with NaN or +inf "
          "gives NaN.\nx: float32 [..., n]; out: float32 [..., n], may be x. Returns out.");
    m.def(
        "rope", rope, arg("x"), arg("positions"), py::kw_only(), arg("theta") = 10000.0,
        arg("inv_freq") = py::none(), arg("interleaved") = false, arg("out") = py::none(),
        "Turn each pair of features by the angle position * inv_freq[pair] (arXiv:2104.09864).\n\n"
        "x: float32 [n_tokens, n_heads, head_dim]; positions: int32 [n_tokens].\n"
        "inv_freq: float32 [n_dims / 2], radians per position, n_dims <= head_dim; features from "
        "n_dims on are copied. Without it n_dims is head_dim, which must be even, and "
        "inv_freq[i] = theta ** (-2i / head_dim).\n"
        "interleaved: the pairs are (0, 1), (2, 3), ...; otherwise feature i goes with "
        "i + n_dims / 2.\n"
        "out: float32 [n_tokens, n_heads, head_dim], may be x. Returns out.\n"
        "Angles are computed in float64.");
}

}  // namespace tensor_ops::bindings
