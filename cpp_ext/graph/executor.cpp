#include "graph/executor.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <functional>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "ops/fused.h"
#include "ops/slices.h"

namespace tensor_ops {

float* Executor::buffer(int index, const Batch& batch) const {
    const auto b = static_cast<std::size_t>(index);
    if (graph_.buffers[b].external) return static_cast<float*>(batch.external[b]);
    // Offsets scale with n_tokens: the buffers of a small batch lie close together, and the rest of
    // the arena is never touched.
    return reinterpret_cast<float*>(arena_.data()) + offsets_[b] * batch.n_tokens;
}

void Executor::check_sequences(const Op& op, const Layer& layer, std::size_t n_tokens) const {
    std::size_t found = 0;
    for (const CachedSequence& sequence : layer.sequences) {
        const KvCache& cache = sequence.cache;
        if (!cache.k) throw std::invalid_argument("this graph needs k_cache and v_cache");
        if (cache.n_kv_heads != op.n_kv_heads || cache.head_dim != op.head_dim)
            throw std::invalid_argument("the KV cache has " + std::to_string(cache.n_kv_heads) +
                                        " heads of " + std::to_string(cache.head_dim) +
                                        ", expected " + std::to_string(op.n_kv_heads) + " of " +
                                        std::to_string(op.head_dim));
        if (cache.type != layer.sequences[0].cache.type)
            throw std::invalid_argument("the sequences' KV caches are of different types");
        if (sequence.past > cache.capacity || sequence.n_tokens > cache.capacity - sequence.past)
            throw std::invalid_argument(
                std::to_string(sequence.past) + " + " + std::to_string(sequence.n_tokens) +
                " positions do not fit the KV cache of " + std::to_string(cache.capacity));
        found += sequence.n_tokens;
    }
    if (found != n_tokens)
        throw std::invalid_argument("the sequences have " + std::to_string(found) +
                                    " tokens, and the batch has " + std::to_string(n_tokens));
}

std::int32_t* Executor::ids(std::size_t op) const {
    return reinterpret_cast<std::int32_t*>(ids_.data()) + embeds_before_[op] * max_tokens_;
}

// Checks that no two external buffers overlap in part if an op writes one of them.  They may be the
// same memory: an elementwise op then overwrites its input.
void Executor::check_external(const Batch& batch) const {
    const auto begin = [&](std::size_t b) {
        return static_cast<const std::byte*>(batch.external[b]);
    };
    const auto end = [&](std::size_t b) { return begin(b) + external_bytes_[b] * batch.n_tokens; };
    const std::size_t n = graph_.buffers.size();
    for (std::size_t a = 0; a < n; ++a)
        for (std::size_t b = 0; b < n; ++b) {
            if (a == b || !external_bytes_[a] || !external_bytes_[b] || !written_[b]) continue;
            if (begin(a) == begin(b) && end(a) == end(b)) continue;
            if (std::less<>()(begin(a), end(b)) && std::less<>()(begin(b), end(a)))
                throw std::invalid_argument("buffers '" + graph_.buffers[a].name + "' and '" +
                                            graph_.buffers[b].name + "' overlap, and '" +
                                            graph_.buffers[b].name +
                                            "' is written; expected separate arrays");
        }
}

void Executor::check_layer(const Layer& layer, const Batch& batch) const {
    for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        const Op& op = graph_.ops[i];
        if (op.kind == OpKind::kv_append || op.kind == OpKind::rope_append ||
            op.kind == OpKind::attention) {
            check_sequences(op, layer, batch.n_tokens);
        } else if (op.kind == OpKind::embed) {
            const auto& rows =
                std::get<RawRows>((*layer.weights)[static_cast<std::size_t>(op.weight)]);
            const std::int32_t* checked = ids(i);
            for (std::size_t t = 0; t < batch.n_tokens; ++t)
                if (checked[t] < 0 || static_cast<std::size_t>(checked[t]) >= rows.n)
                    throw std::invalid_argument("token " + std::to_string(checked[t]) +
                                                " is not in the vocabulary of " +
                                                std::to_string(rows.n));
        }
    }
}

// One thread's run through the ops, with the weights of one layer.
struct Executor::Run {
    Executor& executor;
    const Layer& layer;
    const Batch& batch;
    const KernelTable& table;
    const Worker& worker;
    int quantized_input = -1;  // the buffer whose quantised form `quantized_` holds, or -1
    Activations quantized_as = Activations::f32;
    const KernelTable* quantized_for = nullptr;  // the layout is that of this table
    bool quantized_busy = false;                 // may another thread still read it?

    float* buffer(int index) const { return executor.buffer(index, batch); }
    const Weight& weight(const Op& op) const {
        return (*layer.weights)[static_cast<std::size_t>(op.weight)];
    }

    void meet() {
        worker.barrier();
        quantized_busy = false;
    }

    const PackedMatrix& matrix(int slot) const {
        return *std::get<std::shared_ptr<const PackedMatrix>>(
            (*layer.weights)[static_cast<std::size_t>(slot)]);
    }
    Activations activations(const Op& op) const {
        return op.activations.value_or(activations_for(batch.n_tokens));
    }
    float* products() const { return reinterpret_cast<float*>(executor.products_.data()); }

    // An op's input in the form that w takes; quantises it if `quantized_` does not hold that yet.
    LinearInput input_for(const Op& op, const PackedMatrix& w) {
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

    void linear(const Op& op, const PackedMatrix& w, float* y) {
        const LinearInput input = input_for(op, w);
        tensor_ops::linear(worker, w, input.x, input.kind, input.xq, input.rows, y);
    }

    void linear_many(const Op& op) {
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

    void glu_linear(const Op& op) {
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

    void quantized_norm(const Op& op, std::size_t index) {
        const std::size_t n = batch.n_tokens, k = std::get<Vector>(weight(op)).n;
        const float* w = std::get<Vector>(weight(op)).data;
        const Activations kind = activations(op);
        const PackedMatrix* reader = nullptr;
        for (const int slot : executor.matrices_[index])
            if (!reader && is_quantized(matrix(slot).type())) reader = &matrix(slot);
        if (!reader || kind == Activations::f32)
            return rms_norm(worker, table, buffer(op.inputs[0]), w, op.eps, buffer(op.output), n,
                            k);
        if (quantized_busy) meet();
        norm_and_quantize(worker, table, reader->table(), buffer(op.inputs[0]), w, op.eps,
                          buffer(op.output), kind, n, k, executor.quantized_.data());
        quantized_input = op.output;  // plan_barriers put a barrier before its readers
        quantized_as = kind;
        quantized_for = &reader->table();
        quantized_busy = true;
    }

    void experts(const Op& op) {
        if (quantized_busy) meet();
        const ExpertTask task{
            .x = buffer(op.inputs[0]),
            .shared = op.shared,
            .route = buffer(op.inputs[1]),
            .rows = batch.n_tokens,
            .n_used = op.n_used,
            .kind = activations(op),
            .quantized = executor.quantized_.data(),
            .scratch = reinterpret_cast<float*>(executor.expert_rows_.data()),
            .chosen = reinterpret_cast<std::uint32_t*>(executor.chosen_.data()),
            .y = buffer(op.output),
        };
        expert_linear(worker, std::get<Experts>(weight(op)), task);
        quantized_input = -1;
        quantized_busy = true;
    }

    void append(const float* k, const float* v) {
        for (const CachedSequence& s : layer.sequences) {
            kv_append(worker, table, k, v, s.n_tokens, s.past, s.cache);
            const std::size_t floats = s.n_tokens * s.cache.n_kv_heads * s.cache.head_dim;
            k += floats;
            v += floats;
        }
    }

    void append_rotated(const Op& op, const float* k, const float* v, const float* angles,
                        std::size_t n_dims) {
        for (const CachedSequence& s : layer.sequences) {
            rope_append(worker, table, k, v, angles, n_dims, op.interleaved, s.n_tokens, s.past,
                        s.cache);
            const std::size_t floats = s.n_tokens * s.cache.n_kv_heads * s.cache.head_dim;
            k += floats;
            v += floats;
            angles += s.n_tokens * n_dims;
        }
    }

    void step(std::size_t index) {
        const Op& op = executor.graph_.ops[index];
        if (executor.barrier_before_[index]) meet();
        const std::size_t n = batch.n_tokens;
        const auto in = [&](std::size_t i) { return buffer(op.inputs[i]); };
        const auto width = [&](int b) {
            return executor.graph_.buffers[static_cast<std::size_t>(b)].width;
        };
        switch (op.kind) {
            case OpKind::embed: {
                embed(worker, table, std::get<RawRows>(weight(op)), executor.ids(index), n,
                      op.scale, buffer(op.output));
                break;
            }
            case OpKind::rms_norm:
                rms_norm(worker, table, in(0), std::get<Vector>(weight(op)).data, op.eps,
                         buffer(op.output), n, width(op.output));
                break;
            case OpKind::head_norm:
                rms_norm(worker, table, in(0), std::get<Vector>(weight(op)).data, op.eps,
                         buffer(op.output), n * op.n_heads, width(op.output) / op.n_heads);
                break;
            case OpKind::bias:
                bias(worker, table, in(0), std::get<Vector>(weight(op)).data, buffer(op.output), n,
                     width(op.output));
                break;
            case OpKind::linear: linear(op, matrix(op.weight), buffer(op.output)); break;
            case OpKind::linear_many: linear_many(op); break;
            case OpKind::linear_add:
                linear_add(worker, matrix(op.weight), input_for(op, matrix(op.weight)), in(1),
                           products(), buffer(op.output));
                break;
            case OpKind::glu_linear: glu_linear(op); break;
            case OpKind::quantized_norm: return quantized_norm(op, index);
            case OpKind::rope:
                rope(worker, table, in(0), in(1), buffer(op.output), n, op.n_heads, op.head_dim,
                     width(op.inputs[1]), op.interleaved);
                break;
            case OpKind::kv_append: append(in(0), in(1)); break;
            case OpKind::rope_append:
                append_rotated(op, in(0), in(1), in(2), width(op.inputs[2]));
                break;
            case OpKind::attention:
                attention(worker, table,
                          {.q = in(0),
                           .n_q = n,
                           .n_heads = op.n_heads,
                           .cache = {},
                           .n_kv = 0,
                           .scale = op.scale,
                           .window = op.window,
                           .softcap = op.cap,
                           .out = buffer(op.output),
                           .sequences = layer.sequences},
                          reinterpret_cast<float*>(executor.parts_.data()));
                break;
            case OpKind::add:
                for_elements(worker, n * width(op.output), [&](std::size_t i, std::size_t count) {
                    table.add(in(0) + i, in(1) + i, buffer(op.output) + i, count);
                });
                break;
            case OpKind::swiglu:
            case OpKind::geglu:
                glu(worker, table, op.kind == OpKind::swiglu ? Glu::silu : Glu::gelu, in(0), in(1),
                    buffer(op.output), n * width(op.output));
                break;
            case OpKind::softcap:
                softcap(worker, in(0), op.cap, buffer(op.output), n * width(op.output));
                break;
            case OpKind::route:
                route(worker, table, in(0), n, width(op.inputs[0]), op.n_used, op.normalized,
                      buffer(op.output));
                break;
            case OpKind::expert_linear: experts(op); break;
            case OpKind::expert_sum:
                expert_sum(worker, in(0), in(1), n, width(op.output), op.n_used, buffer(op.output));
                break;
            case OpKind::merge_add:
                merge_add(worker, table, in(0), {in(1), width(op.inputs[1]), op.quantized},
                          buffer(op.output), n, width(op.output),
                          width(op.inputs[1]) / width(op.output));
                break;
            case OpKind::take_columns:
                take_columns(worker, table, {in(0), width(op.inputs[0]), op.quantized},
                             buffer(op.output), n, width(op.output), op.offset);
                break;
            case OpKind::put_columns:
                put_columns(worker, table, in(0),
                            {buffer(op.output), width(op.output), op.quantized}, n,
                            width(op.inputs[0]), op.offset);
                break;
            case OpKind::round_q8:
                round_q8(worker, table, in(0), buffer(op.output), n, width(op.output));
                break;
            case OpKind::silu:
            case OpKind::gelu: {
                auto* const kernel = op.kind == OpKind::silu ? table.silu : table.gelu_tanh;
                for_elements(worker, n * width(op.output), [&](std::size_t i, std::size_t count) {
                    kernel(in(0) + i, buffer(op.output) + i, count);
                });
                break;
            }
            case OpKind::multiply:
                multiply(worker, in(0), in(1), buffer(op.output), n * width(op.output));
                break;
        }
        if (op.output == quantized_input) quantized_input = -1;
        for (const int output : op.more_outputs)
            if (output == quantized_input) quantized_input = -1;
    }

    void all() {
        for (std::size_t i = 0; i < executor.graph_.ops.size(); ++i) step(i);
    }

    // All steps; the time of a step ends when the last thread has done it.
    void timed() {
        using Clock = std::chrono::steady_clock;
        auto last = Clock::now();
        for (std::size_t i = 0; i < batch.seconds.size(); ++i) {
            step(i);
            meet();
            if (worker.index() != 0) continue;
            const auto now = Clock::now();
            batch.seconds[i] += std::chrono::duration<double>(now - last).count();
            last = now;
        }
    }
};

void Executor::run(std::span<const Layer> layers, const Batch& batch) {
    if (batch.n_tokens > max_tokens_)
        throw std::invalid_argument("n_tokens is " + std::to_string(batch.n_tokens) +
                                    "; this executor takes up to " + std::to_string(max_tokens_));
    for (std::size_t i = 0; i < graph_.ops.size(); ++i)
        if (const Op& op = graph_.ops[i]; op.kind == OpKind::embed)
            std::copy_n(static_cast<const std::int32_t*>(
                            batch.external[static_cast<std::size_t>(op.inputs[0])]),
                        batch.n_tokens, ids(i));
    std::size_t n_sequences = 0;
    for (const Layer& layer : layers) {
        check_layer(layer, batch);
        n_sequences = std::max(n_sequences, layer.sequences.size());
    }
    check_external(batch);
    if (batch.n_tokens == 0) return;
    const std::size_t parts = n_sequences * attention_workspace_floats * sizeof(float);
    if (parts_.size() != 0 && parts_.size() < parts) parts_ = AlignedBytes(parts);
    const KernelTable& table = kernels();
    run_team(
        [&](const Worker& worker) {
            for (const Layer& layer : layers) {
                if (&layer != layers.data()) worker.barrier();
                Run run{*this, layer, batch, table, worker};
                if (batch.seconds.empty())
                    run.all();
                else
                    run.timed();
            }
            if (worker.index() == 0) meetings_ = worker.barriers();
        },
        batch.max_threads, joining_);
}

}  // namespace tensor_ops
