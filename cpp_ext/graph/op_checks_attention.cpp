// Checks of ops: rotation, keys and values, and attention to all positions, or to those that an
// index selects.
#include "graph/op_checks_by_kind.h"
#include "ops/blocks.h"
#include "ops/groups.h"
#include "ops/sparse.h"

namespace tensor_ops {

void OpCheck::table(int buffer, std::size_t offset) const {
    const std::size_t dims = graph_.buffers[at(buffer)].width, most = op_.head_dim - offset;
    require(dims % 2 == 0 && dims <= most, "the table's width is " + std::to_string(dims) +
                                               ", expected an even number up to head_dim " +
                                               std::to_string(most));
}

void OpCheck::group() const {
    require(op_.every >= 1 && op_.every <= most_in_group, "every is " + std::to_string(op_.every) +
                                                              ", expected 1 to " +
                                                              std::to_string(most_in_group));
}

void OpCheck::heads(std::size_t n) const {
    require(n >= 1 && n <= 1u << 20, "the number of heads is out of range");
    require(op_.head_dim >= 1 && op_.head_dim <= attention_max_head_dim,
            "head_dim is " + std::to_string(op_.head_dim) + ", expected 1 to " +
                std::to_string(attention_max_head_dim));
}

// Checks a buffer with the positions that each token sees.
void OpCheck::selection(int buffer) const {
    const std::size_t n = graph_.buffers[at(buffer)].width;
    require(n >= 1 && n <= most_selected, "selects " + std::to_string(n) +
                                              " positions, expected 1 to " +
                                              std::to_string(most_selected));
}

void OpCheck::block_size() const {
    require(op_.block_size >= 1 && op_.block_size <= most_in_group,
            "block_size is " + std::to_string(op_.block_size) + ", expected 1 to " +
                std::to_string(most_in_group));
}

// Checks how many blocks each token sees.
void OpCheck::blocks(std::size_t n) const {
    block_size();
    require(n >= 1 && n <= most_selected / op_.block_size,
            std::to_string(n) + " blocks of " + std::to_string(op_.block_size) +
                " positions; expected 1 to " + std::to_string(most_selected) + " positions");
}

// Checks a buffer with the values of n heads.
void OpCheck::values_of_heads(int buffer, std::size_t n) const {
    const std::size_t all = graph_.buffers[at(buffer)].width;
    require(all >= n && all % n == 0 && all / n <= attention_max_head_dim,
            "buffer '" + graph_.buffers[at(buffer)].name + "' has width " + std::to_string(all) +
                ", no values of " + std::to_string(n) + " heads");
}

void OpCheck::rope() const {
    heads(op_.n_heads);
    width(0, op_.n_heads * op_.head_dim);
    width_of(op_.output, op_.n_heads * op_.head_dim);
    require(op_.offset < op_.head_dim, "offset is not below head_dim");
    table(op_.inputs[1], op_.offset);
    require(op_.inputs[1] != op_.output, "cannot overwrite its table");
}

void OpCheck::kv_append() const {
    heads(op_.n_kv_heads);
    width(0, op_.n_kv_heads * op_.head_dim);
    values_of_heads(op_.inputs[1], op_.n_kv_heads);
}

void OpCheck::latent_append() const {
    heads(op_.n_kv_heads);
    width(0, op_.n_kv_heads * op_.head_dim);
}

void OpCheck::rope_append() const {
    table(op_.inputs[2]);
    kv_append();
}

void OpCheck::attention() const {
    heads(op_.n_heads);
    heads(op_.n_kv_heads);
    require(op_.n_heads % op_.n_kv_heads == 0, "n_heads is no multiple of n_kv_heads");
    apart(0);
    width(0, op_.n_heads * op_.head_dim);
    require(op_.cap >= 0.0f, "softcap is below 0");
    require(op_.alibi >= 0.0f, "alibi is below 0");
    require(!op_.chunked || op_.window > 0, "a chunk has no positions");
    values_of_heads(op_.output, op_.n_heads);
}

void OpCheck::index_append() const {
    heads(1);
    group();
    width(0, op_.head_dim);
}

void OpCheck::index_select() const {
    heads(op_.n_heads);
    group();
    width(0, op_.n_heads * op_.head_dim);
    width(1, op_.n_heads);
    selection(op_.output);
    apart(0);
    apart(1);
}

void OpCheck::sparse_attention() const {
    attention();
    selection(op_.inputs[1]);
    apart(1);
}

void OpCheck::block_mean() const {
    block_size();
    alike();
}

void OpCheck::choose_blocks() const {
    heads(op_.n_heads);
    width(0, op_.n_heads * op_.head_dim);
    apart(0);
    require(op_.n_chosen >= 1 && op_.n_chosen <= most_selected,
            "n_chosen is " + std::to_string(op_.n_chosen) + ", expected 1 to " +
                std::to_string(most_selected));
    require(op_.n_local <= (op_.pooled ? 0 : op_.n_chosen), "n_local is too large");
    const BlockCall call{.q = nullptr,
                         .n_heads = op_.n_heads,
                         .block_size = op_.block_size,
                         .n_chosen = op_.n_chosen,
                         .n_local = op_.n_local,
                         .pooled = op_.pooled,
                         .out = nullptr,
                         .sequences = {}};
    blocks(call.n_entries());
    width_of(op_.output, call.n_choices() * call.n_entries());
}

void OpCheck::block_attention() const {
    attention();
    apart(1);
    const std::size_t n = op_.n_choices;
    require(n >= 1 && op_.n_kv_heads % n == 0 && input_width(1) % n == 0,
            "the KV heads, or the blocks, do not divide into n_choices");
    blocks(input_width(1) / n);
}

void OpCheck::pool_groups() const {
    group();
    require(op_.n_parts == 1 || op_.n_parts == 2, "n_parts is not 1 or 2");
    require(output_width() >= 1 && output_width() <= attention_max_head_dim,
            "the output's width is " + std::to_string(output_width()) + ", expected 1 to " +
                std::to_string(attention_max_head_dim));
    for (std::size_t i = 0; i < 2; ++i) {
        width(i, op_.n_parts * output_width());
        apart(i);
    }
}

void OpCheck::group_attention() const {
    heads(op_.n_heads);
    group();
    require(op_.window >= 1, "window is 0");
    for (std::size_t i = 0; i < op_.inputs.size(); ++i) apart(i);
    width(0, op_.n_heads * op_.head_dim);
    width_of(op_.output, op_.n_heads * op_.head_dim);
}

void OpCheck::sparse_group_attention() const {
    group_attention();
    selection(op_.inputs[1]);
}

}  // namespace tensor_ops
