// Every kind of op: the form that fits is taken, and a change of any one thing about it that lets
// it read or write outside of its buffers, or over what it still reads, is refused.  The bounds of
// numbers are in test_op_bounds.cpp.

#include "op_forms.h"

using graphs::Builder;
using graphs::OpKind;
using op_forms::built;
using op_forms::Form;
using op_forms::forms;
using op_forms::refused;
using tensor_ops::DType;
using tensor_ops::Executor;
using tensor_ops::Graph;
using tensor_ops::Op;

namespace {

// An op with all buffers of one width that writes to its input i.
void refused_in_place(OpKind kind, std::size_t i, std::size_t width, void (*set)(Op&),
                      std::source_location where = std::source_location::current()) {
    refused(
        kind,
        [&](Graph& graph, Op& op) {
            for (auto& buffer : graph.buffers) buffer.width = width;
            set(op);
            op.output = op.inputs[i];
        },
        " -> 'in': cannot overwrite its", where);
}

}  // namespace

TEST(there_is_a_form_of_every_op_and_it_is_taken) {
    std::vector<bool> seen(std::size(tensor_ops::signatures));
    for (const Form& form : forms()) {
        seen[static_cast<std::size_t>(form.kind)] = true;
        Executor(built(form).graph, 2);
    }
    for (std::size_t kind = 0; kind < seen.size(); ++kind)
        check::that(seen[kind], op_kind_name(static_cast<OpKind>(kind)));
}

TEST(each_width_that_must_fit_is_checked) {
    for (const Form& form : forms())
        for (std::size_t i = 0; i < form.tied.size(); ++i) {
            Builder b = built(form);
            b.graph.buffers[i].width += 1;
            if (form.tied[i])
                check::refused([&] { Executor(b.graph, 2); }, op_kind_name(form.kind));
            else
                Executor(b.graph, 2);
        }
}

TEST(each_input_output_and_weight_must_be_there) {
    for (const Form& form : forms()) {
        const Builder b = built(form);
        const auto check_refused = [&](void (*change)(Op&)) {
            Graph graph = b.graph;
            change(graph.ops[0]);
            check::refused([&] { Executor(graph, 2); }, op_kind_name(form.kind));
        };
        check_refused([](Op& op) { op.inputs.push_back(0); });
        check_refused([](Op& op) { op.inputs.pop_back(); });
        check_refused([](Op& op) { op.inputs[0] = -1; });
        check_refused([](Op& op) { op.inputs.back() = 99; });
        check_refused([](Op& op) { op.output = op.output < 0 ? 0 : -1; });
        check_refused([](Op& op) { op.output = 99; });
        // An op whose weight is optional may go without it.
        if (form.n_weights == 0 || tensor_ops::signature(form.kind).weights.least > 0)
            check_refused([](Op& op) { op.weight = op.weight < 0 ? 0 : -1; });
        check_refused([](Op& op) { op.weight = 99; });
        check_refused([](Op& op) { op.more_outputs.push_back(op.inputs[0]); });
        check_refused([](Op& op) { op.more_weights.push_back(0); });
        Graph behind = b.graph;  // the number after the last
        behind.ops[0].inputs[0] = static_cast<int>(behind.buffers.size());
        check::refused([&] { Executor(behind, 2); }, "an input is no buffer");
        if (form.outputs.empty()) continue;
        behind = b.graph;
        behind.ops[0].output = static_cast<int>(behind.buffers.size());
        check::refused([&] { Executor(behind, 2); }, "the output is no buffer");
    }
    for (const int bad : {-1, 99}) {
        refused(
            OpKind::linear_many, [&](Graph&, Op& op) { op.more_outputs[0] = bad; },
            " -> 'out': the output is no buffer");
        for (const OpKind kind : {OpKind::linear_many, OpKind::glu_linear})
            refused(
                kind, [&](Graph&, Op& op) { op.more_weights[0] = bad; },
                " -> 'out': the weight is no slot");
    }
}

TEST(an_op_that_reads_what_it_would_have_overwritten_is_refused) {
    using enum OpKind;
    const auto nothing = [](Op&) {};
    const auto one = [](Op& op) { op.n_used = 1; };
    const auto from_start = [](Op& op) { op.offset = 0; };
    const auto one_head = [](Op& op) {
        op.n_heads = op.n_kv_heads = 1;
        op.head_dim = 16;
    };
    for (const OpKind kind : {linear, linear_many, glu_linear})
        refused_in_place(kind, 0, 64, nothing);
    refused_in_place(linear_add, 0, 64, nothing);
    refused_in_place(attention, 0, 16, one_head);
    const auto one_choice = [](Op& op) {
        op.n_heads = op.n_kv_heads = op.n_choices = op.block_size = 1;
        op.head_dim = op.n_chosen = 16;
    };
    refused_in_place(choose_blocks, 0, 16, one_choice);
    const auto one_windowed = [](Op& op) {
        op.n_heads = op.window = 1;
        op.head_dim = 16;
    };
    refused_in_place(group_attention, 0, 16, one_windowed);
    refused_in_place(hyper_factors, 0, 3, nothing);
    for (const std::size_t input : {0u, 1u}) {
        refused_in_place(block_attention, input, 16, one_choice);
        refused_in_place(stream_products, input, 1, [](Op& op) { op.n_streams = 1; });
        refused_in_place(sparse_attention, input, 16, one_head);
        refused_in_place(sparse_group_attention, input, 16, one_windowed);
        refused_in_place(hyper_mix, 1 + input, 3, [](Op& op) { op.n_streams = 1; });
        refused_in_place(pool_groups, input, 16, [](Op& op) { op.n_parts = 1; });
        refused_in_place(index_select, input, 16, [](Op& op) {
            op.n_heads = 16;
            op.head_dim = 1;
        });
    }
    refused_in_place(rope, 1, 16, one_head);
    refused_in_place(route, 0, 2, one);
    for (const std::size_t input : {0u, 1u}) {
        refused_in_place(expert_linear, input, 2, one);
        refused_in_place(expert_sum, input, 2, one);
    }
    refused_in_place(merge_add, 1, 64, nothing);
    for (const std::size_t input : {0u, 1u})
        refused_in_place(mix_streams, input, 1, [](Op& op) { op.n_streams = 1; });
    for (const OpKind kind : {add_to_streams, match_rms}) refused_in_place(kind, 1, 64, nothing);
    refused_in_place(layer_columns, 0, 64, nothing);
    refused_in_place(head_linear, 0, 16, one_head);
    refused_in_place(take_head_columns, 0, 16, one_head);
    for (const std::size_t input : {0u, 1u}) refused_in_place(join_heads, input, 32, one_head);
    for (const OpKind kind : {take_columns, put_columns}) refused_in_place(kind, 0, 64, from_start);
    refused(
        linear_many, [](Graph&, Op& op) { op.more_outputs[0] = op.inputs[0]; },
        " -> 'out': cannot overwrite its input");
    refused(
        linear_many, [](Graph&, Op& op) { op.more_outputs[0] = op.output; },
        " -> 'out': writes a buffer twice");
}

TEST(what_is_kept_in_blocks_has_whole_blocks) {
    using enum OpKind;
    refused(
        round_q8, [](Graph& graph, Op&) { graph.buffers[0].width = graph.buffers[1].width = 33; },
        " -> 'out': 33 values are no whole blocks");
    refused(
        merge_add,
        [](Graph& graph, Op& op) {
            for (const int i : {0, 2}) graph.buffers[static_cast<std::size_t>(i)].width = 48;
            op.quantized = true;  // two parts of a block and a half, in whole blocks together
        },
        " -> 'out': 48 values are no whole blocks");
    for (const OpKind kind : {take_columns, put_columns}) {
        refused(
            kind,
            [](Graph& graph, Op& op) {
                op.quantized = true;
                for (auto& buffer : graph.buffers)
                    if (buffer.width == 64) buffer.width = 33;
            },
            " -> 'out': 33 values are no whole blocks");
        refused(
            kind,
            [](Graph&, Op& op) {
                op.quantized = true;
                op.offset = 5;
            },
            " -> 'out': 5 values are no whole blocks");
        refused(kind, [](Graph&, Op& op) { op.offset = SIZE_MAX - 31; }, " -> 'out': columns from");
    }
}

TEST(blocks_are_kept_in_external_buffers_that_no_op_takes_for_floats) {
    using enum OpKind;
    for (const bool quantized : {false, true}) {
        Builder b;
        const int blocks = b.external("blocks", 64), x = b.external("x", 64);
        b.op(take_columns, {blocks}, x).quantized = quantized;
        Graph reads = b.graph, writes = b.graph, inside = b.graph;
        Op silu{};
        silu.kind = OpKind::silu;
        silu.inputs = {blocks};
        silu.output = x;
        reads.ops.push_back(silu);
        silu.inputs = {x};
        silu.output = blocks;
        writes.ops.push_back(silu);
        inside.buffers[0].external = false;
        if (!quantized) {
            for (const Graph& graph : {reads, writes, inside}) Executor(graph, 2);
            continue;
        }
        check::refused([&] { Executor(reads, 2); }, "silu -> 'x': takes 'blocks' for float32");
        check::refused([&] { Executor(writes, 2); },
                       "silu -> 'blocks': takes 'blocks' for float32");
        check::refused([&] { Executor(inside, 2); },
                       "take_columns -> 'x': 'blocks' is internal, or no rows of whole blocks");
    }
    refused(
        put_columns, [](Graph& graph, Op&) { graph.buffers[1].external = false; },
        " -> 'out': writes a part of its buffer");
}

TEST(token_ids_come_from_outside_and_no_op_writes_them) {
    using enum OpKind;
    refused(
        embed, [](Graph& graph, Op&) { graph.buffers[0].external = false; },
        " -> 'out': its tokens 'in' do not come from outside");
    Builder b;
    const int ids = b.external("ids", 1), y = b.external("y", 64), x = b.external("x", 64);
    b.op(embed, {ids}, y, b.slot("rows"));
    Op& many = b.op(linear_many, {x}, y, b.slot("w"));
    many.more_outputs = {ids};
    many.more_weights = {b.slot("v")};
    check::refused([&] { Executor(b.graph, 2); }, "its tokens 'ids' do not come from outside");
}

TEST(rows_and_batches_beyond_any_model_are_refused) {
    Builder b;
    const std::size_t most = tensor_ops::longest_row;
    b.external("x", most);
    Executor(b.graph, tensor_ops::largest_batch);
    check::refused([&] { Executor(b.graph, tensor_ops::largest_batch + 1); },
                   "max_tokens is 16777217; expected at most 16777216");
    b.external("y", most + 1);
    check::refused([&] { Executor(b.graph, 1); },
                   "buffer 'y' has width 1073741825; expected at most 1073741824");
}

TEST(vectors_and_experts_of_another_shape_or_type_are_refused) {
    const arrays::Floats short_vector = arrays::normal(15, 1), long_vector = arrays::normal(64, 1);
    const auto refused_weight = [](OpKind kind, const tensor_ops::Weight& weight,
                                   const char* words) {
        for (const Form& form : forms())
            if (form.kind == kind)
                check::refused([&] { tensor_ops::check_weights(built(form).graph, {weight}); },
                               words);
    };
    for (const OpKind kind :
         {OpKind::rms_norm, OpKind::quantized_norm, OpKind::bias, OpKind::head_norm})
        refused_weight(kind, graphs::vector(short_vector), "weight 'w' is [1, 15], expected [1, ");
    refused_weight(OpKind::head_norm, graphs::vector(long_vector), "[1, 64], expected [1, 16]");
    const auto expert = [](DType type, std::size_t n, std::size_t k) {
        return std::get<std::shared_ptr<const tensor_ops::PackedMatrix>>(
            graphs::packed(matrices::random(type, n, k, 1)));
    };
    const auto good = expert(DType::q8_0, 16, 32);
    refused_weight(OpKind::expert_linear, tensor_ops::Experts{}, "has no experts");
    refused_weight(OpKind::expert_linear, graphs::vector(long_vector),
                   "is no list of PackedMatrix");
    for (const auto& other :
         {expert(DType::q8_0, 17, 32), expert(DType::q8_0, 16, 64), expert(DType::q4_0, 16, 32)})
        refused_weight(OpKind::expert_linear, tensor_ops::Experts{good, other},
                       "different shapes, types or instruction sets");
    refused_weight(OpKind::expert_linear, tensor_ops::Experts{expert(DType::q8_0, 17, 32)},
                   "is [34, 64], expected [32, 64]");
    const auto head = expert(DType::q8_0, 8, 32);
    refused_weight(OpKind::head_linear, tensor_ops::Experts{}, "has no heads");
    refused_weight(OpKind::head_linear, tensor_ops::Experts{head, head}, "has 2 heads, expected 4");
    refused_weight(OpKind::head_linear, tensor_ops::Experts{head, head, head, head},
                   "is [32, 128], expected [32, 64]");
}
