// The executor: graphs that Python builds, run with one call for each segment of a model.
#include "graph/executor.h"

#include <map>
#include <mutex>

#include "bindings/kv_cache.h"
#include "bindings/matrix_object.h"
#include "bindings/module.h"

namespace tensor_ops::bindings {
namespace {

// Weights in a graph's slots, and what keeps their memory alive.
struct Bound {
    std::vector<Weight> weights;
    std::vector<py::object> owners;
};

class PyExecutor {
 public:
    PyExecutor(const py::sequence& buffers, const std::vector<std::string>& weights,
               const py::sequence& ops, std::size_t max_tokens)
        : executor_(graph_argument(buffers, weights, ops), max_tokens),
          pointers_(executor_.graph().buffers.size(), nullptr) {
        std::vector<bool> is_ids(pointers_.size());
        std::vector<bool> is_quantized(pointers_.size());
        for (const Op& op : executor_.graph().ops) {
            if (op.kind == OpKind::embed) is_ids[static_cast<std::size_t>(op.inputs[0])] = true;
            if (const int b = quantized_buffer(op); b >= 0)
                is_quantized[static_cast<std::size_t>(b)] = true;
        }
        for (std::size_t b = 0; b < pointers_.size(); ++b) {
            const Buffer& buffer = executor_.graph().buffers[b];
            if (buffer.external)
                external_.push_back(
                    {b, py::str(buffer.name),
                     is_quantized[b] ? row_bytes(DType::q8_0, buffer.width) : buffer.width,
                     is_quantized[b] ? Dtype::uint8
                     : is_ids[b]     ? Dtype::int32
                                     : Dtype::float32});
        }
    }

    std::size_t bytes() const { return executor_.bytes(); }

    Bound bind(const py::dict& weights) const {
        Bound bound;
        for (const std::string& name : executor_.graph().weights) {
            if (!weights.contains(name))
                value_error("Executor.bind: weight '" + name + "' is missing.");
            const py::object value = weights[name.c_str()];
            bound.weights.push_back(read_weight(name, value));
            bound.owners.push_back(value);
        }
        check_weights(executor_.graph(), bound.weights);
        return bound;
    }

    void run(const Bound& bound, const py::dict& buffers, std::size_t n_tokens, std::size_t past,
             py::handle k_cache, py::handle v_cache, int threads) {
        if (threads < 0)
            value_error("Executor.run: threads is negative; expected 0 (all) or more.");
        const std::unique_lock lock(running_, std::try_to_lock);
        if (!lock.owns_lock())
            throw std::runtime_error(
                "Executor.run: it runs on another thread already; use one "
                "executor for each thread");
        if (bound.weights.size() != executor_.graph().weights.size())
            value_error("Executor.run: the weights were bound by another executor.");
        check_weights(executor_.graph(), bound.weights);
        for (const External& external : external_)
            pointers_[external.index] = external_pointer(external, buffers, n_tokens);
        const Batch batch{pointers_, n_tokens, past, read_cache(k_cache, v_cache),
                          threads == 0 ? num_threads() : threads};
        const py::gil_scoped_release release;
        executor_.run(bound.weights, batch);
    }

 private:
    struct External {
        std::size_t index;
        py::str name;
        std::size_t width;  // in elements of dtype
        Dtype dtype;
    };

    static Graph graph_argument(const py::sequence& buffers,
                                const std::vector<std::string>& weights, const py::sequence& ops) {
        try {
            return read_graph(buffers, weights, ops);
        } catch (const py::cast_error&) {
            throw py::type_error(
                "Executor: buffers or ops are not as expected: (name, width, external) and (kind, "
                "input names, output name or None, weight slots, attributes) each.");
        }
    }

    static Graph read_graph(const py::sequence& buffers, const std::vector<std::string>& weights,
                            const py::sequence& ops) {
        Graph graph;
        graph.weights = weights;
        std::map<std::string, int> buffer_index, weight_index;
        for (const py::handle item : buffers) {
            const auto [name, width, external] =
                item.cast<std::tuple<std::string, std::size_t, bool>>();
            buffer_index[name] = static_cast<int>(graph.buffers.size());
            graph.buffers.push_back({name, width, external});
        }
        for (const std::string& name : weights)
            weight_index[name] = static_cast<int>(weight_index.size());
        const auto index = [](const std::map<std::string, int>& names, const std::string& name) {
            const auto found = names.find(name);
            if (found == names.end()) value_error("Executor: nothing is named '" + name + "'.");
            return found->second;
        };
        for (const py::handle item : ops) {
            const auto [kind, inputs, output, slots, attrs] = item.cast<
                std::tuple<std::string, std::vector<std::string>, std::optional<std::string>,
                           std::vector<std::string>, py::dict>>();
            Op op;
            op.kind = op_kind_from_name(kind);
            for (const std::string& name : inputs) op.inputs.push_back(index(buffer_index, name));
            if (output) op.output = index(buffer_index, *output);
            if (slots.size() > 1) value_error("Executor: " + kind + " takes one weight at most.");
            if (!slots.empty()) op.weight = index(weight_index, slots[0]);
            read_attributes(attrs, op);
            graph.ops.push_back(std::move(op));
        }
        return graph;
    }

    static void read_attributes(const py::dict& attrs, Op& op) {
        for (const auto& [key, value] : attrs) {
            const auto name = key.cast<std::string>();
            if (name == "eps")
                op.eps = value.cast<float>();
            else if (name == "scale")
                op.scale = value.cast<float>();
            else if (name == "n_heads")
                op.n_heads = value.cast<std::size_t>();
            else if (name == "n_kv_heads")
                op.n_kv_heads = value.cast<std::size_t>();
            else if (name == "head_dim")
                op.head_dim = value.cast<std::size_t>();
            else if (name == "interleaved")
                op.interleaved = value.cast<bool>();
            else if (name == "window")
                op.window = value.cast<std::size_t>();
            else if (name == "cap" || name == "softcap")
                op.cap = value.cast<float>();
            else if (name == "n_used")
                op.n_used = value.cast<std::size_t>();
            else if (name == "normalized")
                op.normalized = value.cast<bool>();
            else if (name == "shared")
                op.shared = value.cast<bool>();
            else if (name == "offset")
                op.offset = value.cast<std::size_t>();
            else if (name == "width")
                continue;  // the buffer's own
            else if (name == "quantized")
                op.quantized = value.cast<bool>();
            else if (name == "activations")
                op.activations = activations_argument("Executor", value);
            else
                value_error(std::string("Executor: ") + op_kind_name(op.kind) +
                            " has no attribute '" + name + "'.");
        }
    }

    static Weight read_weight(const std::string& name, const py::object& value) {
        if (py::isinstance<PackedMatrix>(value))
            return std::shared_ptr<const PackedMatrix>(value.cast<PackedMatrixPtr>());
        if (py::isinstance<RawRowsObject>(value)) return value.cast<const RawRowsObject&>().rows;
        if (py::isinstance<py::list>(value)) return read_experts(name, value);
        const Array vector = float_array("Executor.bind", name.c_str(), value);
        vector.require_axes(1, "[n]");
        return Vector{vector.floats(), vector.size()};
    }

    static Experts read_experts(const std::string& name, const py::list& values) {
        Experts experts;
        for (const py::handle value : values) {
            if (!py::isinstance<PackedMatrix>(value))
                throw py::type_error("Executor.bind: the list '" + name +
                                     "' holds something that is no PackedMatrix.");
            experts.push_back(value.cast<PackedMatrixPtr>());
        }
        return experts;
    }

    static void* external_pointer(const External& external, const py::dict& buffers,
                                  std::size_t n_tokens) {
        PyObject* value = PyDict_GetItemWithError(buffers.ptr(), external.name.ptr());
        const auto name = external.name.cast<std::string>();
        if (!value) value_error("Executor.run: buffer '" + name + "' is missing.");
        const Array array({"Executor.run", name.c_str(), value}, {external.dtype});
        const auto rows = static_cast<py::ssize_t>(n_tokens);
        const py::ssize_t shape[] = {rows, static_cast<py::ssize_t>(external.width)};
        array.require_shape(Shape(shape, external.dtype == Dtype::int32 ? 1 : 2),
                            "[n_tokens, width]");
        if (external.dtype != Dtype::int32 && !array.handle().writeable())
            value_error("Executor.run: buffer '" + name + "' is read-only.");
        return const_cast<void*>(array.data());
    }

    static KvCache read_cache(py::handle k_object, py::handle v_object) {
        if (k_object.is_none() && v_object.is_none()) return {};
        const KvArrays kv({"Executor.run", "k_cache", k_object},
                          {"Executor.run", "v_cache", v_object});
        kv.require_axes("[n_kv_heads, capacity, head_dim]");
        const std::size_t block = block_size(DType::q8_0).bytes;
        if (kv.k.dtype() == Dtype::uint8 && kv.k.axis(2) % block)
            value_error("Executor.run: k_cache has shape " + to_text(kv.k.shape()) +
                        "; expected a last axis of Q8_0 blocks, a multiple of " +
                        std::to_string(block) + ".");
        if (!kv.k.handle().writeable() || !kv.v.handle().writeable())
            value_error("Executor.run: the KV cache is read-only.");
        return kv.cache();
    }

    Executor executor_;
    std::vector<External> external_;
    std::vector<void*> pointers_;
    std::mutex running_;
};

}  // namespace

void bind_executor(py::module_& m) {
    using py::arg;
    py::class_<Bound>(m, "BoundWeights",
                      "Weights in the slots of a graph; Executor.bind makes it.");
    py::class_<PyExecutor>(
        m, "Executor",
        "Runs a graph of ops over named buffers; see airllm.graph, which builds and checks "
        "them.\n\n"
        "buffers: (name, width, external) of each; every buffer is [n_tokens, width].\n"
        "weights: the slots' names.\n"
        "ops: (kind, input names, output name or None, weight slots, attributes), in order.\n"
        "max_tokens: rows for which the internal buffers are allocated, here and never again.\n"
        "Raises ValueError, naming op and buffer, for a graph that does not fit together.")
        .def(py::init<const py::sequence&, const std::vector<std::string>&, const py::sequence&,
                      std::size_t>(),
             arg("buffers"), arg("weights"), arg("ops"), arg("max_tokens"))
        .def_property_readonly("nbytes", &PyExecutor::bytes, "Bytes of the internal buffers.")
        .def("bind", &PyExecutor::bind, arg("weights"),
             "Put weights in the slots: a dict of PackedMatrix, RawRows, float32 [n] or, for "
             "experts, lists of PackedMatrix, by name.\n\n"
             "Cheap, and keeps references. ValueError where one is missing or does not fit.")
        .def("run", &PyExecutor::run, arg("bound"), arg("buffers"), arg("n_tokens"),
             arg("past") = 0, arg("k_cache") = py::none(), arg("v_cache") = py::none(),
             arg("threads") = 0,
             "Run all ops on all threads, without the GIL.\n\n"
             "buffers: the external ones by name, float32 [n_tokens, width], token ids int32 "
             "[n_tokens], rows of Q8_0 uint8 [n_tokens, width / 32 * 34].\n"
             "k_cache, v_cache: float32 or float16 [n_kv_heads, capacity, head_dim], or q8_0 as "
             "uint8 [n_kv_heads, capacity, head_dim / 32 * 34]; they hold `past` "
             "positions, and the batch's are written after them.\n"
             "threads: at most so many for this run; 0 for all that set_num_threads allows.\n"
             "ValueError, and nothing has run, where something does not fit.");
}

}  // namespace tensor_ops::bindings
