#include <cmath>
#include <limits>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace tensor_ops::bindings {
namespace {

py::array attention(py::handle q_object, py::handle k_object, py::handle v_object,
                    py::handle scale_object, py::handle causal_object, py::handle out_object) {
    const Array q = float_array("attention", "q", q_object);
    const Array k({"attention", "k", k_object}, {Dtype::float32, Dtype::float16});
    const Array v({"attention", "v", v_object}, {k.dtype()});
    q.require_axes(3, "[n_q, n_heads, head_dim]");
    k.require_axes(3, "[n_kv_heads, n_kv, head_dim]");
    v.require_shape(k.shape(), "the shape of k");
    const std::size_t n_q = q.axis(0), n_heads = q.axis(1), head_dim = q.axis(2);
    const std::size_t n_kv_heads = k.axis(0), n_kv = k.axis(1);
    if (k.axis(2) != head_dim)
        value_error("attention: k has shape " + to_text(k.shape()) +
                    "; expected [n_kv_heads, n_kv, " + std::to_string(head_dim) + "], as q has " +
                    "head_dim " + std::to_string(head_dim) + " (shape " + to_text(q.shape()) +
                    ").");
    if (n_kv_heads ? n_heads % n_kv_heads : n_heads)
        value_error("attention: k has " + std::to_string(n_kv_heads) + " heads (shape " +
                    to_text(k.shape()) + "); expected a number that divides q's " +
                    std::to_string(n_heads) + ".");
    if (head_dim > 256)
        value_error("attention: q has head_dim " + std::to_string(head_dim) +
                    "; the C++ kernel takes up to 256. Use airllm.numpy_ops.attention.");
    const double scale =
        scale_object.is_none()
            ? 1.0 / std::sqrt(static_cast<double>(std::max<std::size_t>(head_dim, 1)))
            : number({"attention", "scale", scale_object}, -std::numeric_limits<double>::infinity(),
                     false);
    const bool causal = flag({"attention", "causal", causal_object});
    Output out("attention", out_object, q.shape(), {{q, false}, {k, false}, {v, false}});
    // Constness ends at the cache's type, which is also what kv_append writes to.
    const KvCache cache{const_cast<void*>(k.data()),
                        const_cast<void*>(v.data()),
                        k.dtype() == Dtype::float32 ? DType::f32 : DType::f16,
                        n_kv_heads,
                        n_kv,
                        head_dim};
    const float* queries = q.floats();
    float* y = out.data();
    const KernelTable& table = kernels();
    {
        const py::gil_scoped_release release;
        run_team([&](const Worker& worker) {
            tensor_ops::attention(worker, table, queries, n_q, n_heads, n_kv, cache,
                                  static_cast<float>(scale), causal, y);
        });
    }
    return out.release();
}

}  // namespace

void bind_attention(py::module_& m) {
    using py::arg;
    m.def("attention", attention, arg("q"), arg("k"), arg("v"), py::kw_only(),
          arg("scale") = py::none(), arg("causal") = true, arg("out") = py::none(),
          "softmax(q @ k.T * scale) @ v for each head; heads share keys and values in groups.\n\n"
          "q: float32 [n_q, n_heads, head_dim], head_dim up to 256.\n"
          "k, v: float32 or float16, both the same, [n_kv_heads, n_kv, head_dim]; n_heads is a "
          "multiple of n_kv_heads, and query head h reads key head h // (n_heads / n_kv_heads).\n"
          "scale: head_dim ** -0.5 if None.\n"
          "causal: the queries are the last n_q of the n_kv positions, so query i sees the keys up "
          "to i + n_kv - n_q. A query that sees no key gives zeros.\n"
          "out: float32 [n_q, n_heads, head_dim], none of the inputs. Returns out.\n"
          "Values must be finite: a masked one counts with weight 0, and 0 * inf is NaN.");
}

}  // namespace tensor_ops::bindings
