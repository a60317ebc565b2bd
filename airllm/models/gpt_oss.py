"""gpt-oss (arXiv:2508.10925): experts with biases and a clamped activation, attention with sinks, a
window on every other layer, and YaRN."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family

GATE_LIMIT = 7.0  # GGUF files have no key for it
BIASES = frozenset(
    [
        *("attn_q", "attn_k", "attn_v", "attn_output"),
        *("ffn_gate_inp", "ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"),
    ]
)
PERIOD = 2


def configure(r: ConfigReader) -> ModelConfig:
    windows = r.windows(period=PERIOD)
    return r.config(
        layers=[LayerConfig(window, has_experts=True) for window in windows],
        biases=BIASES,
        **r.experts(),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "attn_norm")
    x = g.add(x, blocks.attention(g, c, layer, h, sinks=True), out=x)
    h = blocks.norm(g, c, x, "post_attention_norm")
    g.add(x, blocks.experts(g, c, h, gate_limit=GATE_LIMIT), out=x)
    return g.build()


FAMILY = Family(("gpt-oss",), (), configure, layer)
