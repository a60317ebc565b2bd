// One thread's run through the ops of a graph, with the weights of one layer.
#pragma once

#include "graph/executor.h"
#include "ops/recurrent.h"

namespace tensor_ops {

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
    std::size_t width(int index) const {
        return executor.graph_.buffers[static_cast<std::size_t>(index)].width;
    }
    const Weight& weight(const Op& op) const {
        return (*layer.weights)[static_cast<std::size_t>(op.weight)];
    }
    // The op's vector; null if it has none.
    const float* vector(const Op& op) const {
        return op.weight < 0 ? nullptr : std::get<Vector>(weight(op)).data;
    }
    // Likewise of a norm, whose weight is 1 if it has none.
    const float* vector_or_ones(const Op& op) const {
        return op.weight < 0 ? executor.ones_.data() : vector(op);
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
    static std::span<float> floats(AlignedBytes& bytes) {
        return {reinterpret_cast<float*>(bytes.data()), bytes.size() / sizeof(float)};
    }
    float* products() const { return reinterpret_cast<float*>(executor.products_.data()); }

    // run_products.cpp
    // An op's input in the form that w takes; quantises it if `quantized_` does not hold that yet.
    LinearInput input_for(const Op& op, const PackedMatrix& w);
    void linear(const Op& op, const PackedMatrix& w, float* y);
    void linear_many(const Op& op);
    void glu_linear(const Op& op);
    void quantized_norm(const Op& op, std::size_t index);
    void experts(const Op& op);
    void heads(const Op& op);

    // run_attention.cpp
    void append(const float* k, const float* v);
    void append_rotated(const Op& op, const float* k, const float* v, const float* angles,
                        std::size_t n_dims);
    void attention(const Op& op, std::size_t index);
    void index_append(const Op& op);
    void index_select(const Op& op);
    void sparse_attention(const Op& op);
    void choose_blocks(const Op& op);
    void block_attention(const Op& op);
    void pool_groups(const Op& op);
    void group_attention(const Op& op);

    // run_recurrent.cpp
    void conv(const Op& op, std::size_t index);
    void delta_rule(const Op& op, std::size_t index);
    void ssm_scan(const Op& op, std::size_t index);
    void selective_scan(const Op& op, std::size_t index);
    // The memory that the op has of each sequence.
    std::span<const RecurrentSequence> recurrent(std::size_t index);
    std::vector<RecurrentSequence> states = {};

    // run.cpp
    void step(std::size_t index);
    void all();
    // All steps; the time of a step ends when the last thread has done it.
    void timed();
};

}  // namespace tensor_ops
