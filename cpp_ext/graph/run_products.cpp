// The steps of a run that multiply by matrices.
#include <array>
#include <span>

#include "graph/run.h"
#include "ops/fused.h"
#include "ops/heads.h"

namespace tensor_ops {

LinearInput Executor::Run::input_for(const Op& op, const PackedMatrix& w) {
    const float* x = buffer(op.inputs[0]);
    std::byte* xq = executor.quantized_.data();
    const Activations kind = activations(op);
    if (kind != Activations::f32 && is_quantized(w.type())) {
        if (quantized_input != op.inputs[0] || quantized_as != kind ||
            quantized_for != &w.table()) {
            if (quantized_busy) meet();
            quantize_activations(worker, w.table(), kind, x, batch.n_tokens, w.k(), xq);
            meet();
            quantized_input = op.inputs[0];
            quantized_as = kind;
            quantized_for = &w.table();
        }
        quantized_busy = true;
    }
    return {x, kind, xq, batch.n_tokens};
}

void Executor::Run::linear(const Op& op, const PackedMatrix& w, float* y) {
    const LinearInput input = input_for(op, w);
    tensor_ops::linear(worker, w, input.x, input.kind, input.xq, input.rows, y);
}

void Executor::Run::linear_many(const Op& op) {
    std::array<const PackedMatrix*, largest_many> matrices;
    std::array<float*, largest_many> outputs;
    std::size_t n = 0;
    const PackedMatrix* quantized = nullptr;
    bool together = true;
    const auto add = [&](int slot, int output) {
        const PackedMatrix& w = matrix(slot);
        matrices[n] = &w;
        outputs[n++] = buffer(output);
        if (!is_quantized(w.type())) return;
        if (!quantized) quantized = &w;
        together &= &w.table() == &quantized->table();
    };
    add(op.weight, op.output);
    for (std::size_t i = 0; i < op.more_weights.size(); ++i)
        add(op.more_weights[i], op.more_outputs[i]);
    if (!together)
        for (std::size_t i = 0; i < n; ++i) linear(op, *matrices[i], outputs[i]);
    else
        tensor_ops::linear_many(worker, std::span(matrices).first(n),
                                input_for(op, quantized ? *quantized : *matrices[0]),
                                std::span(outputs).first(n));
}

void Executor::Run::glu_linear(const Op& op) {
    const PackedMatrix &gate = matrix(op.weight), &up = matrix(op.more_weights[0]);
    const Glu activation = op.gelu ? Glu::gelu : Glu::silu;
    float* y = buffer(op.output);
    if (alike(gate, up)) {
        const LinearInput input = input_for(op, is_quantized(gate.type()) ? gate : up);
        return tensor_ops::glu_linear(worker, gate, up, activation, input, products(), y);
    }
    linear(op, gate, y);
    linear(op, up, products());
    meet();
    glu(worker, table, activation, y, products(), y, batch.n_tokens * gate.n());
}

void Executor::Run::quantized_norm(const Op& op, std::size_t index) {
    const std::size_t n = batch.n_tokens, k = std::get<Vector>(weight(op)).n;
    const float* w = vector(op);
    const Activations kind = activations(op);
    const PackedMatrix* reader = nullptr;
    for (const int slot : executor.matrices_[index])
        if (!reader && is_quantized(matrix(slot).type())) reader = &matrix(slot);
    if (!reader || kind == Activations::f32)
        return rms_norm(worker, table, buffer(op.inputs[0]), w, op.eps, buffer(op.output), n, k);
    if (quantized_busy) meet();
    norm_and_quantize(worker, table, reader->table(), buffer(op.inputs[0]), w, op.eps,
                      buffer(op.output), kind, n, k, executor.quantized_.data());
    quantized_input = op.output;  // plan_barriers put a barrier before its readers
    quantized_as = kind;
    quantized_for = &reader->table();
    quantized_busy = true;
}

void Executor::Run::experts(const Op& op) {
    const auto& experts = std::get<Experts>(weight(op));
    // The experts of one row with one input take it as other products do, which may have
    // quantised it.
    const bool ready = op.shared && batch.n_tokens == 1;
    if (ready)
        input_for(op, *experts[0]);
    else if (quantized_busy)
        meet();
    const ExpertTask task{
        .x = buffer(op.inputs[0]),
        .shared = op.shared,
        .route = buffer(op.inputs[1]),
        .rows = batch.n_tokens,
        .n_used = op.n_used,
        .kind = activations(op),
        .quantized = executor.quantized_.data(),
        .ready = ready,
        .scratch = reinterpret_cast<float*>(executor.expert_rows_.data()),
        .chosen = reinterpret_cast<std::uint32_t*>(executor.chosen_.data()),
        .y = buffer(op.output),
    };
    expert_linear(worker, experts, task);
    if (ready) return;
    quantized_input = -1;
    quantized_busy = true;
}

void Executor::Run::heads(const Op& op) {
    if (quantized_busy) meet();
    head_linear(worker, std::get<Experts>(weight(op)),
                {.x = buffer(op.inputs[0]),
                 .rows = batch.n_tokens,
                 .kind = activations(op),
                 .quantized = executor.quantized_.data(),
                 .scratch = reinterpret_cast<float*>(executor.expert_rows_.data()),
                 .y = buffer(op.output)});
    quantized_input = -1;
    quantized_busy = true;
}

}  // namespace tensor_ops
