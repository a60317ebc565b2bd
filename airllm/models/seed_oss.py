"""Seed-OSS: Qwen2 with wider heads and other names."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(biases=r.optional_biases(*BIASES, "attn_output"))


FAMILY = Family(
    ("seed_oss",),
    (
        HuggingFace(
            "seed_oss",
            "seed_oss",
            names={"post_attention_layernorm": "post_attention_norm"},
            defaults={"head_dim": 128},
        ),
    ),
    configure,
    partial(blocks.layer, before=blocks.FOLDERS_BEFORE),
)
