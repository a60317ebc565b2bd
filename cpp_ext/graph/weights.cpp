// Whether the weights that a graph is given fit its slots.
#include <stdexcept>

#include "graph/op_checks.h"

namespace tensor_ops {
namespace {

// The list of one PackedMatrix for each expert or head that a weight must be.  what: "experts".
const Experts& checked_matrices(const Graph& graph, const Op& op, const Weight& weight,
                                const std::string& name, const std::string& what) {
    const auto* const matrices = std::get_if<Experts>(&weight);
    if (!matrices) op_fault(graph, op, name + "is no list of PackedMatrix");
    if (matrices->empty()) op_fault(graph, op, name + "has no " + what);
    const PackedMatrix& first = *(*matrices)[0];
    for (const auto& each : *matrices)
        if (each->n() != first.n() || each->k() != first.k() || each->type() != first.type() ||
            &each->table() != &first.table())
            op_fault(graph, op,
                     name + "has " + what + " of different shapes, types or instruction sets");
    return *matrices;
}

// The length of an op's vector.  first: whether it is the first of them; n: the length that it has;
// out: the width of the op's output.
std::size_t vector_length(const Graph& graph, const Op& op, bool first, std::size_t n,
                          std::size_t out) {
    const auto input = [&](std::size_t i) {
        return graph.buffers[static_cast<std::size_t>(op.inputs[i])].width;
    };
    switch (op.kind) {
        case OpKind::scale: return n == 1 ? 1 : out;
        case OpKind::expert_scale:
        case OpKind::scale_shares: return n;  // any: a route may name an expert that is not there
        case OpKind::head_norm: return out / op.n_heads;
        case OpKind::attention:
        case OpKind::sparse_attention:
        case OpKind::group_attention:
        case OpKind::sparse_group_attention: return op.n_heads;
        case OpKind::pool_groups: return input(0);
        case OpKind::hyper_factors:  // the first vector has a scale for each kind of factor
            return !first ? out : out == op.n_streams ? 1 : 3;
        case OpKind::route: return input(0);
        case OpKind::ssm_scan: return input(1);
        case OpKind::selective_scan: return input(2);
        case OpKind::log_decay:  // the first vector may have an element for several columns
            return first && n && out % n == 0 ? n : out;
        case OpKind::expert_bias: return out / op.n_used;
        case OpKind::conv: return op.taps;
        default: return out;
    }
}

// Checks that a slot's weight fits an op which computes `output` with it.  first: whether it is the
// op's first; the same slot may be its second, too.
void check_weight(const Graph& graph, const Op& op, std::size_t slot, bool first, int output,
                  const std::vector<Weight>& weights) {
    const std::string name = "weight '" + graph.weights[slot] + "' ";
    const Weight& weight = weights[slot];
    const auto require_shape = [&](std::size_t n, std::size_t k, std::size_t n_wanted,
                                   std::size_t k_wanted) {
        if (n != n_wanted || k != k_wanted)
            op_fault(graph, op,
                     name + "is [" + std::to_string(n) + ", " + std::to_string(k) +
                         "], expected [" + std::to_string(n_wanted) + ", " +
                         std::to_string(k_wanted) + "]");
    };
    const std::size_t out = graph.buffers[static_cast<std::size_t>(output)].width;
    const std::size_t in = graph.buffers[static_cast<std::size_t>(op.inputs[0])].width;
    switch (signature(op.kind).weights.role) {
        case Role::vector:
        case Role::vectors: {
            const auto* vector = std::get_if<Vector>(&weight);
            if (!vector) op_fault(graph, op, name + "is no float32 vector");
            const bool one = signature(op.kind).weights.role == Role::vector;
            const bool of_columns = op.kind == OpKind::conv || op.kind == OpKind::selective_scan;
            const std::size_t count = one                              ? 1
                                      : of_columns                     ? out
                                      : op.kind == OpKind::pool_groups ? op.every
                                                                       : vector->count;
            return require_shape(vector->count, vector->n, count,
                                 vector_length(graph, op, first, vector->n, out));
        }
        case Role::experts: {
            const Experts& experts = checked_matrices(graph, op, weight, name, "experts");
            return require_shape(experts[0]->n() * op.n_used,
                                 experts[0]->k() * (op.shared ? 1 : op.n_used), out, in);
        }
        case Role::heads: {
            const Experts& heads = checked_matrices(graph, op, weight, name, "heads");
            if (heads.size() != op.n_heads)
                op_fault(graph, op,
                         name + "has " + std::to_string(heads.size()) + " heads, expected " +
                             std::to_string(op.n_heads));
            return require_shape(heads[0]->n() * op.n_heads, heads[0]->k() * op.n_heads, out, in);
        }
        case Role::matrix: {
            const auto* matrix = std::get_if<std::shared_ptr<const PackedMatrix>>(&weight);
            if (!matrix) op_fault(graph, op, name + "is no PackedMatrix");
            return require_shape((*matrix)->n(), (*matrix)->k(), out, in);
        }
        case Role::rows: {
            const auto* rows = std::get_if<RawRows>(&weight);
            if (!rows) op_fault(graph, op, name + "is no RawRows");
            return require_shape(rows->n, rows->k, rows->n, out);
        }
    }
}

}  // namespace

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
            check_weight(graph, op, static_cast<std::size_t>(slots[i]), i == 0,
                         op.kind == OpKind::linear_many ? outputs[i] : op.output, weights);
    }
}

}  // namespace tensor_ops
