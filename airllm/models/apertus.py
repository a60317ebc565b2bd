"""Apertus (arXiv:2509.14233): Qwen3's attention, and a network without a gate, whose activation has
learned numbers in each layer (xIELU, arXiv:2411.13010)."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig, Xielu
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.util.metadata import Metadata

_MOST = 1e3  # of the learned numbers, which are about 1
_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 12000000.0, "factor": 8.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 8192},
}


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(
        layers=[LayerConfig(xielu=each) for each in _activations(r)],
        biases=r.optional_biases(*BIASES, "attn_output"),
    )


def _activations(r: ConfigReader) -> list[Xielu]:
    """Of each layer. Files have the factors as the inverse of softplus gives them, under keys
    without the architecture."""
    alpha_p, alpha_n = (
        np.logaddexp(0.0, r.numbers(f"xielu.alpha_{sign}", -_MOST, _MOST)) for sign in "pn"
    )
    betas = r.numbers("xielu.beta", 0.0, _MOST)
    return [
        Xielu(float(positive), beta + float(negative), beta, eps)
        for positive, negative, beta, eps in zip(
            alpha_p, alpha_n, betas, r.numbers("xielu.eps", -1.0, 0.0), strict=True
        )
    ]


def feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    up = blocks.linear(g, c, h, "ffn_up", c.intermediate_size)
    assert layer.xielu is not None
    x = layer.xielu
    up = g.xielu(up, positive=x.positive, negative=x.negative, beta=x.beta, eps=x.eps, out=up)
    return blocks.linear(g, c, up, "ffn_down", c.hidden_size)


def _defaults(config: Metadata) -> Mapping[str, Any]:
    scaled = config.get("rope_scaling") or config.get("rope_parameters")
    return {"rope_theta": _ROPE["rope_theta"]} if scaled else {"rope_parameters": _ROPE}


FAMILY = Family(
    ("apertus",),
    (
        HuggingFace(
            "apertus",
            "apertus",
            names={"attention_layernorm": "attn_norm", "feedforward_layernorm": "ffn_norm"},
            activation="xielu",
            defaults=_defaults,
            numbers={
                f"mlp.act_fn.{name}": f"xielu.{name}"
                for name in ("alpha_p", "alpha_n", "beta", "eps")
            },
        ),
    ),
    configure,
    partial(blocks.layer, normed="heads", feed_forward=feed_forward),
)
