"""GLM-4 of April 2025 (GLM-4-9B-0414, 32B, GLM-Z1): norms before and behind each half of a layer,
one matrix for gate and up, and half of each head rotates."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES

NAMES = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}


def configure(r: ConfigReader) -> ModelConfig:
    r.leave_out_heads()
    return r.config(biases=r.optional_biases(*BIASES), rope_interleaved=True)


FAMILY = Family(
    ("glm4",),
    (
        HuggingFace(
            "glm4",
            "glm4",
            names=NAMES,
            rope_interleaved=True,
            gguf_interleaved=True,
            defaults={"partial_rotary_factor": 0.5, "head_dim": 128},
        ),
    ),
    configure,
    partial(blocks.layer, after=blocks.AFTER, feed_forward=blocks.fused_glu_mlp),
)
