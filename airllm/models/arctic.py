"""Snowflake Arctic: a Llama whose layers have experts beside both halves. They see the residual
before the layer, through a norm of their own."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    """feed_forward_length is of an expert. The network of all tokens is as wide as a token."""
    return r.config(
        layers=[LayerConfig(has_experts=True)] * r.n_layers,
        intermediate_size=r.integer("embedding_length", low=1),
        rope_interleaved=True,
        **r.experts(shared_out=False),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    beside = blocks.experts(g, c, blocks.norm(g, c, x, "ffn_norm_exps"))  # [n, hidden]
    x = blocks.add(g, c, x, blocks.attention(g, c, layer, blocks.norm(g, c, x, "attn_norm")))
    x = blocks.add(g, c, x, blocks.glu_mlp(g, c, blocks.norm(g, c, x, "ffn_norm")))
    blocks.add(g, c, x, beside)
    return g.build()


FAMILY = Family(("arctic",), (), configure, layer)
