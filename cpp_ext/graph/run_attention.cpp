// The ops that write and read keys and values: attention to all positions, or to those that an
// index selects.
#include "graph/run.h"
#include "ops/blocks.h"
#include "ops/fused.h"
#include "ops/groups.h"
#include "ops/sparse.h"

namespace tensor_ops {

void Executor::Run::append(const float* k, const float* v) {
    for (const CachedSequence& s : layer.sequences) {
        kv_append(worker, table, k, v, s.n_tokens, s.past, s.cache);
        const std::size_t heads = s.n_tokens * s.cache.n_kv_heads;
        k += heads * s.cache.head_dim;
        if (v) v += heads * s.cache.value_dim;
    }
}

void Executor::Run::append_rotated(const Op& op, const float* k, const float* v,
                                   const float* angles, std::size_t n_dims) {
    for (const CachedSequence& s : layer.sequences) {
        rope_append(worker, table, k, v, angles, n_dims, op.interleaved, s.n_tokens, s.past,
                    s.cache);
        const std::size_t heads = s.n_tokens * s.cache.n_kv_heads;
        k += heads * s.cache.head_dim;
        v += heads * s.cache.value_dim;
        angles += s.n_tokens * n_dims;
    }
}

void Executor::Run::attention(const Op& op, std::size_t index) {
    tensor_ops::attention(worker, table,
                          {.q = buffer(op.inputs[0]),
                           .n_q = batch.n_tokens,
                           .n_heads = op.n_heads,
                           .cache = {},
                           .n_kv = 0,
                           .scale = op.scale,
                           .window = op.window,
                           .chunked = op.chunked,
                           .softcap = op.cap,
                           .sinks = vector(op),
                           .slopes = op.alibi > 0.0f ? executor.slopes_[index].data() : nullptr,
                           .out = buffer(op.output),
                           .sequences = layer.sequences},
                          reinterpret_cast<float*>(executor.parts_.data()));
}

void Executor::Run::index_append(const Op& op) {
    const float* k = buffer(op.inputs[0]);
    if (op.every > 1)
        return append_groups(worker, table, k, op.head_dim, op.every, &CachedSequence::index,
                             layer.sequences);
    for (const CachedSequence& s : layer.sequences) {
        kv_append(worker, table, k, nullptr, s.n_tokens, s.past, s.index);
        k += s.n_tokens * op.head_dim;
    }
}

void Executor::Run::index_select(const Op& op) {
    tensor_ops::index_select(worker, table,
                             {.q = buffer(op.inputs[0]),
                              .weights = buffer(op.inputs[1]),
                              .n_heads = op.n_heads,
                              .n_selected = width(op.output),
                              .out = buffer(op.output),
                              .sequences = layer.sequences,
                              .every = op.every},
                             floats(executor.scores_));
}

void Executor::Run::sparse_attention(const Op& op) {
    tensor_ops::sparse_attention(worker, table,
                                 {.q = buffer(op.inputs[0]),
                                  .selection = buffer(op.inputs[1]),
                                  .n_heads = op.n_heads,
                                  .n_selected = width(op.inputs[1]),
                                  .n_dense = width(op.inputs[1]),
                                  .scale = op.scale,
                                  .sinks = vector(op),
                                  .out = buffer(op.output),
                                  .sequences = layer.sequences},
                                 reinterpret_cast<float*>(executor.parts_.data()),
                                 floats(executor.sparse_));
}

void Executor::Run::choose_blocks(const Op& op) {
    tensor_ops::choose_blocks(worker, table,
                              {.q = buffer(op.inputs[0]),
                               .n_heads = op.n_heads,
                               .block_size = op.block_size,
                               .n_chosen = op.n_chosen,
                               .n_local = op.n_local,
                               .pooled = op.pooled,
                               .out = buffer(op.output),
                               .sequences = layer.sequences},
                              floats(executor.scores_));
}

void Executor::Run::block_attention(const Op& op) {
    const std::size_t n_entries = width(op.inputs[1]) / op.n_choices;
    tensor_ops::sparse_attention(worker, table,
                                 {.q = buffer(op.inputs[0]),
                                  .selection = buffer(op.inputs[1]),
                                  .n_heads = op.n_heads,
                                  .n_selected = n_entries,
                                  .n_dense = n_entries * op.block_size - 1,
                                  .blocks = true,
                                  .block_size = op.block_size,
                                  .n_choices = op.n_choices,
                                  .scale = op.scale,
                                  .out = buffer(op.output),
                                  .sequences = layer.sequences},
                                 reinterpret_cast<float*>(executor.parts_.data()),
                                 floats(executor.sparse_));
}

void Executor::Run::pool_groups(const Op& op) {
    tensor_ops::pool_groups(
        worker, table,
        {.x = buffer(op.inputs[0]),
         .gate = buffer(op.inputs[1]),
         .bias = vector(op),
         .every = op.every,
         .n_parts = op.n_parts,
         .width = width(op.output),
         .pending = op.of_index ? &CachedSequence::index_pending : &CachedSequence::pending,
         .y = buffer(op.output),
         .sequences = layer.sequences});
}

void Executor::Run::group_attention(const Op& op) {
    const bool selects = op.kind == OpKind::sparse_group_attention;
    tensor_ops::group_attention(worker, table,
                                {.q = buffer(op.inputs[0]),
                                 .selection = selects ? buffer(op.inputs[1]) : nullptr,
                                 .n_heads = op.n_heads,
                                 .n_selected = selects ? width(op.inputs[1]) : 0,
                                 .window = op.window,
                                 .every = op.every,
                                 .scale = op.scale,
                                 .sinks = vector(op),
                                 .out = buffer(op.output),
                                 .sequences = layer.sequences},
                                floats(executor.sparse_));
}

}  // namespace tensor_ops
