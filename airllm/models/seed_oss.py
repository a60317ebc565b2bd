"""Seed-OSS: Qwen2 with wider heads and other names."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(biases=r.optional_biases(*BIASES, "attn_output"))


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "attn_norm")
    x = g.add(x, blocks.attention(g, c, layer, h), out=x)
    h = blocks.norm(g, c, x, "post_attention_norm")
    g.add(x, blocks.swiglu_mlp(g, c, h), out=x)
    return g.build()


FAMILY = Family(
    ("seed_oss",),
    (
        HuggingFace(
            "seed_oss",
            "seed_oss",
            names={"post_attention_layernorm": "post_attention_norm"},
            defaults={"head_dim": 128},
        ),
    ),
    configure,
    layer,
)
