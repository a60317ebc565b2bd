"""Qwen3 (arXiv:2505.09388): Qwen2 with each head of Q and K normalised, in place of biases."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")
    return r.config()


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "attn_norm")
    x = g.add(x, blocks.attention(g, c, layer, h, normed="heads"), out=x)
    h = blocks.norm(g, c, x, "ffn_norm")
    g.add(x, blocks.experts(g, c, h) if layer.has_experts else blocks.swiglu_mlp(g, c, h), out=x)
    return g.build()


def _no_window(config: HFReader) -> dict[str, object]:
    config.no_window("qwen3")
    return {}


# The language model of Qwen3-VL is the same; see qwen2 for its rotation.
FAMILY = Family(
    ("qwen3", "qwen3vl"),
    (
        HuggingFace("qwen3", "qwen3", _no_window, defaults={"head_dim": 128}),
        HuggingFace(
            "qwen3_vl_text",
            "qwen3vl",
            _no_window,
            pictures="qwen3_vl",
            defaults={"head_dim": 128, "rope_theta": 5e6},
        ),
    ),
    configure,
    layer,
)
