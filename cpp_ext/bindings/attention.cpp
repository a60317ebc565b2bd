#include "ops/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "bindings/arrays.h"
#include "bindings/module.h"
#include "bindings/parallel.h"
#include "dispatch.h"
#include "ops/ops.h"

namespace tensor_ops::bindings {
namespace {

// float32 or float16 [n_kv_heads, positions, head_dim], or rows of q8_0 as uint8 [n_kv_heads,
// positions, head_dim / 32 * 34].  Throws py::type_error unless k and v are arrays of one type.
struct KvArrays {
    KvArrays(const Argument& k_argument, const Argument& v_argument);
    // Throws py::value_error unless k has the 3 axes that `axes` names, and v has k's shape.
    void require_axes(const char* axes) const;
    KvCache cache() const;

    Array k, v;
};

KvArrays::KvArrays(const Argument& k_argument, const Argument& v_argument)
    : k(k_argument, {Dtype::float32, Dtype::float16, Dtype::uint8}),
      v(v_argument, {Dtype::float32, Dtype::float16, Dtype::uint8}) {
    if (v.dtype() == k.dtype()) return;
    const auto name = [](const Array& array) { return text(array.handle().dtype().attr("name")); };
    std::string advice = std::string(v.name()) + ".astype(np." + name(k) + ")";
    if (k.dtype() == Dtype::uint8) advice = std::string("quantize(") + v.name() + ", \"q8_0\")";
    if (v.dtype() == Dtype::uint8) advice = std::string("dequantize(") + v.name() + ", \"q8_0\")";
    throw py::type_error(std::string(v_argument.op) + ": " + v.name() + " is " + name(v) +
                         "; expected " + name(k) + ", as " + k.name() + " is. Convert with " +
                         advice + ".");
}

void KvArrays::require_axes(const char* axes) const {
    k.require_axes(3, axes);
    v.require_shape(k.shape(), (std::string("the shape of ") + k.name()).c_str());
}

KvCache KvArrays::cache() const {
    const DType type = k.dtype() == Dtype::float32   ? DType::f32
                       : k.dtype() == Dtype::float16 ? DType::f16
                                                     : DType::q8_0;
    const auto [elements, bytes] = block_size(DType::q8_0);
    // KvCache has pointers to non-const, as kv_append writes to it; attention only reads.
    return {const_cast<void*>(k.data()),
            const_cast<void*>(v.data()),
            type,
            k.axis(0),
            k.axis(1),
            type == DType::q8_0 ? k.axis(2) / bytes * elements : k.axis(2)};
}

[[noreturn]] void fault(const std::string& message) { value_error("attention: " + message); }

void check_heads(const Array& q, const Array& k) {
    const std::size_t n_heads = q.axis(1), head_dim = q.axis(2), n_kv_heads = k.axis(0);
    std::size_t columns = head_dim;
    std::string rows;
    if (k.dtype() == Dtype::uint8) {
        if (head_dim % quant_block)
            fault("q has head_dim " + std::to_string(head_dim) +
                  "; expected a multiple of 32, the block of Q8_0, as k is uint8. Pass k and v as "
                  "float32 or float16.");
        columns = row_bytes(DType::q8_0, head_dim);
        rows = ", rows of Q8_0";
    }
    if (k.axis(2) != columns)
        fault("k has shape " + to_text(k.shape()) + "; expected [n_kv_heads, n_kv, " +
              std::to_string(columns) + "]" + rows + ", as q has head_dim " +
              std::to_string(head_dim) + " (shape " + to_text(q.shape()) + ").");
    if (n_kv_heads ? n_heads % n_kv_heads : n_heads)
        fault("k has " + std::to_string(n_kv_heads) + " heads (shape " + to_text(k.shape()) +
              "); expected a number that divides q's " + std::to_string(n_heads) + ".");
    if (head_dim > attention_max_head_dim)
        fault("q has head_dim " + std::to_string(head_dim) + "; the C++ kernel takes up to " +
              std::to_string(attention_max_head_dim) + ". Use airllm.numpy_ops.attention.");
}

float softcap_from(py::handle value) {
    using Limits = std::numeric_limits<float>;
    const double softcap = number({"attention", "softcap", value}, 0.0, false);
    if (softcap < static_cast<double>(Limits::min()) ||
        softcap > static_cast<double>(Limits::max()))
        fault("softcap is " + text(py::float_(softcap)) +
              "; expected 1.2e-38 to 3.4e+38, float32's range. Pass None for scores without a "
              "cap.");
    return static_cast<float>(softcap);
}

Array sinks_from(py::handle value, std::size_t n_heads) {
    Array sinks = float_array("attention", "sinks", value);
    const py::ssize_t expected[] = {static_cast<py::ssize_t>(n_heads)};
    sinks.require_shape(expected, "one sink for each head of q");
    for (std::size_t head = 0; head < n_heads; ++head) {
        const float sink = sinks.floats()[head];
        if (!(sink < std::numeric_limits<float>::infinity()))
            fault("sinks[" + std::to_string(head) + "] is " +
                  text(py::float_(static_cast<double>(sink))) +
                  "; expected a finite number, or -inf for a head without a sink.");
    }
    return sinks;
}

Array cu_seqlens_from(const char* name, py::handle value, const char* other) {
    if (value.is_none())
        throw py::type_error(std::string("attention: ") + name +
                             " is None; expected a numpy array of int32, as " + other +
                             " is given. Pass both or neither.");
    Array array({"attention", name, value}, {Dtype::int32});
    array.require_axes(1, "[n_sequences + 1]");
    return array;
}

// Checks where sequences begin in n rows, and where the last one ends.  Returns a copy, as the
// caller's array may change while the GIL is released.
std::vector<std::int32_t> starts_from(const Array& array, std::size_t n, const char* what) {
    const auto* data = static_cast<const std::int32_t*>(array.data());
    std::vector<std::int32_t> starts(data, data + array.size());
    const std::string name = array.name();
    const auto wrong = [&](const std::string& how, const std::string& expected) {
        fault(name + " " + how + "; expected " + expected + ". Make " + name +
              " with np.cumsum([0, *lengths], dtype=np.int32).");
    };
    if (starts.empty()) wrong("is empty", "0 and each sequence's end");
    if (starts.front() != 0) wrong("starts with " + std::to_string(starts.front()), "0");
    for (std::size_t i = 1; i < starts.size(); ++i)
        if (starts[i] < starts[i - 1])
            wrong(
                "falls from " + std::to_string(starts[i - 1]) + " to " + std::to_string(starts[i]),
                "numbers that never fall");
    if (static_cast<std::size_t>(starts.back()) != n)
        wrong("ends with " + std::to_string(starts.back()), std::to_string(n) + ", " + what);
    return starts;
}

py::object attention(py::handle q_object, py::handle k_object, py::handle v_object,
                     py::handle scale_object, py::handle causal_object, py::handle window_object,
                     py::handle chunked_object, py::handle softcap_object, py::handle sinks_object,
                     py::handle q_starts_object, py::handle kv_starts_object,
                     py::handle return_lse_object, py::handle out_object) {
    const Array q = float_array("attention", "q", q_object);
    const KvArrays kv({"attention", "k", k_object}, {"attention", "v", v_object});
    q.require_axes(3, "[n_q, n_heads, head_dim]");
    kv.require_axes("[n_kv_heads, n_kv, head_dim]");
    check_heads(q, kv.k);
    const std::size_t n_q = q.axis(0), n_heads = q.axis(1), head_dim = q.axis(2);
    const std::size_t n_kv = kv.k.axis(1);
    AttentionCall call{.q = q.floats(),
                       .n_q = n_q,
                       .n_heads = n_heads,
                       .cache = kv.cache(),
                       .n_kv = n_kv,
                       .scale = 0.0f,
                       .out = nullptr};
    call.scale = static_cast<float>(
        scale_object.is_none()
            ? 1.0 / std::sqrt(static_cast<double>(std::max<std::size_t>(head_dim, 1)))
            : number({"attention", "scale", scale_object}, -std::numeric_limits<double>::infinity(),
                     false));
    call.causal = flag({"attention", "causal", causal_object});
    if (!window_object.is_none())
        call.window = count({"attention", "window", window_object}, 1, ", or None for no window");
    call.chunked = flag({"attention", "chunked", chunked_object});
    if (call.chunked && call.window == 0)
        fault("chunked is True, and window is None; expected a window, the positions of a chunk.");
    if (!softcap_object.is_none()) call.softcap = softcap_from(softcap_object);
    std::vector<Input> inputs{{q, false}, {kv.k, false}, {kv.v, false}};
    std::optional<Array> sinks, cu_seqlens_q, cu_seqlens_k;
    if (!sinks_object.is_none()) {
        sinks = sinks_from(sinks_object, n_heads);
        call.sinks = sinks->floats();
        inputs.emplace_back(*sinks, false);
    }
    std::vector<std::int32_t> q_starts, kv_starts;
    if (!q_starts_object.is_none() || !kv_starts_object.is_none()) {
        cu_seqlens_q = cu_seqlens_from("cu_seqlens_q", q_starts_object, "cu_seqlens_k");
        cu_seqlens_k = cu_seqlens_from("cu_seqlens_k", kv_starts_object, "cu_seqlens_q");
        cu_seqlens_k->require_shape(cu_seqlens_q->shape(), "that of cu_seqlens_q");
        call.q_starts = q_starts = starts_from(*cu_seqlens_q, n_q, "the n_q of q");
        call.kv_starts = kv_starts = starts_from(*cu_seqlens_k, n_kv, "the n_kv of k");
        inputs.emplace_back(*cu_seqlens_q, false);
        inputs.emplace_back(*cu_seqlens_k, false);
    }
    const bool return_lse = flag({"attention", "return_lse", return_lse_object});
    Output out("attention", out_object, q.shape(), inputs);
    call.out = out.data();
    std::optional<py::array_t<float>> lse;
    if (return_lse) {
        lse.emplace(std::vector<std::size_t>{n_q, n_heads});
        call.lse = lse->mutable_data();
    }
    auto* workspace = static_cast<float*>(team_scratch(attention_workspace_floats * sizeof(float)));
    const KernelTable& table = kernels();
    // A core does some 16 multiply-adds in the time of an element of an activation.
    run_parallel(n_q * n_heads * (n_kv + 1) * (head_dim + 1) / 16, [&](const Worker& worker) {
        tensor_ops::attention(worker, table, call, workspace);
    });
    if (!lse) return out.release();
    return py::make_tuple(out.release(), *lse);
}

}  // namespace

void bind_attention(py::module_& m) {
    using py::arg;
    m.def(
        "attention", attention, arg("q"), arg("k"), arg("v"), py::kw_only(),
        arg("scale") = py::none(), arg("causal") = true, arg("window") = py::none(),
        arg("chunked") = false, arg("softcap") = py::none(), arg("sinks") = py::none(),
        arg("cu_seqlens_q") = py::none(), arg("cu_seqlens_k") = py::none(),
        arg("return_lse") = false, arg("out") = py::none(),
        "softmax(q @ k.T * scale) @ v for each head; heads share keys and values in groups.\n\n"
        "q: float32 [n_q, n_heads, head_dim], head_dim up to 576.\n"
        "k, v: float32 or float16, both the same, [n_kv_heads, n_kv, head_dim], or q8_0 as "
        "quantize writes it, uint8 [n_kv_heads, n_kv, head_dim / 32 * 34]; n_heads is a "
        "multiple of n_kv_heads, and query head h reads key head h // (n_heads / n_kv_heads).\n"
        "scale: head_dim ** -0.5 if None.\n"
        "causal: the queries are the last n_q of the n_kv positions, so query i stands at "
        "position p = i + n_kv - n_q and sees the keys up to there. A query that sees no key "
        "gives zeros.\n"
        "window: the query sees only the last `window` of these keys, its own included; without "
        "causal, the keys closer than `window` on either side.\n"
        "chunked: the query sees the keys of its own chunk of `window` positions instead, from the "
        "last multiple of `window` on.\n"
        "softcap: scores become softcap * tanh(score / softcap).\n"
        "sinks: float32 [n_heads], one more score for each head, which counts in its softmax but "
        "has no value.\n"
        "cu_seqlens_q, cu_seqlens_k: int32 [n_sequences + 1], where each of several sequences "
        "begins in q and in k and v, and where the last one ends; each sees its own keys only.\n"
        "return_lse: return (out, lse), lse float32 [n_q, n_heads] the logarithm of the sum of "
        "exp(score), sink included; -inf where there is none.\n"
        "out: float32 [n_q, n_heads, head_dim], none of the inputs. Returns out.\n"
        "Values must be finite: a masked one counts with weight 0, and 0 * inf is NaN.");
}

}  // namespace tensor_ops::bindings
