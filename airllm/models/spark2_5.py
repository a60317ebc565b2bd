"""Spark X2.5 1.7B (iFlytek): heads have a gate, most layers a window, and the network has GELU.
Layers with a window rotate another part of each head, by a theta of their own."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.own_heads import (
    attend_gated,
    read_head_dim,
    read_heads,
    rotations,
    windowed_rope_dims,
)


def configure(r: ConfigReader) -> ModelConfig:
    heads, head_dim = read_heads(r), read_head_dim(r)
    rope_dims = windowed_rope_dims(r, r.integer("rope.dimension_count", head_dim), head_dim)
    return r.config(
        layers=[
            LayerConfig(
                window,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                rope_dims=rope_dims if window else 0,
            )
            for window, (n_heads, n_kv_heads) in zip(r.windows(), heads, strict=True)
        ],
        head_dim=head_dim,
        n_heads=max(n_heads for n_heads, _ in heads),
        kv_heads=[n_kv_heads for _, n_kv_heads in heads],
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(
        c.of(layer),
        activations,
        layer,
        fused=True,
        attend=attend_gated("sigmoid"),
        feed_forward=_feed_forward,
    )


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    """GELU as it is defined, by the error function."""
    return blocks.glu_mlp(g, c, h, activation="gelu_erf")


FAMILY = Family(("spark2_5",), (), configure, layer, rotations=rotations)
