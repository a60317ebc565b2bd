#include "graph/graph.h"

#include <algorithm>
#include <stdexcept>

namespace tensor_ops {
namespace {

// The most experts of a token; the largest known models use 8 to 10.
constexpr std::size_t largest_route = 1u << 12;

[[noreturn]] void fail(const Graph& graph, const Op& op, const std::string& fault) {
    const std::string output =
        op.output >= 0 && static_cast<std::size_t>(op.output) < graph.buffers.size()
            ? " -> '" + graph.buffers[static_cast<std::size_t>(op.output)].name + "'"
            : "";
    throw std::invalid_argument(std::string(op_kind_name(op.kind)) + output + ": " + fault);
}

// Checks one op.  The functions that op_kinds.h names check what is particular to a kind.
class OpCheck {
 public:
    OpCheck(const Graph& graph, const Op& op) : graph_(graph), op_(op) {}

    void run() const {
        const Signature& s = signature(op_.kind);
        require(op_.inputs.size() == s.inputs, "has " + std::to_string(op_.inputs.size()) +
                                                   " inputs, expected " + std::to_string(s.inputs));
        for (const int input : op_.inputs)
            require(input >= 0 && at(input) < graph_.buffers.size(), "an input is no buffer");
        const bool output = s.outputs != Outputs::none;
        require(output == (op_.output >= 0), output ? "has no output" : "has an output");
        for (const int out : op_.outputs())
            require(out >= 0 && at(out) < graph_.buffers.size(), "the output is no buffer");
        const auto [least, most, role] = s.weights;
        require(most > 0 || op_.weight < 0, "has a weight");
        require(least == 0 || op_.weight >= 0, "has no weight");
        const std::vector<int> weights = op_.weights();
        for (const int weight : weights)
            require(weight >= 0 && at(weight) < graph_.weights.size(), "the weight is no slot");
        const bool many = s.outputs == Outputs::many;
        require(many || op_.more_outputs.empty(), "has several outputs");
        if (many) count_weights(weights.size(), op_.outputs().size(), op_.outputs().size());
        count_weights(weights.size(), least, most);
        (this->*checks[static_cast<std::size_t>(op_.kind)])();
    }

 private:
    // ---- the checks that the table names ----

    // The inputs are as wide as the output, which may be any of them.
    void alike() const {
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) width(i, output_width());
    }
    void tokens() const { width(0, 1); }
    void head_norm() const {
        require(op_.n_heads >= 1 && output_width() % op_.n_heads == 0,
                "the output does not divide into n_heads");
        alike();
    }
    void softcap() const {
        require(op_.cap > 0.0f, "cap is not above 0");
        alike();
    }
    void swiglu_oai() const {
        require(op_.limit > 0.0f, "limit is not above 0");
        alike();
    }
    void scale_rows() const {
        width(0, output_width());
        width(1, 1);
        apart(1);
    }
    void linear() const { apart(0); }
    void linear_many() const {
        const std::vector<int> outputs = op_.outputs();
        for (const int output : outputs) {
            require(op_.inputs[0] != output, "cannot overwrite its input");
            require(std::count(outputs.begin(), outputs.end(), output) == 1,
                    "writes a buffer twice");
        }
    }
    void linear_add() const {
        apart(0);
        width(1, output_width());
    }
    void rope() const {
        heads(op_.n_heads);
        width(0, op_.n_heads * op_.head_dim);
        width_of(op_.output, op_.n_heads * op_.head_dim);
        table(op_.inputs[1]);
        require(op_.inputs[1] != op_.output, "cannot overwrite its table");
    }
    void kv_append() const {
        heads(op_.n_kv_heads);
        width(0, op_.n_kv_heads * op_.head_dim);
        values_of_heads(op_.inputs[1], op_.n_kv_heads);
    }
    void latent_append() const {
        heads(op_.n_kv_heads);
        width(0, op_.n_kv_heads * op_.head_dim);
    }
    void rope_append() const {
        table(op_.inputs[2]);
        kv_append();
    }
    void attention() const {
        heads(op_.n_heads);
        heads(op_.n_kv_heads);
        require(op_.n_heads % op_.n_kv_heads == 0, "n_heads is no multiple of n_kv_heads");
        apart(0);
        width(0, op_.n_heads * op_.head_dim);
        require(op_.cap >= 0.0f, "softcap is below 0");
        values_of_heads(op_.output, op_.n_heads);
    }
    void route() const {
        const std::size_t n = input_width(0), groups = op_.n_groups, used = op_.n_groups_used;
        require(groups >= 1 && n % groups == 0,
                std::to_string(n) + " experts are no " + std::to_string(groups) + " equal groups");
        require(used >= 1 && used <= groups, "n_groups_used is " + std::to_string(used) +
                                                 ", expected 1 to " + std::to_string(groups));
        require(used == groups || op_.group_score == GroupScore::max || n / groups >= 2,
                "a group is one expert, expected two or more");
        experts(used * (n / groups));
        width_of(op_.output, 2 * op_.n_used);
    }
    void expert_linear() const {
        experts(largest_route);
        require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
        width(1, 2 * op_.n_used);
    }
    void expert_bias() const {
        used_experts(largest_route);
        require(output_width() % op_.n_used == 0, "the output does not divide into n_used");
        width(0, output_width());
        width(1, 2 * op_.n_used);
        apart(1);
    }
    void expert_sum() const {
        experts(largest_route);
        width(0, op_.n_used * output_width());
        width(1, 2 * op_.n_used);
    }
    void conv() const {
        require(op_.taps >= 1 && op_.taps <= conv_max_taps, "taps is " + std::to_string(op_.taps) +
                                                                ", expected 1 to " +
                                                                std::to_string(conv_max_taps));
        alike();
    }
    void delta_rule() const {
        const std::size_t heads = op_.n_heads, keys = op_.n_kv_heads, decays = input_width(3);
        require(heads >= 1 && keys >= 1 && heads % keys == 0,
                "n_heads is no multiple of n_kv_heads");
        const std::size_t d_k = input_width(0) / keys;
        require(d_k >= 1 && d_k <= delta_rule_max_key_dim,
                "keys of " + std::to_string(d_k) + ", expected 1 to " +
                    std::to_string(delta_rule_max_key_dim));
        width(0, keys * d_k);
        width(1, keys * d_k);
        width(2, output_width());
        require(output_width() % heads == 0 && output_width() / heads <= longest_row / d_k,
                "the output does not divide into n_heads");
        require(decays == heads || decays == heads * d_k, "the decay's width is " +
                                                              std::to_string(decays) +
                                                              ", expected one for each head, "
                                                              "or for each of its keys");
        width(4, heads);
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void ssm_scan() const {
        const std::size_t heads = input_width(1), groups = op_.n_groups;
        require(heads >= 1 && output_width() % heads == 0, "the output does not divide into heads");
        require(groups >= 1 && heads % groups == 0 && input_width(2) % groups == 0,
                "n_groups does not divide the heads, or b");
        width(0, output_width());
        width(3, input_width(2));
        require(output_width() <= longest_row / std::max<std::size_t>(1, input_width(2) / groups),
                "the state is too large");
        require(op_.dt_min >= 0.0f && op_.dt_min <= op_.dt_max, "dt_min is not below dt_max");
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }
    void group_norm() const {
        require(op_.n_groups >= 1 && output_width() % op_.n_groups == 0,
                "the output does not divide into n_groups");
        alike();
    }
    void round_q8() const {
        whole_blocks(output_width());
        alike();
    }
    void merge_add() const {
        width(0, output_width());
        require(op_.inputs[1] != op_.output, "cannot overwrite its parts");
        require(output_width() >= 1 && input_width(1) % output_width() == 0,
                "the parts' width is no multiple of the output's");
        if (op_.quantized) whole_blocks(output_width());
    }
    void take_columns() const { columns(op_.inputs[0], op_.output); }
    void put_columns() const {
        require(graph_.buffers[at(op_.output)].external, "writes a part of its buffer");
        columns(op_.output, op_.inputs[0]);
    }

    // ---- what they have in common ----

    static std::size_t at(int i) { return static_cast<std::size_t>(i); }
    void require(bool truth, const std::string& fault) const {
        if (!truth) fail(graph_, op_, fault);
    }
    std::size_t output_width() const { return graph_.buffers[at(op_.output)].width; }
    void count_weights(std::size_t n, std::size_t least, std::size_t most) const {
        require(n >= least && n <= most, "has " + std::to_string(n) + " weights, expected " +
                                             std::to_string(least) +
                                             (least < most ? " to " + std::to_string(most) : ""));
    }
    // Checks that an input is not the output.
    void apart(std::size_t input) const {
        require(op_.inputs[input] != op_.output, "cannot overwrite its input");
    }
    void width_of(int buffer, std::size_t expected) const {
        const Buffer& b = graph_.buffers[at(buffer)];
        require(b.width == expected, "buffer '" + b.name + "' has width " +
                                         std::to_string(b.width) + ", expected " +
                                         std::to_string(expected));
    }
    void width(std::size_t input, std::size_t expected) const {
        width_of(op_.inputs[input], expected);
    }
    void table(int buffer) const {
        const std::size_t dims = graph_.buffers[at(buffer)].width;
        require(dims % 2 == 0 && dims <= op_.head_dim,
                "the table's width is " + std::to_string(dims) +
                    ", expected an even number up to head_dim " + std::to_string(op_.head_dim));
    }
    void heads(std::size_t n) const {
        require(n >= 1 && n <= 1u << 20, "the number of heads is out of range");
        require(op_.head_dim >= 1 && op_.head_dim <= attention_max_head_dim,
                "head_dim is " + std::to_string(op_.head_dim) + ", expected 1 to " +
                    std::to_string(attention_max_head_dim));
    }
    // Checks a buffer with the values of n heads.
    void values_of_heads(int buffer, std::size_t n) const {
        const std::size_t all = graph_.buffers[at(buffer)].width;
        require(all >= n && all % n == 0 && all / n <= attention_max_head_dim,
                "buffer '" + graph_.buffers[at(buffer)].name + "' has width " +
                    std::to_string(all) + ", no values of " + std::to_string(n) + " heads");
    }

    std::size_t input_width(std::size_t input) const {
        return graph_.buffers[at(op_.inputs[input])].width;
    }
    void whole_blocks(std::size_t n) const {
        require(n % quant_block == 0, std::to_string(n) + " values are no whole blocks of " +
                                          std::to_string(quant_block));
    }
    // Checks that `whole` has as many columns from the offset on as `part` is wide.
    void columns(int whole, int part) const {
        const std::size_t n = graph_.buffers[at(part)].width, all = graph_.buffers[at(whole)].width;
        require(whole != part, "cannot overwrite its input");
        require(op_.offset <= all && n <= all - op_.offset,
                "columns from " + std::to_string(op_.offset) + " to " +
                    std::to_string(op_.offset + n) + " of " + std::to_string(all));
        if (!op_.quantized) return;
        whole_blocks(n);
        whole_blocks(op_.offset);
    }

    void used_experts(std::size_t most) const {
        require(op_.n_used >= 1 && op_.n_used <= std::min(most, largest_route),
                "n_used is " + std::to_string(op_.n_used) + ", expected 1 to " +
                    std::to_string(std::min(most, largest_route)));
    }
    void experts(std::size_t most) const {
        used_experts(most);
        for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    }

#define TENSOR_OPS_CHECK(kind, inputs, outputs, weights, check) &OpCheck::check,
    static constexpr void (OpCheck::* checks[])() const = {TENSOR_OPS_OP_KINDS(TENSOR_OPS_CHECK)};
#undef TENSOR_OPS_CHECK

    const Graph& graph_;
    const Op& op_;
};

// Checks a list of one PackedMatrix for each expert.
void check_experts(const Graph& graph, const Op& op, const Experts& experts,
                   const std::string& name) {
    if (experts.empty()) fail(graph, op, name + "has no experts");
    const PackedMatrix& first = *experts[0];
    for (const auto& expert : experts)
        if (expert->n() != first.n() || expert->k() != first.k() ||
            expert->type() != first.type() || &expert->table() != &first.table())
            fail(graph, op, name + "has experts of different shapes, types or instruction sets");
}

// The length of an op's vector.  n: that which it has; out: the width of the op's output.
std::size_t vector_length(const Graph& graph, const Op& op, std::size_t slot, std::size_t n,
                          std::size_t out) {
    const auto input = [&](std::size_t i) {
        return graph.buffers[static_cast<std::size_t>(op.inputs[i])].width;
    };
    switch (op.kind) {
        case OpKind::head_norm: return out / op.n_heads;
        case OpKind::attention: return op.n_heads;
        case OpKind::route: return input(0);
        case OpKind::ssm_scan: return input(1);
        case OpKind::log_decay:  // the first vector may have an element for several columns
            return slot == static_cast<std::size_t>(op.weight) && n && out % n == 0 ? n : out;
        case OpKind::expert_bias: return out / op.n_used;
        case OpKind::conv: return op.taps;
        default: return out;
    }
}

// Checks that a slot's weight fits an op which computes `output` with it.
void check_weight(const Graph& graph, const Op& op, std::size_t slot, int output,
                  const std::vector<Weight>& weights) {
    const std::string name = "weight '" + graph.weights[slot] + "' ";
    const Weight& weight = weights[slot];
    const auto require_shape = [&](std::size_t n, std::size_t k, std::size_t n_wanted,
                                   std::size_t k_wanted) {
        if (n != n_wanted || k != k_wanted)
            fail(graph, op,
                 name + "is [" + std::to_string(n) + ", " + std::to_string(k) + "], expected [" +
                     std::to_string(n_wanted) + ", " + std::to_string(k_wanted) + "]");
    };
    const std::size_t out = graph.buffers[static_cast<std::size_t>(output)].width;
    const std::size_t in = graph.buffers[static_cast<std::size_t>(op.inputs[0])].width;
    switch (signature(op.kind).weights.role) {
        case Role::vector:
        case Role::vectors: {
            const auto* vector = std::get_if<Vector>(&weight);
            if (!vector) fail(graph, op, name + "is no float32 vector");
            const bool one = signature(op.kind).weights.role == Role::vector;
            const bool by_channel = op.kind == OpKind::conv;
            return require_shape(vector->count, vector->n,
                                 one          ? 1
                                 : by_channel ? out
                                              : vector->count,
                                 vector_length(graph, op, slot, vector->n, out));
        }
        case Role::experts: {
            const auto* experts = std::get_if<Experts>(&weight);
            if (!experts) fail(graph, op, name + "is no list of PackedMatrix");
            check_experts(graph, op, *experts, name);
            return require_shape((*experts)[0]->n() * op.n_used,
                                 (*experts)[0]->k() * (op.shared ? 1 : op.n_used), out, in);
        }
        case Role::matrix: {
            const auto* matrix = std::get_if<std::shared_ptr<const PackedMatrix>>(&weight);
            if (!matrix) fail(graph, op, name + "is no PackedMatrix");
            return require_shape((*matrix)->n(), (*matrix)->k(), out, in);
        }
        case Role::rows: {
            const auto* rows = std::get_if<RawRows>(&weight);
            if (!rows) fail(graph, op, name + "is no RawRows");
            return require_shape(rows->n, rows->k, rows->n, out);
        }
    }
}

}  // namespace

OpKind op_kind_from_name(const std::string& name) {
    std::string known;
    for (std::size_t i = 0; i < std::size(signatures); ++i) {
        if (name == signatures[i].name) return static_cast<OpKind>(i);
        known += std::string(" ") + signatures[i].name;
    }
    throw std::invalid_argument("no op is named '" + name + "'; there are:" + known);
}

std::vector<int> Op::outputs() const {
    std::vector<int> all;
    if (output >= 0) all.push_back(output);
    all.insert(all.end(), more_outputs.begin(), more_outputs.end());
    return all;
}

std::vector<int> Op::weights() const {
    std::vector<int> all;
    if (weight >= 0) all.push_back(weight);
    all.insert(all.end(), more_weights.begin(), more_weights.end());
    return all;
}

bool appends_keys(OpKind kind) {
    return kind == OpKind::kv_append || kind == OpKind::rope_append ||
           kind == OpKind::latent_append;
}

bool uses_keys(OpKind kind) { return appends_keys(kind) || kind == OpKind::attention; }

std::size_t Graph::value_dim(const Op& op) const {
    const auto width = [&](int b) { return buffers[static_cast<std::size_t>(b)].width; };
    if (op.kind == OpKind::attention) return width(op.output) / op.n_heads;
    return op.kind == OpKind::latent_append ? 0 : width(op.inputs[1]) / op.n_kv_heads;
}

std::size_t Graph::recurrent_floats(const Op& op) const {
    const auto width = [&](int b) { return buffers[static_cast<std::size_t>(b)].width; };
    switch (op.kind) {
        case OpKind::conv: return (op.taps - 1) * width(op.output);
        case OpKind::delta_rule: return width(op.output) * (width(op.inputs[0]) / op.n_kv_heads);
        case OpKind::ssm_scan: return width(op.output) * (width(op.inputs[2]) / op.n_groups);
        default: return 0;
    }
}

bool is_product(OpKind kind) {
    return kind == OpKind::linear || kind == OpKind::linear_many || kind == OpKind::linear_add ||
           kind == OpKind::glu_linear;
}

int quantized_buffer(const Op& op) {
    if (!op.quantized) return -1;
    switch (op.kind) {
        case OpKind::merge_add: return op.inputs[1];
        case OpKind::take_columns: return op.inputs[0];
        case OpKind::put_columns: return op.output;
        default: return -1;
    }
}

void Graph::check() const {
    for (const Buffer& buffer : buffers)
        if (buffer.width > longest_row)
            throw std::invalid_argument("buffer '" + buffer.name + "' has width " +
                                        std::to_string(buffer.width) + "; expected at most " +
                                        std::to_string(longest_row));
    std::vector<char> written(buffers.size());
    for (const Op& op : ops) {
        OpCheck(*this, op).run();
        for (const int output : op.outputs()) written[static_cast<std::size_t>(output)] = 1;
    }
    // A buffer of Q8_0 has fewer bytes than one of float32, so no op may use it as float32.
    std::vector<char> quantized(buffers.size());
    for (const Op& op : ops) {
        const int b = quantized_buffer(op);
        if (b < 0) continue;
        const Buffer& buffer = buffers[static_cast<std::size_t>(b)];
        if (!buffer.external || buffer.width % quant_block)
            fail(*this, op, "'" + buffer.name + "' is internal, or no rows of whole blocks");
        quantized[static_cast<std::size_t>(b)] = 1;
    }
    for (const Op& op : ops) {
        const auto floats = [&](int b) {
            if (b >= 0 && b != quantized_buffer(op) && quantized[static_cast<std::size_t>(b)])
                fail(*this, op,
                     "takes '" + buffers[static_cast<std::size_t>(b)].name + "' for float32");
        };
        for (const int input : op.inputs) floats(input);
        floats(op.output);
    }
    // Token ids are checked before the run, so no op may write them.
    for (const Op& op : ops) {
        if (op.kind != OpKind::embed) continue;
        const auto ids = static_cast<std::size_t>(op.inputs[0]);
        if (written[ids] || !buffers[ids].external)
            fail(*this, op, "its tokens '" + buffers[ids].name + "' do not come from outside");
    }
}

std::size_t weight_bytes(const Weight& weight) {
    if (const auto* vector = std::get_if<Vector>(&weight))
        return vector->count * vector->n * sizeof(float);
    if (const auto* rows = std::get_if<RawRows>(&weight))
        return rows->n * row_bytes(rows->type, rows->k);
    if (const auto* matrix = std::get_if<std::shared_ptr<const PackedMatrix>>(&weight))
        return (*matrix)->bytes();
    std::size_t bytes = 0;
    for (const auto& expert : std::get<Experts>(weight)) bytes += expert->bytes();
    return bytes;
}

void check_weights(const Graph& graph, const std::vector<Weight>& weights) {
    if (weights.size() != graph.weights.size())
        throw std::invalid_argument("as many weights as slots are expected");
    for (const Op& op : graph.ops) {
        const std::vector<int> slots = op.weights(), outputs = op.outputs();
        for (std::size_t i = 0; i < slots.size(); ++i)
            check_weight(graph, op, static_cast<std::size_t>(slots[i]),
                         op.kind == OpKind::linear_many ? outputs[i] : op.output, weights);
    }
}

}  // namespace tensor_ops
