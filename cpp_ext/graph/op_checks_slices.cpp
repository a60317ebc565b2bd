// Checks of ops: columns, heads and rows of Q8_0 as parts of wider buffers.
#include "graph/op_checks_by_kind.h"

namespace tensor_ops {

// The width of each head of a buffer.
std::size_t OpCheck::of_each_head(int buffer) const {
    const Buffer& b = graph_.buffers[at(buffer)];
    require(op_.n_heads >= 1 && b.width % op_.n_heads == 0,
            "buffer '" + b.name + "' has width " + std::to_string(b.width) + ", no " +
                std::to_string(op_.n_heads) + " heads");
    return b.width / op_.n_heads;
}

void OpCheck::whole_blocks(std::size_t n) const {
    require(n % quant_block == 0,
            std::to_string(n) + " values are no whole blocks of " + std::to_string(quant_block));
}

// Checks that `whole` has as many columns from the offset on as `part` is wide.
void OpCheck::columns(int whole, int part) const {
    const std::size_t n = graph_.buffers[at(part)].width, all = graph_.buffers[at(whole)].width;
    require(whole != part, "cannot overwrite its input");
    require(op_.offset <= all && n <= all - op_.offset,
            "columns from " + std::to_string(op_.offset) + " to " + std::to_string(op_.offset + n) +
                " of " + std::to_string(all));
    if (!op_.quantized) return;
    whole_blocks(n);
    whole_blocks(op_.offset);
}

void OpCheck::head_linear() const {
    of_each_head(op_.inputs[0]);
    of_each_head(op_.output);
    apart(0);
}

void OpCheck::take_head_columns() const {
    const std::size_t own = of_each_head(op_.inputs[0]), taken = of_each_head(op_.output);
    apart(0);
    require(op_.offset <= own && taken <= own - op_.offset,
            "columns from " + std::to_string(op_.offset) + " to " +
                std::to_string(op_.offset + taken) + " of " + std::to_string(own));
}

void OpCheck::join_heads() const {
    const std::size_t a = of_each_head(op_.inputs[0]), b = of_each_head(op_.inputs[1]);
    apart(0);
    apart(1);
    width_of(op_.output, op_.n_heads * (a + b));
}

void OpCheck::layer_columns() const {
    apart(0);
    require(output_width() >= 1 && input_width(0) % output_width() == 0,
            "the input's width is no multiple of the output's");
}

void OpCheck::round_q8() const {
    whole_blocks(output_width());
    alike();
}

void OpCheck::merge_add() const {
    width(0, output_width());
    require(op_.inputs[1] != op_.output, "cannot overwrite its parts");
    require(output_width() >= 1 && input_width(1) % output_width() == 0,
            "the parts' width is no multiple of the output's");
    if (op_.quantized) whole_blocks(output_width());
}

void OpCheck::take_columns() const { columns(op_.inputs[0], op_.output); }

void OpCheck::put_columns() const {
    require(graph_.buffers[at(op_.output)].external, "writes a part of its buffer");
    columns(op_.output, op_.inputs[0]);
}

}  // namespace tensor_ops
