"""Qwen3's mixtures of experts (arXiv:2505.09388): a router chooses, for each token, a few of many
small feed-forward networks."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models.config import ModelConfig
from airllm.models.qwen3 import attention
from airllm.models.qwen3 import embed as embed
from airllm.models.qwen3 import head as head


def layer(c: ModelConfig, activations: Activations, window: int) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    hidden, ffn, experts = c.hidden_size, c.intermediate_size, c.n_experts
    x = attention(g, c, window)  # [n, hidden]

    h = g.rms_norm(x, g.weight("ffn_norm", hidden), c.rms_norm_eps)  # [n, hidden]
    logits = g.linear(h, g.weight("ffn_gate_inp", experts, hidden))  # [n, experts]
    route = g.route(logits, c.n_experts_used, normalized=c.normalized_experts)  # [n, 2 * used]
    gate = g.expert_linear(h, route, g.weight("ffn_gate_exps", experts, ffn, hidden))
    up = g.expert_linear(h, route, g.weight("ffn_up_exps", experts, ffn, hidden))
    h = g.swiglu(gate, up)  # [n, used * ffn]
    h = g.expert_linear(h, route, g.weight("ffn_down_exps", experts, hidden, ffn))
    g.add(x, g.expert_sum(h, route), out=x)  # [n, hidden], of [n, used * hidden]
    return g.build()
