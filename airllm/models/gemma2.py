"""Gemma 2 (arXiv:2408.00118): norms before and after each half of a layer, GELU, capped scores and
logits, and a window on every other layer.

Gemma's norms multiply by 1 + weight; GGUF files store the sum.
"""

from functools import partial
from typing import Any

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace

PERIOD = 2  # every such layer, from the second on, sees all positions

NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
DEFAULTS = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


def configure(r: ConfigReader) -> ModelConfig:
    return read(
        r,
        [LayerConfig(window) for window in r.windows(4096, PERIOD)],
        layers_of_27b=46,
        attention_softcap=r.cap("attn_logit_softcapping", 50.0),
        final_softcap=r.cap("final_logit_softcapping", 30.0),
    )


def read(
    r: ConfigReader, layers: list[LayerConfig], *, layers_of_27b: int, **own: Any
) -> ModelConfig:
    """layers_of_27b: the number of layers of the 27B model, which scales scores by
    hidden_size / n_heads in place of head_dim. No key says so; llama.cpp recognises that model by
    its layers, too."""
    hidden_size = r.integer("embedding_length", low=1)
    n_heads = r.integer("attention.head_count", low=1)
    wide = hidden_size / n_heads if r.n_layers == layers_of_27b else None
    return r.config(layers=layers, scaled_by=wide, embedding_scale=hidden_size**0.5, **own)


def feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return blocks.glu_mlp(g, c, h, activation="gelu")


layer = partial(blocks.layer, after=blocks.AFTER, feed_forward=feed_forward)


def values(config: HFReader, period: int, said: int = 0) -> dict[str, object]:
    """GGUF's keys that Gemma 2 and 3 have. period, said: see HFReader.sliding."""
    scalar = config.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise config.fault(f"query_pre_attn_scalar is {scalar}; expected it above 0")
    found = {"attention.scale": scalar**-0.5, **config.sliding(period, said)}
    return found | {key: config.number(key) for key in CAPS if key in config}


def _values(config: HFReader) -> dict[str, object]:
    return values(config, PERIOD)


FAMILY = Family(
    ("gemma2",),
    (
        HuggingFace(
            "gemma2",
            "gemma2",
            _values,
            NAMES,
            activation="gelu_pytorch_tanh",
            tied=True,
            plus_one=True,
            defaults={**DEFAULTS, CAPS[0]: 50.0, CAPS[1]: 30.0},
        ),
    ),
    configure,
    layer,
)
