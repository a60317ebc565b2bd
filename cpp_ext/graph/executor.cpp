#include "graph/executor.h"

#include <algorithm>
#include <new>
#include <stdexcept>
#include <string>

#include "dispatch.h"
#include "ops/slices.h"

namespace tensor_ops {
Executor::Executor(Graph graph, std::size_t max_tokens)
    : graph_(std::move(graph)), max_tokens_(max_tokens) {
    graph_.check();
    if (max_tokens > largest_batch)
        throw std::invalid_argument("max_tokens is " + std::to_string(max_tokens) +
                                    "; expected at most " + std::to_string(largest_batch));
    plan_buffers();
    plan_barriers();
    for (const Op& op : graph_.ops)
        if (op.kind == OpKind::expert_linear) joining_ = Joining::before_first_barrier;
}

// Gives each internal buffer a place for the ops between its first and last use, so that buffers
// which do not live at the same time share memory.
void Executor::plan_buffers() {
    const std::size_t n = graph_.buffers.size();
    std::vector<std::size_t> first(n, SIZE_MAX), last(n, 0);
    std::size_t quantized_bytes = 0, parts_floats = 0, expert_floats = 0;
    for (std::size_t i = 0; i < graph_.ops.size(); ++i) {
        const Op& op = graph_.ops[i];
        const auto use = [&](int buffer) {
            const auto b = static_cast<std::size_t>(buffer);
            first[b] = std::min(first[b], i);
            last[b] = std::max(last[b], i);
        };
        for (const int input : op.inputs) use(input);
        if (op.output >= 0) use(op.output);
        if (op.kind == OpKind::attention) parts_floats = attention_workspace_floats;
        if (op.kind == OpKind::linear && op.activations != Activations::f32) {
            const auto kind = op.activations.value_or(Activations::q16);
            const Buffer& x = graph_.buffers[static_cast<std::size_t>(op.inputs[0])];
            quantized_bytes =
                std::max(quantized_bytes, quantized_activation_bytes(kind, max_tokens_, x.width));
        }
        if (op.kind == OpKind::expert_linear) {
            const std::size_t k = graph_.buffers[static_cast<std::size_t>(op.inputs[0])].width /
                                  (op.shared ? 1 : op.n_used);
            const std::size_t y = graph_.buffers[static_cast<std::size_t>(op.output)].width;
            expert_floats = std::max(expert_floats, k + y / op.n_used);
            if (op.activations != Activations::f32)
                quantized_bytes =
                    std::max(quantized_bytes,
                             quantized_activation_bytes(op.activations.value_or(Activations::q16),
                                                        std::max(max_tokens_, op.n_used), k));
        }
    }
    offsets_.assign(n, 0);
    std::size_t total = 0;
    for (std::size_t b = 0; b < n; ++b) {
        if (graph_.buffers[b].external) continue;
        // The lowest place that no buffer alive at the same time overlaps.
        std::size_t offset = 0;
        for (bool moved = true; moved;) {
            moved = false;
            for (std::size_t o = 0; o < b; ++o) {
                const bool alive =
                    !graph_.buffers[o].external && first[o] <= last[b] && first[b] <= last[o];
                const bool overlaps = offset < offsets_[o] + graph_.buffers[o].width &&
                                      offsets_[o] < offset + graph_.buffers[b].width;
                if (alive && overlaps) {
                    offset = offsets_[o] + graph_.buffers[o].width;
                    moved = true;
                }
            }
        }
        offsets_[b] = offset;
        total = std::max(total, offset + graph_.buffers[b].width);
    }
    std::size_t bytes;
    if (__builtin_mul_overflow(max_tokens_ * sizeof(float), total, &bytes)) throw std::bad_alloc();
    arena_ = AlignedBytes(bytes);
    if (__builtin_mul_overflow(max_tokens_ * sizeof(float), expert_floats, &bytes))
        throw std::bad_alloc();
    expert_rows_ = AlignedBytes(bytes);
    quantized_ = AlignedBytes(quantized_bytes);
    parts_ = AlignedBytes(parts_floats * sizeof(float));
}

// An op waits for the team if it reads what was written, or writes what was read or written, since
// all last met; by place in memory, as buffers share it.  The KV cache counts as one more buffer.
void Executor::plan_barriers() {
    const std::size_t n = graph_.buffers.size();
    std::vector<char> written(n + 1), read(n + 1);
    const auto touched = [&](const std::vector<char>& marks, std::size_t b) {
        for (std::size_t o = 0; o < n; ++o) {
            const bool same =
                o == b || (b < n && !graph_.buffers[o].external && !graph_.buffers[b].external &&
                           offsets_[o] < offsets_[b] + graph_.buffers[b].width &&
                           offsets_[b] < offsets_[o] + graph_.buffers[o].width);
            if (marks[o] && same) return true;
        }
        return b == n && marks[n] != 0;
    };
    for (const Op& op : graph_.ops) {
        std::vector<std::size_t> inputs(op.inputs.begin(), op.inputs.end()), outputs;
        if (op.output >= 0) outputs.push_back(static_cast<std::size_t>(op.output));
        if (op.kind == OpKind::kv_append) outputs.push_back(n);
        if (op.kind == OpKind::attention) inputs.push_back(n);
        bool conflict = false;
        for (const std::size_t b : inputs) conflict |= touched(written, b);
        for (const std::size_t b : outputs) conflict |= touched(written, b) || touched(read, b);
        if (conflict) {
            std::fill(written.begin(), written.end(), 0);
            std::fill(read.begin(), read.end(), 0);
        }
        for (const std::size_t b : inputs) read[b] = 1;
        for (const std::size_t b : outputs) written[b] = 1;
        barrier_before_.push_back(conflict);
    }
}

float* Executor::buffer(int index, const Batch& batch) const {
    const auto b = static_cast<std::size_t>(index);
    if (graph_.buffers[b].external) return static_cast<float*>(batch.external[b]);
    return reinterpret_cast<float*>(arena_.data()) + offsets_[b] * max_tokens_;
}

void Executor::check_batch(const std::vector<Weight>& weights, const Batch& batch) const {
    if (batch.n_tokens > max_tokens_)
        throw std::invalid_argument("n_tokens is " + std::to_string(batch.n_tokens) +
                                    "; this executor takes up to " + std::to_string(max_tokens_));
    for (const Op& op : graph_.ops) {
        if (op.kind == OpKind::kv_append || op.kind == OpKind::attention) {
            const KvCache& cache = batch.cache;
            if (!cache.k) throw std::invalid_argument("this graph needs k_cache and v_cache");
            if (cache.n_kv_heads != op.n_kv_heads || cache.head_dim != op.head_dim)
                throw std::invalid_argument("the KV cache has " + std::to_string(cache.n_kv_heads) +
                                            " heads of " + std::to_string(cache.head_dim) +
                                            ", expected " + std::to_string(op.n_kv_heads) + " of " +
                                            std::to_string(op.head_dim));
            if (batch.past > cache.capacity || batch.n_tokens > cache.capacity - batch.past)
                throw std::invalid_argument(
                    std::to_string(batch.past) + " + " + std::to_string(batch.n_tokens) +
                    " positions do not fit the KV cache of " + std::to_string(cache.capacity));
        } else if (op.kind == OpKind::embed) {
            const auto& rows = std::get<RawRows>(weights[static_cast<std::size_t>(op.weight)]);
            const auto* ids = reinterpret_cast<const std::int32_t*>(buffer(op.inputs[0], batch));
            for (std::size_t t = 0; t < batch.n_tokens; ++t)
                if (ids[t] < 0 || static_cast<std::size_t>(ids[t]) >= rows.n)
                    throw std::invalid_argument("token " + std::to_string(ids[t]) +
                                                " is not in the vocabulary of " +
                                                std::to_string(rows.n));
        }
    }
}

// One thread's way through the ops.
struct Executor::Run {
    Executor& executor;
    const std::vector<Weight>& weights;
    const Batch& batch;
    const KernelTable& table;
    const Worker& worker;
    int quantized_input = -1;  // whose quantised form `quantized_` holds, and which
    Activations quantized_as = Activations::f32;
    const KernelTable* quantized_for = nullptr;  // their layouts differ
    bool quantized_busy = false;                 // may another thread still read it?

    float* buffer(int index) const { return executor.buffer(index, batch); }
    const Weight& weight(const Op& op) const {
        return weights[static_cast<std::size_t>(op.weight)];
    }

    void meet() {
        worker.barrier();
        quantized_busy = false;
    }

    void linear(const Op& op) {
        const auto& w = *std::get<std::shared_ptr<const PackedMatrix>>(weight(op));
        const float* x = buffer(op.inputs[0]);
        std::byte* xq = executor.quantized_.data();
        const Activations kind = op.activations.value_or(activations_for(batch.n_tokens));
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
        tensor_ops::linear(worker, w, x, kind, xq, batch.n_tokens, buffer(op.output));
    }

    void experts(const Op& op) {
        if (quantized_busy) meet();
        const ExpertTask task{
            .x = buffer(op.inputs[0]),
            .shared = op.shared,
            .route = buffer(op.inputs[1]),
            .rows = batch.n_tokens,
            .n_used = op.n_used,
            .kind = op.activations.value_or(activations_for(batch.n_tokens)),
            .quantized = executor.quantized_.data(),
            .scratch = reinterpret_cast<float*>(executor.expert_rows_.data()),
            .y = buffer(op.output),
        };
        expert_linear(worker, std::get<Experts>(weight(op)), task);
        quantized_input = -1;
        quantized_busy = true;
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
                const auto* ids = reinterpret_cast<const std::int32_t*>(in(0));
                embed(worker, table, std::get<RawRows>(weight(op)), ids, n, op.scale,
                      buffer(op.output));
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
            case OpKind::linear: linear(op); break;
            case OpKind::rope:
                rope(worker, table, in(0), in(1), buffer(op.output), n, op.n_heads, op.head_dim,
                     width(op.inputs[1]), op.interleaved);
                break;
            case OpKind::kv_append:
                kv_append(worker, table, in(0), in(1), n, batch.past, batch.cache);
                break;
            case OpKind::attention:
                attention(worker, table,
                          {.q = in(0),
                           .n_q = n,
                           .n_heads = op.n_heads,
                           .cache = batch.cache,
                           .n_kv = batch.past + n,
                           .scale = op.scale,
                           .window = op.window,
                           .softcap = op.cap,
                           .out = buffer(op.output)},
                          reinterpret_cast<float*>(executor.parts_.data()));
                break;
            case OpKind::swiglu:
            case OpKind::add: {
                auto* const kernel = op.kind == OpKind::add ? table.add : table.swiglu;
                for_elements(worker, n * width(op.output), [&](std::size_t i, std::size_t count) {
                    kernel(in(0) + i, in(1) + i, buffer(op.output) + i, count);
                });
                break;
            }
            case OpKind::geglu:
                geglu(worker, table, in(0), in(1), buffer(op.output), n * width(op.output));
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
    }
};

void Executor::run(const std::vector<Weight>& weights, const Batch& batch) {
    check_batch(weights, batch);
    if (batch.n_tokens == 0) return;
    const KernelTable& table = kernels();
    run_team(
        [&](const Worker& worker) {
            Run run{*this, weights, batch, table, worker};
            for (std::size_t i = 0; i < graph_.ops.size(); ++i) run.step(i);
        },
        batch.max_threads, joining_);
}

}  // namespace tensor_ops
