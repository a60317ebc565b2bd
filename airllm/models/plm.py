"""PLM 1.8B (arXiv:2503.12167): the latents of DeepSeek V2, with queries of their own matrix, and a
network with squared ReLU."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks, deepseek2
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.minicpm3 import renewed


def configure(r: ConfigReader) -> ModelConfig:
    latent, rope_dims = deepseek2.latent_of(r)
    r.ignore("attention.value_length")  # the latent says it
    c = r.config(
        head_dim=latent.rank + rope_dims,
        scaled_by=latent.unrotated + rope_dims,
        rope_interleaved=True,
        latent=latent,
    )
    if c.n_kv_heads != 1:
        raise r.fault("attention.head_count_kv", c.n_kv_heads, "expected 1")
    return c


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    mixer = deepseek2.attention
    return blocks.layer(c, activations, layer, mixer=mixer, feed_forward=_feed_forward)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return blocks.mlp(g, c, h, "relu_squared")


FAMILY = Family(("plm",), (), configure, layer, rotations=deepseek2.rotations, renewed=renewed)
