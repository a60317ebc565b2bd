"""Llama-Nemotron Super and Nano (arXiv:2505.00949), and DeciLM: a Llama whose layers differ in the
width of the feed-forward network and in the heads of keys; some have no attention."""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEADS, ConfigReader
from airllm.models.family import Family
from airllm.models.qwen2 import ALL_BIASES

_HEADS, _KV_HEADS = "attention.head_count", "attention.head_count_kv"


def configure(r: ConfigReader) -> ModelConfig:
    heads = r.of_layers(_HEADS, low=0, high=MAX_HEADS)
    r.require_alike(_HEADS, heads)
    n_heads = max(heads)
    if not n_heads:
        raise r.fault(_HEADS, 0, "expected a layer with attention")
    kv_heads = r.of_layers(_KV_HEADS, n_heads, low=0, high=MAX_HEADS)
    widths = r.of_layers("feed_forward_length", low=1)
    layers = []
    for own, of_keys, width in zip(heads, kv_heads, widths, strict=True):
        if own and not (of_keys and own % of_keys == 0):
            wanted = f"expected a divisor of {r.key(_HEADS)}, {own}"
            raise r.fault(_KV_HEADS, of_keys, wanted)
        layers.append(
            LayerConfig(
                mixer="attention" if own else "none",
                n_kv_heads=of_keys if own else 0,
                intermediate_size=width,
            )
        )
    return r.config(
        layers=layers,
        n_heads=n_heads,
        kv_heads=kv_heads,
        intermediate_size=max(widths),
        biases=r.optional_biases(*ALL_BIASES),
        rope_interleaved=True,
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    c = c.of(layer)
    if layer.mixer == "attention":
        return blocks.layer(c, activations, layer)
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "ffn_norm")
    blocks.add(g, c, x, blocks.glu_mlp(g, c, h))
    return g.build()


FAMILY = Family(("deci",), (), configure, layer)
