#include "graph/graph.h"

#include <algorithm>
#include <stdexcept>

#include "graph/op_checks.h"

namespace tensor_ops {

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

bool uses_keys(OpKind kind) {
    return appends_keys(kind) || kind == OpKind::attention || selects_positions(kind) ||
           attends_groups(kind);
}

bool selects_positions(OpKind kind) {
    return kind == OpKind::sparse_attention || kind == OpKind::block_attention;
}

bool attends_groups(OpKind kind) {
    return kind == OpKind::group_attention || kind == OpKind::sparse_group_attention;
}

bool uses_index(OpKind kind) { return kind == OpKind::index_append || scores_index(kind); }

bool scores_index(OpKind kind) {
    return kind == OpKind::index_select || kind == OpKind::choose_blocks;
}

std::size_t Graph::value_dim(const Op& op) const {
    const auto width = [&](int b) { return buffers[static_cast<std::size_t>(b)].width; };
    if (op.kind == OpKind::attention || selects_positions(op.kind) || attends_groups(op.kind))
        return width(op.output) / op.n_heads;
    return op.kind == OpKind::latent_append ? 0 : width(op.inputs[1]) / op.n_kv_heads;
}

std::size_t Graph::recurrent_floats(const Op& op) const {
    const auto width = [&](int b) { return buffers[static_cast<std::size_t>(b)].width; };
    switch (op.kind) {
        case OpKind::conv: return (op.taps - 1) * op.dilation * width(op.output);
        case OpKind::block_mean: return width(op.output);
        case OpKind::delta_rule: return width(op.output) * (width(op.inputs[0]) / op.n_kv_heads);
        case OpKind::ssm_scan: return width(op.output) * (width(op.inputs[2]) / op.n_groups);
        case OpKind::selective_scan: return width(op.output) * width(op.inputs[2]);
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
        check_op(*this, op);
        for (const int output : op.outputs()) written[static_cast<std::size_t>(output)] = 1;
    }
    // A buffer of Q8_0 has fewer bytes than one of float32, so no op may use it as float32.
    std::vector<char> quantized(buffers.size());
    for (const Op& op : ops) {
        const int b = quantized_buffer(op);
        if (b < 0) continue;
        const Buffer& buffer = buffers[static_cast<std::size_t>(b)];
        if (!buffer.external || buffer.width % quant_block)
            op_fault(*this, op, "'" + buffer.name + "' is internal, or no rows of whole blocks");
        quantized[static_cast<std::size_t>(b)] = 1;
    }
    for (const Op& op : ops) {
        std::vector<int> used = op.outputs();
        used.insert(used.end(), op.inputs.begin(), op.inputs.end());
        const int own = quantized_buffer(op);
        if (own >= 0) used.erase(std::find(used.begin(), used.end(), own));  // once
        for (const int b : used)
            if (quantized[static_cast<std::size_t>(b)])
                op_fault(*this, op,
                         "takes '" + buffers[static_cast<std::size_t>(b)].name + "' for float32");
    }
    // Token ids are checked before the run, so no op may write them.
    for (const Op& op : ops) {
        if (op.kind != OpKind::embed) continue;
        const auto ids = static_cast<std::size_t>(op.inputs[0]);
        if (written[ids] || !buffers[ids].external)
            op_fault(*this, op, "its tokens '" + buffers[ids].name + "' do not come from outside");
    }
}

}  // namespace tensor_ops
