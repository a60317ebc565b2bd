"""Jais (arXiv:2308.16149): GPT-2's layers with SwiGLU, and biases by distance (ALiBi,
arXiv:2108.12409) in place of a table of positions. Scores are divided by the width of a head, not
by its root.
"""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.mpt import largest_bias
from airllm.models.starcoder2 import EPS

_BIASED = ("attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


def configure(r: ConfigReader) -> ModelConfig:
    head_dim = r.integer("embedding_length", low=1) / r.integer("attention.head_count", low=1)
    return r.config(
        layers=r.unrotated_layers(),
        eps_key=EPS,
        layer_norms=True,
        biases=frozenset(["attn_norm", "ffn_norm", "output_norm", *_BIASED]),
        scaled_by=head_dim**2,
        alibi=largest_bias(r, 8.0),
    )


FAMILY = Family(("jais",), (), configure, partial(blocks.layer, fused=True))
