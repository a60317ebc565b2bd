"""Nemotron 4 and Minitron (arXiv:2402.16819), and Jais 2: a Llama with LayerNorm, and a network
with squared ReLU, without a gate. Half of each head of Nemotron rotates.

Nemotron's norms multiply by 1 + weight; GGUF files store the sum.
"""

from functools import partial

from airllm.models import blocks
from airllm.models.arcee import feed_forward
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.models.starcoder2 import EPS


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("attention.layer_norm_rms_epsilon")  # that files have beside it
    biases = r.optional_biases(*BIASES, "attn_output", "ffn_up", "ffn_down")
    return r.config(
        eps_key=EPS,
        layer_norms=True,
        biases=biases | {"attn_norm", "ffn_norm", "output_norm"},
    )


FAMILY = Family(
    ("jais2", "nemotron"),
    (
        HuggingFace(
            "jais2",
            "jais2",
            activation="relu2",
            norm_eps=("layer_norm_eps", EPS),
            defaults={"layer_norm_eps": 1e-5},
        ),
        HuggingFace(
            "nemotron",
            "nemotron",
            activation="relu2",
            plus_one=True,
            norm_eps=("norm_eps", EPS),
            defaults={"norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        ),
    ),
    configure,
    partial(blocks.layer, feed_forward=feed_forward),
)
