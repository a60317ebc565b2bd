#include "graph/run.h"

#include <chrono>

#include "ops/elementwise.h"
#include "ops/fused.h"
#include "ops/groups.h"
#include "ops/residuals.h"
#include "ops/slices.h"
#include "ops/streams.h"

namespace tensor_ops {

void Executor::Run::step(std::size_t index) {
    const Op& op = executor.graph_.ops[index];
    if (executor.barrier_before_[index]) meet();
    const std::size_t n = batch.n_tokens;
    const auto in = [&](std::size_t i) { return buffer(op.inputs[i]); };
    switch (op.kind) {
        case OpKind::embed: {
            embed(worker, table, std::get<RawRows>(weight(op)), executor.ids(index), n, op.scale,
                  buffer(op.output));
            break;
        }
        case OpKind::rms_norm:
            rms_norm(worker, table, in(0), vector(op), op.eps, buffer(op.output), n,
                     width(op.output));
            break;
        case OpKind::layer_norm:
            layer_norm(worker, table, in(0), vector_or_ones(op), op.eps, buffer(op.output), n,
                       width(op.output));
            break;
        case OpKind::head_norm:
            rms_norm(worker, table, in(0), vector_or_ones(op), op.eps, buffer(op.output),
                     n * op.n_heads, width(op.output) / op.n_heads);
            break;
        case OpKind::bias:
            bias(worker, table, in(0), vector(op), buffer(op.output), n, width(op.output));
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
                 width(op.inputs[1]), op.interleaved, op.offset);
            break;
        case OpKind::kv_append: append(in(0), in(1)); break;
        case OpKind::latent_append: append(in(0), nullptr); break;
        case OpKind::rope_append:
            append_rotated(op, in(0), in(1), in(2), width(op.inputs[2]));
            break;
        case OpKind::attention: attention(op, index); break;
        case OpKind::index_append: index_append(op); break;
        case OpKind::index_select: index_select(op); break;
        case OpKind::pool_groups: pool_groups(op); break;
        case OpKind::group_append:
            append_groups(worker, table, in(0), op.head_dim, op.every, &CachedSequence::groups,
                          layer.sequences);
            break;
        case OpKind::group_attention:
        case OpKind::sparse_group_attention: group_attention(op); break;
        case OpKind::sparse_attention: sparse_attention(op); break;
        case OpKind::block_mean:
            block_mean(worker, {.x = in(0),
                                .width = width(op.output),
                                .block_size = op.block_size,
                                .y = buffer(op.output),
                                .sequences = recurrent(index)});
            break;
        case OpKind::choose_blocks: choose_blocks(op); break;
        case OpKind::block_attention: block_attention(op); break;
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
            route(worker, table,
                  {.logits = in(0),
                   .rows = n,
                   .n_experts = width(op.inputs[0]),
                   .n_used = op.n_used,
                   .gating = op.gating,
                   .bias = vector(op),
                   .n_groups = op.n_groups,
                   .n_groups_used = op.n_groups_used,
                   .group_score = op.group_score,
                   .normalized = op.normalized,
                   .scale = op.scale,
                   .out = buffer(op.output)});
            break;
        case OpKind::route_to:
            route(worker, table,
                  {.logits = in(0),
                   .rows = n,
                   .n_experts = width(op.inputs[0]),
                   .n_used = op.n_used,
                   .gating = op.gating,
                   .normalized = op.normalized,
                   .scale = op.scale,
                   .given = in(1),
                   .out = buffer(op.output)});
            break;
        case OpKind::expert_linear: experts(op); break;
        case OpKind::expert_bias:
            expert_bias(worker, table,
                        {.x = in(0),
                         .route = in(1),
                         .biases = vector(op),
                         .rows = n,
                         .n_used = op.n_used,
                         .n_experts = std::get<Vector>(weight(op)).count,
                         .n = width(op.output) / op.n_used,
                         .y = buffer(op.output)});
            break;
        case OpKind::expert_scale:
            expert_scale(worker, {.x = in(0),
                                  .route = in(1),
                                  .factors = vector(op),
                                  .rows = n,
                                  .n_used = op.n_used,
                                  .n_experts = std::get<Vector>(weight(op)).n,
                                  .n = width(op.output) / op.n_used,
                                  .y = buffer(op.output)});
            break;
        case OpKind::scale_shares:
            scale_shares(worker, in(0), vector(op), std::get<Vector>(weight(op)).n, n, op.n_used,
                         buffer(op.output));
            break;
        case OpKind::expert_sum:
            expert_sum(worker, in(0), in(1), n, width(op.output), op.n_used, buffer(op.output));
            break;
        case OpKind::head_linear: heads(op); break;
        case OpKind::take_head_columns:
            take_columns(worker, table, {in(0), width(op.inputs[0]) / op.n_heads, false},
                         buffer(op.output), n * op.n_heads, width(op.output) / op.n_heads,
                         op.offset);
            break;
        case OpKind::join_heads: {
            const Rows joined{buffer(op.output), width(op.output) / op.n_heads, false};
            const std::size_t first = width(op.inputs[0]) / op.n_heads;
            put_columns(worker, table, in(0), joined, n * op.n_heads, first, 0);
            put_columns(worker, table, in(1), joined, n * op.n_heads, joined.stride - first, first);
            break;
        }
        case OpKind::merge_add:
            merge_add(worker, table, in(0), {in(1), width(op.inputs[1]), op.quantized},
                      buffer(op.output), n, width(op.output),
                      width(op.inputs[1]) / width(op.output));
            break;
        case OpKind::take_columns:
            take_columns(worker, table, {in(0), width(op.inputs[0]), op.quantized},
                         buffer(op.output), n, width(op.output), op.offset);
            break;
        case OpKind::layer_columns:
            take_columns(worker, table, {in(0), width(op.inputs[0]), false}, buffer(op.output), n,
                         width(op.output), layer.number * width(op.output));
            break;
        case OpKind::put_columns:
            put_columns(worker, table, in(0), {buffer(op.output), width(op.output), op.quantized},
                        n, width(op.inputs[0]), op.offset);
            break;
        case OpKind::round_q8:
            round_q8(worker, table, in(0), buffer(op.output), n, width(op.output));
            break;
        case OpKind::sigmoid:
        case OpKind::silu:
        case OpKind::softplus:
        case OpKind::gelu:
        case OpKind::gelu_erf: {
            auto* const kernel = op.kind == OpKind::sigmoid    ? table.sigmoid
                                 : op.kind == OpKind::silu     ? table.silu
                                 : op.kind == OpKind::softplus ? table.softplus
                                 : op.kind == OpKind::gelu     ? table.gelu_tanh
                                                               : table.gelu_erf;
            for_elements(worker, n * width(op.output), [&](std::size_t i, std::size_t count) {
                kernel(in(0) + i, buffer(op.output) + i, count);
            });
            break;
        }
        case OpKind::relu_squared:
            relu_squared(worker, in(0), buffer(op.output), n * width(op.output));
            break;
        case OpKind::xielu:
            xielu(worker, table, in(0), {op.positive, op.negative, op.beta, op.eps},
                  buffer(op.output), n * width(op.output));
            break;
        case OpKind::swiglu_oai:
            swiglu_oai(worker, table, in(0), in(1), op.alpha, op.limit, op.shift, buffer(op.output),
                       n * width(op.output));
            break;
        case OpKind::scale:
            if (op.weight >= 0 && std::get<Vector>(weight(op)).n > 1)
                scale_columns(worker, in(0), op.scale, vector(op), buffer(op.output), n,
                              width(op.output));
            else
                scale(worker, in(0), op.weight < 0 ? op.scale : op.scale * *vector(op),
                      buffer(op.output), n * width(op.output));
            break;
        case OpKind::conv: conv(op, index); break;
        case OpKind::delta_rule: delta_rule(op, index); break;
        case OpKind::ssm_scan: ssm_scan(op, index); break;
        case OpKind::selective_scan: selective_scan(op, index); break;
        case OpKind::l2_norm:
            l2_norm(worker, table, in(0), op.eps, buffer(op.output), n * op.n_heads,
                    width(op.output) / op.n_heads);
            break;
        case OpKind::log_decay: {
            const auto& a = std::get<Vector>(weight(op));
            const auto& bias =
                std::get<Vector>((*layer.weights)[static_cast<std::size_t>(op.more_weights[0])]);
            log_decay(worker, table, in(0), bias.data, a.data, a.n, op.bound, buffer(op.output), n,
                      width(op.output));
            break;
        }
        case OpKind::residual_attention:
            residual_attention(worker, {.x = in(0),
                                        .earlier = in(1),
                                        .stride = width(op.inputs[1]),
                                        .n_earlier = op.n_earlier,
                                        .weight = vector(op),
                                        .eps = op.eps,
                                        .rows = n,
                                        .n = width(op.output),
                                        .y = buffer(op.output)});
            break;
        case OpKind::group_norm:
            group_norm(worker, table, in(0), vector(op), op.eps, buffer(op.output), n,
                       width(op.output), op.n_groups);
            break;
        case OpKind::mix_streams:
            mix_streams(worker, in(0), in(1), buffer(op.output), n, op.n_streams,
                        width(op.inputs[1]) / op.n_streams, width(op.inputs[0]) / op.n_streams);
            break;
        case OpKind::hyper_factors: {
            const auto& base =
                std::get<Vector>((*layer.weights)[static_cast<std::size_t>(op.more_weights[0])]);
            hyper_factors(worker, table,
                          {.x = in(0),
                           .scale = vector(op),
                           .base = base.data,
                           .rows = n,
                           .width = width(op.output),
                           .n_streams = op.n_streams,
                           .n_iterations = op.n_iterations,
                           .eps = op.eps,
                           .y = buffer(op.output)});
            break;
        }
        case OpKind::hyper_mix:
            hyper_mix(worker, in(0), in(1), in(2), buffer(op.output), n, op.n_streams,
                      width(op.inputs[1]));
            break;
        case OpKind::add_to_streams:
            add_to_streams(worker, in(0), in(1), buffer(op.output), n, width(op.inputs[1]),
                           width(op.output) / width(op.inputs[1]), op.first);
            break;
        case OpKind::match_rms:
            match_rms(worker, in(0), in(1), op.eps, buffer(op.output), n, width(op.inputs[1]),
                      width(op.output) / width(op.inputs[1]));
            break;
        case OpKind::stream_products:
            stream_products(worker, in(0), in(1), op.scale, buffer(op.output), n,
                            width(op.inputs[0]) / op.n_streams, op.n_streams);
            break;
        case OpKind::signed_root:
            signed_root(worker, in(0), op.least, buffer(op.output), n * width(op.output));
            break;
        case OpKind::keep_above:
            keep_above(worker, in(0), op.scale, buffer(op.output), n, width(op.output));
            break;
        case OpKind::scale_rows:
            scale_rows(worker, in(0), in(1), buffer(op.output), width(op.inputs[1]), n,
                       width(op.output));
            break;
        case OpKind::clamp:
            clamp(worker, in(0), op.low, op.high, buffer(op.output), n * width(op.output));
            break;
        case OpKind::multiply:
            multiply(worker, in(0), in(1), buffer(op.output), n * width(op.output));
            break;
    }
    if (op.output == quantized_input) quantized_input = -1;
    for (const int output : op.more_outputs)
        if (output == quantized_input) quantized_input = -1;
}

void Executor::Run::all() {
    for (std::size_t i = 0; i < executor.graph_.ops.size(); ++i) step(i);
}

void Executor::Run::timed() {
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

}  // namespace tensor_ops
