// The executor: runs graphs that Python builds, with one call for each segment of a model.
#include "graph/executor.h"

#include <cstdint>
#include <functional>
#include <mutex>

#include "bindings/gil.h"
#include "bindings/graph.h"
#include "bindings/matrix_object.h"
#include "bindings/module.h"
#include "bindings/sequence_state.h"
#include "graph/memory.h"

namespace tensor_ops::bindings {
namespace {

// Weights in a graph's slots, and the objects that keep their memory alive.
struct Bound {
    std::vector<Weight> weights;
    std::vector<py::object> owners;
    std::vector<std::string> names;
    std::uint64_t executor;  // that has checked them

    py::dict nbytes() const {
        py::dict found;
        for (std::size_t i = 0; i < weights.size(); ++i)
            found[names[i].c_str()] = weight_bytes(weights[i]);
        return found;
    }
};

}  // namespace
}  // namespace tensor_ops::bindings

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::bindings::Bound>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::bindings::Bound> {};
}  // namespace pybind11::detail

namespace tensor_ops::bindings {
namespace {

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
        bound.executor = id_;
        for (const std::string& name : executor_.graph().weights) {
            if (!weights.contains(name))
                value_error("Executor.bind: weight '" + name + "' is missing.");
            const py::object value = weights[name.c_str()];
            bound.weights.push_back(read_weight(name, value));
            bound.owners.push_back(value);
            bound.names.push_back(name);
        }
        check_weights(executor_.graph(), bound.weights);
        return bound;
    }

    void run(const Bound& bound, const py::dict& buffers, std::size_t n_tokens, int threads,
             py::handle seconds) {
        const auto lock = lock_for_run(threads);
        layers_.assign(1, {&weights_of(bound), {}, 0});
        run_locked(buffers, n_tokens, threads, seconds);
    }

    // Tuples of tuples: a list could change while this runs, and release its elements.
    void run_layers(const py::sequence& bound_sequence, const py::dict& buffers,
                    const py::sequence& sequence_sequence, std::size_t first_layer, int threads,
                    py::handle seconds) {
        const py::tuple bound(bound_sequence), sequences(sequence_sequence);
        const auto lock = lock_for_run(threads);
        const std::size_t n_layers = bound.size(), n_sequences = sequences.size();
        sequences_.assign(n_layers * n_sequences, {});
        std::vector<StateInUse> in_use;
        in_use.reserve(n_sequences);
        std::size_t n_tokens = 0;
        for (std::size_t s = 0; s < n_sequences; ++s) {
            const auto [n, past, object] = sequence_argument(sequences[s]);
            in_use.emplace_back(*object);
            const std::size_t has = object->state.n_layers();
            if (first_layer > has || n_layers > has - first_layer)
                value_error("Executor.run_layers: a sequence has the state of " +
                            std::to_string(has) + " layers, too few for " +
                            std::to_string(n_layers) + " from layer " +
                            std::to_string(first_layer) + " on.");
            for (std::size_t i = 0; i < n_layers; ++i)
                sequences_[i * n_sequences + s] = object->state.layer(first_layer + i, n, past);
            n_tokens += n;
        }
        layers_.clear();
        for (std::size_t i = 0; i < n_layers; ++i)
            layers_.push_back({&weights_of(bound_argument(bound[i])),
                               std::span(sequences_).subspan(i * n_sequences, n_sequences),
                               first_layer + i});
        run_locked(buffers, n_tokens, threads, seconds);
    }

 private:
    struct External {
        std::size_t index;
        py::str name;
        std::size_t width;  // in elements of dtype
        Dtype dtype;
    };

    std::unique_lock<std::mutex> lock_for_run(int threads) {
        if (threads < 0)
            value_error("Executor.run: threads is negative; expected 0 (all) or more.");
        std::unique_lock lock(running_, std::try_to_lock);
        if (!lock.owns_lock())
            throw std::runtime_error(
                "Executor.run: it runs on another thread already; use one "
                "executor for each thread");
        return lock;
    }

    const std::vector<Weight>& weights_of(const Bound& bound) const {
        if (bound.weights.size() != executor_.graph().weights.size())
            value_error("Executor.run: the weights were bound by another executor.");
        if (bound.executor != id_) check_weights(executor_.graph(), bound.weights);
        return bound.weights;
    }

    // Runs layers_, whose sequences have n_tokens in all.
    void run_locked(const py::dict& buffers, std::size_t n_tokens, int threads,
                    py::handle seconds) {
        std::vector<py::array> owners;  // another thread may take arrays out of the dict
        owners.reserve(external_.size());
        for (const External& external : external_) {
            owners.push_back(external_array(external, buffers, n_tokens));
            pointers_[external.index] = const_cast<void*>(owners.back().data());
        }
        const Batch batch{pointers_, n_tokens, threads == 0 ? num_threads() : threads,
                          read_seconds(seconds)};
        const WithoutGil released;
        executor_.run(layers_, batch);
    }

    using SequenceArgument = std::tuple<std::size_t, std::size_t, StateObject*>;
    static const Bound& bound_argument(const py::object& item) {
        if (!py::isinstance<Bound>(item))
            throw py::type_error("Executor.run_layers: bound holds " + describe_kind(item) +
                                 "; expected BoundWeights.");
        return item.cast<const Bound&>();
    }

    // Takes what the tuple holds, and so keeps alive: a subclass's __getitem__ may make a state
    // that nothing else refers to.
    static SequenceArgument sequence_argument(const py::object& item) {
        try {
            if (py::isinstance<py::tuple>(item)) {
                const auto held = py::reinterpret_borrow<py::tuple>(item);
                if (held.size() == 3 && !held[2].is_none())
                    return {held[0].cast<std::size_t>(), held[1].cast<std::size_t>(),
                            held[2].cast<StateObject*>()};
            }
        } catch (const py::cast_error&) {
        }
        throw py::type_error("Executor.run_layers: sequences holds " + describe_kind(item) +
                             " that is not (n_tokens, past, SequenceState).");
    }

    std::span<double> read_seconds(py::handle value) const {
        if (value.is_none()) return {};
        const std::size_t n_ops = executor_.graph().ops.size();
        if (py::isinstance<py::array_t<double, py::array::c_style>>(value)) {
            plain_array("Executor.run", "seconds", value);
            auto array = py::reinterpret_borrow<py::array_t<double, py::array::c_style>>(value);
            if (array.ndim() == 1 && static_cast<std::size_t>(array.size()) == n_ops &&
                array.writeable())
                return {array.mutable_data(), n_ops};
        }
        value_error("Executor.run: seconds is " + describe_kind(value) +
                    "; expected a writable, C-contiguous float64 array of shape (" +
                    std::to_string(n_ops) + ",), one for each op.");
    }

    static Weight read_weight(const std::string& name, const py::object& value) {
        if (const PackedMatrixPtr packed = packed_matrix(value))
            return std::shared_ptr<const PackedMatrix>(packed);
        if (py::isinstance<RawRowsObject>(value)) return value.cast<const RawRowsObject&>().rows;
        if (py::isinstance<py::list>(value)) return read_experts(name, value);
        const Array vector = float_array("Executor.bind", name.c_str(), value);
        if (vector.shape().size() == 2)
            return Vector{vector.floats(), vector.axis(1), vector.axis(0)};
        vector.require_axes(1, "[n], or [n_experts, n]");
        return Vector{vector.floats(), vector.size()};
    }

    static Experts read_experts(const std::string& name, const py::list& values) {
        Experts experts;
        for (const py::handle value : values) {
            experts.push_back(packed_matrix(value));
            if (!experts.back())
                throw py::type_error("Executor.bind: the list '" + name +
                                     "' holds something that is no PackedMatrix.");
        }
        return experts;
    }

    static py::array external_array(const External& external, const py::dict& buffers,
                                    std::size_t n_tokens) {
        const auto value = py::reinterpret_borrow<py::object>(
            PyDict_GetItemWithError(buffers.ptr(), external.name.ptr()));
        const auto name = external.name.cast<std::string>();
        if (!value) value_error("Executor.run: buffer '" + name + "' is missing.");
        const Array array({"Executor.run", name.c_str(), value}, {external.dtype});
        const auto rows = static_cast<py::ssize_t>(n_tokens);
        const py::ssize_t shape[] = {rows, static_cast<py::ssize_t>(external.width)};
        array.require_shape(Shape(shape, external.dtype == Dtype::int32 ? 1 : 2),
                            "[n_tokens, width]");
        if (external.dtype != Dtype::int32 && !array.handle().writeable())
            value_error("Executor.run: buffer '" + name + "' is read-only.");
        return array.handle();
    }

    static std::uint64_t next_id() {
        static std::uint64_t last = 0;  // under the GIL
        return ++last;
    }

    const std::uint64_t id_ = next_id();
    Executor executor_;
    std::vector<External> external_;
    std::vector<void*> pointers_;
    std::vector<CachedSequence> sequences_;  // of the run, and its layers
    std::vector<Layer> layers_;
    std::mutex running_;
};

std::unique_ptr<PyExecutor> make_executor(const py::sequence& buffers,
                                          const std::vector<std::string>& weights,
                                          const py::sequence& ops, std::size_t max_tokens) {
    return std::make_unique<PyExecutor>(buffers, weights, ops, max_tokens);
}

}  // namespace
}  // namespace tensor_ops::bindings

namespace pybind11::detail {
template <>
class type_caster<tensor_ops::bindings::PyExecutor>
    : public tensor_ops::bindings::MadeCaster<tensor_ops::bindings::PyExecutor> {};
}  // namespace pybind11::detail

namespace tensor_ops::bindings {

void bind_executor(py::module_& m) {
    using py::arg;
    m.def("graph_ops", graph_ops,
          "The ops that Executor runs, by name: inputs, the number of its inputs; output, whether "
          "it writes one; weights, their roles; optional, whether it may go without weights; many, "
          "whether it has an output for each weight, of which there may be several.");
    py::class_<Bound>(m, "BoundWeights", "Weights in the slots of a graph; Executor.bind makes it.")
        .def_property_readonly("nbytes", &Bound::nbytes, "Bytes of each weight, by its slot.");
    py::class_<PyExecutor> executor(
        m, "Executor",
        "Runs a graph of ops over named buffers; see airllm.graph.graph, which builds and checks "
        "them.\n\n"
        "buffers: (name, width, external) of each; every buffer is [n_tokens, width].\n"
        "weights: the slots' names.\n"
        "ops: (kind, input names, output name, names or None, weight slots, attributes), in "
        "order.\n"
        "max_tokens: rows for which the internal buffers are allocated, here and never again.\n"
        "Raises ValueError, naming op and buffer, for a graph that does not fit together.");
    define_init(executor, make_executor, arg("buffers"), arg("weights"), arg("ops"),
                arg("max_tokens"));
    m.def(
        "executor_bytes",
        [](const py::sequence& buffers, const std::vector<std::string>& weights,
           const py::sequence& ops, std::size_t max_tokens, std::size_t positions) {
            return executor_bytes(graph_argument(buffers, weights, ops), max_tokens, positions);
        },
        arg("buffers"), arg("weights"), arg("ops"), arg("max_tokens"), arg("positions"),
        "The nbytes of an Executor with these arguments once it has run batches of max_tokens of "
        "a sequence, up to `positions`. Nothing is allocated. ValueError as of Executor.");
    executor
        .def_property_readonly("nbytes", &PyExecutor::bytes,
                               "Bytes of the internal buffers, and of what ops work on inside.")
        .def("bind", &PyExecutor::bind, arg("weights"),
             "Put weights in the slots: a dict of PackedMatrix, RawRows, float32 [n] or, for "
             "experts, float32 [n_experts, n] and lists of PackedMatrix, by name.\n\n"
             "The call is cheap and keeps references. ValueError if a weight is missing or does "
             "not fit.")
        .def("run", &PyExecutor::run, arg("bound"), arg("buffers"), arg("n_tokens"),
             arg("threads") = 0, arg("seconds") = py::none(),
             "Run all ops of a graph without a state, on all threads and without the GIL.\n\n"
             "buffers: the external ones by name, float32 [n_tokens, width], token ids int32 "
             "[n_tokens], rows of Q8_0 uint8 [n_tokens, width / 32 * 34].\n"
             "threads: at most so many for this run; 0 for all that set_num_threads allows.\n"
             "seconds: float64 [n_ops]; the run adds the time of each op, and the threads then "
             "wait for each other after each op.\n"
             "ValueError if an argument does not fit; then nothing has run.")
        .def("run_layers", &PyExecutor::run_layers, arg("bound"), arg("buffers"), arg("sequences"),
             arg("first_layer") = 0, arg("threads") = 0, arg("seconds") = py::none(),
             "Run the graph for several layers in turn, on the same buffers, for several sequences "
             "at once.\n\n"
             "bound: the weights of each layer.\n"
             "sequences: (n_tokens, past, SequenceState) of each; the buffers hold the rows of the "
             "first sequence first. The states hold `past` positions, and the batch's follow.\n"
             "first_layer: the number of the first layer of `bound`: its index in each "
             "SequenceState, "
             "and that of its columns in buffers that have columns of all layers.");
}

}  // namespace tensor_ops::bindings
