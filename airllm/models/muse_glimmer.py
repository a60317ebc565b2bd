"""Muse Glimmer (Meta, text): embeddings, and heads of Q and K, are normalised without weights.
Norms stand before and behind each half of a layer, a gate behind attention. Three of four layers
have a window; the fourth sees all positions and does not rotate.

Norms multiply by 1 + weight, but for the last; GGUF files store the sum, and what multiplies the
normalised queries as the weight of a norm.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_names import plus_one
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import afmoe, blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.family import Family
from airllm.models.gemma2 import CAPS, NAMES
from airllm.models.hugging_face import FULL, SLIDING, HFReader, HuggingFace
from airllm.models.own_heads import rotations
from airllm.util.metadata import Metadata

PERIOD = 4
_AFTER_EPS = 1e-8  # GGUF files have no key for it


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=[LayerConfig(window, rotates=window > 0) for window in r.windows(period=PERIOD)],
        after_eps=_AFTER_EPS,
        rope_interleaved=True,
        logit_scale=r.positive("logit_scale", 1.0),
        final_softcap=r.cap(CAPS[1]),
    )


def embed(c: ModelConfig, activations: Activations) -> Graph:
    g = GraphBuilder("embed", activations=activations)
    tokens = g.external("tokens", 1, "int32")  # [n]
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    g.embed(tokens, g.weight("token_embd", c.vocab_size, c.hidden_size), out=x)
    g.head_norm(x, None, 1, c.norm_eps, out=x)
    return g.build()


# ---- Hugging Face --------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("post_norm_eps", None, _AFTER_EPS)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    local = config.local_layers(np.ones(n_layers, bool))
    rotate = config.get("layer_rope_theta")
    if rotate is not None:
        parameters = config.get("rope_parameters")
        theta = parameters.get("rope_theta") if isinstance(parameters, dict) else None
        if rotate != [theta if each else 0 for each in local.tolist()]:
            raise config.fault("layer_rope_theta says other than that layers with a window rotate")
    return {
        **config.sliding(PERIOD),
        "logit_scale": config.number("output_multiplier"),
        CAPS[1]: config.number(CAPS[1]),
    }


def _made(config: HFReader) -> Mapping[str, NDArray[np.float32]]:
    factors = {"attn_q_norm": config.number("qk_scale_factor"), "attn_k_norm": 1.0}
    head_dim = config.integer("head_dim", low=1, high=MAX_HEAD_DIM)
    return {
        f"blk.{index}.{slot}.weight": np.full(head_dim, factor, np.float32)
        for index in range(config.integer("num_hidden_layers", low=1, high=2**12))
        for slot, factor in factors.items()
    }


def _defaults(config: Metadata) -> Mapping[str, object]:
    """The last layer sees all positions."""
    n_layers = config.integer("num_hidden_layers", 52, low=1, high=2**12)
    behind = range(n_layers - 1, -1, -1)
    return {
        **{"vocab_size": 202048, "hidden_size": 6656, "intermediate_size": 19968, "head_dim": 128},
        **{"num_hidden_layers": n_layers, "num_attention_heads": 32, "num_key_value_heads": 2},
        **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-5, "sliding_window": 2048},
        **{"qk_scale_factor": 3.87, "output_multiplier": 256**0.5 / 6656**0.5, CAPS[1]: 20.0},
        "layer_types": [FULL if each % PERIOD == 0 else SLIDING for each in behind],
    }


FAMILY = Family(
    ("muse-glimmer",),
    (
        HuggingFace(
            "muse_glimmer_text",
            "muse-glimmer",
            _values,
            {**NAMES, "self_attn.gate_proj": "attn_gate"},
            pictures="muse_glimmer",
            gguf_interleaved=True,
            defaults=_defaults,
            changed=dict.fromkeys(
                ("attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"), plus_one
            ),
            made=_made,
        ),
    ),
    configure,
    partial(blocks.layer, normed="heads", attend=afmoe.attend, after=blocks.AFTER),
    embed,
    rotations=rotations,
)
