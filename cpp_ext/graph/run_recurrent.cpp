// The ops that have recurrent memory.
#include "graph/run.h"

namespace tensor_ops {

std::span<const RecurrentSequence> Executor::Run::recurrent(std::size_t index) {
    states.clear();
    for (const CachedSequence& s : layer.sequences)
        states.push_back(
            {s.n_tokens, s.recurrent.data() + executor.recurrent_first_[index], s.past});
    return states;
}

void Executor::Run::conv(const Op& op, std::size_t index) {
    causal_conv(worker, table,
                {.x = buffer(op.inputs[0]),
                 .channels = width(op.output),
                 .taps = op.taps,
                 .dilation = op.dilation,
                 .weight = vector(op),
                 .silu = op.silu,
                 .y = buffer(op.output),
                 .sequences = recurrent(index)});
}

void Executor::Run::delta_rule(const Op& op, std::size_t index) {
    const std::size_t n_v_heads = op.n_heads, n_k_heads = op.n_kv_heads;
    tensor_ops::delta_rule(worker, table,
                           {.q = buffer(op.inputs[0]),
                            .k = buffer(op.inputs[1]),
                            .v = buffer(op.inputs[2]),
                            .log_decay = buffer(op.inputs[3]),
                            .beta = buffer(op.inputs[4]),
                            .n_k_heads = n_k_heads,
                            .n_v_heads = n_v_heads,
                            .d_k = width(op.inputs[0]) / n_k_heads,
                            .d_v = width(op.output) / n_v_heads,
                            .decay_by_channel = width(op.inputs[3]) != n_v_heads,
                            .sharing = op.tiled ? HeadSharing::tiled : HeadSharing::grouped,
                            .scale = op.scale,
                            .out = buffer(op.output),
                            .sequences = recurrent(index)});
}

void Executor::Run::ssm_scan(const Op& op, std::size_t index) {
    const auto weights = [&](int slot) {
        return std::get<Vector>((*layer.weights)[static_cast<std::size_t>(slot)]).data;
    };
    const std::size_t n_heads = width(op.inputs[1]);
    tensor_ops::ssm_scan(worker, table,
                         {.x = buffer(op.inputs[0]),
                          .dt = buffer(op.inputs[1]),
                          .b = buffer(op.inputs[2]),
                          .c = buffer(op.inputs[3]),
                          .a = weights(op.weight),
                          .skip = weights(op.more_weights[0]),
                          .dt_bias = weights(op.more_weights[1]),
                          .n_heads = n_heads,
                          .n_groups = op.n_groups,
                          .head_dim = width(op.output) / n_heads,
                          .d_state = width(op.inputs[2]) / op.n_groups,
                          .dt_min = op.dt_min,
                          .dt_max = op.dt_max,
                          .y = buffer(op.output),
                          .sequences = recurrent(index)});
}

void Executor::Run::selective_scan(const Op& op, std::size_t index) {
    tensor_ops::selective_scan(worker, table,
                               {.x = buffer(op.inputs[0]),
                                .dt = buffer(op.inputs[1]),
                                .b = buffer(op.inputs[2]),
                                .c = buffer(op.inputs[3]),
                                .a = vector(op),
                                .channels = width(op.output),
                                .d_state = width(op.inputs[2]),
                                .y = buffer(op.output),
                                .sequences = recurrent(index)});
}

}  // namespace tensor_ops
