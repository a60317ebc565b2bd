"""Nanbeige 4.2: a Llama whose tokens go several times through the same layers. Each time has keys
and values of its own. The last norm follows each time, or only the last time."""

from dataclasses import replace

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.architecture_keys import MAX_LAYERS
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.qwen2 import BIASES


def configure(r: ConfigReader) -> ModelConfig:
    n_loops = r.integer("num_loops", 1, low=1, high=MAX_LAYERS // r.n_layers)
    last_only = r.flag("skip_loop_final_norm", False) or n_loops == 1
    layers = [LayerConfig()] * (r.n_layers - 1) + [LayerConfig(ends_normed=not last_only)]
    c = r.config(layers=layers, biases=r.optional_biases(*BIASES), rope_interleaved=True)
    return replace(c, n_layers=n_loops * c.n_layers, layers=n_loops * c.layers, n_loops=n_loops)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    x = blocks.add(g, c, x, blocks.attention(g, c, layer, blocks.norm(g, c, x, "attn_norm")))
    x = blocks.add(g, c, x, blocks.glu_mlp(g, c, blocks.norm(g, c, x, "ffn_norm")))
    if layer.ends_normed:
        blocks.norm(g, c, x, "output_norm", out=x)
    return g.build()


def head(c: ModelConfig, activations: Activations) -> Graph:
    """The residual may be normalised already."""
    if not c.layers[-1].ends_normed:
        return blocks.head(c, activations)
    g = GraphBuilder("head", activations=activations)
    h = g.take_columns(g.external("residual", c.hidden_size), 0, c.hidden_size)  # [n, hidden]
    blocks.vocabulary_logits(g, c, h)
    return g.build()


FAMILY = Family(("nanbeige",), (), configure, layer, head=head)
