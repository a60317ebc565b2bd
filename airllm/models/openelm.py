"""OpenELM (arXiv:2404.14619): a Llama whose layers differ in their heads and in the width of the
network, whose heads are normalised, and which has one matrix for Q, K and V."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.own_heads import read_head_dim, read_heads


def configure(r: ConfigReader) -> ModelConfig:
    heads, widths = read_heads(r), r.of_layers("feed_forward_length", low=1)
    return r.config(
        layers=[
            LayerConfig(n_heads=n_heads, n_kv_heads=n_kv_heads, intermediate_size=width)
            for (n_heads, n_kv_heads), width in zip(heads, widths, strict=True)
        ],
        head_dim=read_head_dim(r),
        n_heads=max(n_heads for n_heads, _ in heads),
        kv_heads=[n_kv_heads for _, n_kv_heads in heads],
        intermediate_size=max(widths),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(c.of(layer), activations, layer, normed="heads", fused=True)


FAMILY = Family(("openelm",), (), configure, layer)
