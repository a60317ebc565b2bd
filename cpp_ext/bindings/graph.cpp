// Graphs as Python describes them, and the table of ops.
#include "bindings/graph.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <type_traits>
#include <variant>

#include "bindings/arrays.h"
#include "bindings/matrix_object.h"

namespace tensor_ops::bindings {
namespace {

using OutputNames = std::variant<std::monostate, std::string, std::vector<std::string>>;

void set_first(const std::vector<int>& all, int& first, std::vector<int>& others) {
    if (all.empty()) return;
    first = all[0];
    others.assign(all.begin() + 1, all.end());
}

template <auto field>
void set(Op& op, py::handle value) {
    op.*field = value.cast<std::remove_reference_t<decltype(op.*field)>>();
}

// Sets a field to the number of the word that the value is, among these.
template <auto field>
void set_word(Op& op, const char* name, py::handle value,
              std::initializer_list<const char*> words) {
    using Field = std::remove_reference_t<decltype(op.*field)>;
    op.*field = static_cast<Field>(
        choice({"Executor", name, value}, std::span(words.begin(), words.size())));
}

constexpr struct {
    const char* name;
    void (*set)(Op& op, py::handle value);
} attributes[] = {
    {"activation",
     [](Op& op, py::handle v) { set_word<&Op::gelu>(op, "activation", v, {"silu", "gelu"}); }},
    {"activations",
     [](Op& op, py::handle v) { op.activations = activations_argument("Executor", v); }},
    {"alibi", set<&Op::alibi>},
    {"alpha", set<&Op::alpha>},
    {"beta", set<&Op::beta>},
    {"block_size", set<&Op::block_size>},
    {"bound", set<&Op::bound>},
    {"cap", set<&Op::cap>},
    {"chunked", set<&Op::chunked>},
    {"dilation", set<&Op::dilation>},
    {"dt_max", set<&Op::dt_max>},
    {"dt_min", set<&Op::dt_min>},
    {"eps", set<&Op::eps>},
    {"every", set<&Op::every>},
    {"factor", set<&Op::scale>},
    {"first", set<&Op::first>},
    {"gating",
     [](Op& op, py::handle v) {
         set_word<&Op::gating>(op, "gating", v,
                               {"softmax", "sigmoid", "sqrtsoftplus", "sparsemixer"});
     }},
    {"group_score",
     [](Op& op, py::handle v) {
         set_word<&Op::group_score>(op, "group_score", v, {"top2", "max"});
     }},
    {"head_dim", set<&Op::head_dim>},
    {"interleaved", set<&Op::interleaved>},
    {"least", set<&Op::least>},
    {"low", set<&Op::low>},
    {"high", set<&Op::high>},
    {"limit", set<&Op::limit>},
    {"n_choices", set<&Op::n_choices>},
    {"n_chosen", set<&Op::n_chosen>},
    {"n_earlier", set<&Op::n_earlier>},
    {"n_groups", set<&Op::n_groups>},
    {"n_groups_used", set<&Op::n_groups_used>},
    {"n_heads", set<&Op::n_heads>},
    {"n_iterations", set<&Op::n_iterations>},
    {"n_kv_heads", set<&Op::n_kv_heads>},
    {"n_local", set<&Op::n_local>},
    {"n_parts", set<&Op::n_parts>},
    {"n_selected", [](Op&, py::handle) {}},  // the buffer's width
    {"n_streams", set<&Op::n_streams>},
    {"n_used", set<&Op::n_used>},
    {"negative", set<&Op::negative>},
    {"normalized", set<&Op::normalized>},
    {"of_index", set<&Op::of_index>},
    {"offset", set<&Op::offset>},
    {"pooled", set<&Op::pooled>},
    {"positive", set<&Op::positive>},
    {"quantized", set<&Op::quantized>},
    {"scale", set<&Op::scale>},
    {"shared", set<&Op::shared>},
    {"shift", set<&Op::shift>},
    {"silu", set<&Op::silu>},
    {"softcap", set<&Op::cap>},
    {"taps", set<&Op::taps>},
    {"tiled", set<&Op::tiled>},
    {"value_dim", [](Op&, py::handle) {}},  // follows from the buffers' widths
    {"width", [](Op&, py::handle) {}},      // the buffer's own
    {"window", set<&Op::window>},
};

void read_attributes(const py::dict& attrs, Op& op) {
    for (const auto& [key, value] : attrs) {
        const auto name = key.cast<std::string>();
        const auto* const found =
            std::find_if(std::begin(attributes), std::end(attributes),
                         [&](const auto& attribute) { return name == attribute.name; });
        if (found == std::end(attributes))
            value_error(std::string("Executor: ") + op_kind_name(op.kind) + " has no attribute '" +
                        name + "'.");
        found->set(op, value);
    }
}

Graph read_graph(const py::sequence& buffers, const std::vector<std::string>& weights,
                 const py::sequence& ops) {
    Graph graph;
    graph.weights = weights;
    std::map<std::string, int> buffer_index, weight_index;
    for (const py::object item : buffers) {
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
    for (const py::object item : ops) {
        const auto [kind, inputs, output, slots, attrs] =
            item.cast<std::tuple<std::string, std::vector<std::string>, OutputNames,
                                 std::vector<std::string>, py::dict>>();
        Op op;
        op.kind = op_kind_from_name(kind);
        for (const std::string& name : inputs) op.inputs.push_back(index(buffer_index, name));
        std::vector<int> outputs, weight_slots;
        if (const auto* one = std::get_if<std::string>(&output))
            outputs.push_back(index(buffer_index, *one));
        else if (const auto* several = std::get_if<std::vector<std::string>>(&output))
            for (const std::string& name : *several) outputs.push_back(index(buffer_index, name));
        for (const std::string& name : slots) weight_slots.push_back(index(weight_index, name));
        set_first(outputs, op.output, op.more_outputs);
        set_first(weight_slots, op.weight, op.more_weights);
        read_attributes(attrs, op);
        graph.ops.push_back(std::move(op));
    }
    return graph;
}

const char* role_name(Role role) {
    switch (role) {
        case Role::vector: return "vector";
        case Role::vectors: return "vectors";
        case Role::matrix: return "matrix";
        case Role::rows: return "rows";
        case Role::experts: return "experts";
        case Role::heads: return "heads";
    }
    return "";
}

}  // namespace

Graph graph_argument(const py::sequence& buffers, const std::vector<std::string>& weights,
                     const py::sequence& ops) {
    try {
        return read_graph(buffers, weights, ops);
    } catch (const py::cast_error&) {
        throw py::type_error(
            "Executor: buffers or ops are not as expected: (name, width, external) and (kind, "
            "input names, output name, names or None, weight slots, attributes) each.");
    }
}

py::dict graph_ops() {
    py::dict ops;
    for (const Signature& s : signatures) {
        const auto [least, most, role] = s.weights;
        const bool many = s.outputs == Outputs::many;
        const py::tuple weights(many ? 1 : most);
        for (std::size_t i = 0; i < weights.size(); ++i) weights[i] = role_name(role);
        py::dict op;
        op["inputs"] = s.inputs;
        op["output"] = s.outputs != Outputs::none;
        op["weights"] = weights;
        op["optional"] = most > 0 && least == 0;
        op["many"] = many;
        ops[s.name] = op;
    }
    return ops;
}

}  // namespace tensor_ops::bindings
