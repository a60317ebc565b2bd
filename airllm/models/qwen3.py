"""Qwen3 (arXiv:2505.09388): Qwen2 with each head of Q and K normalised, in place of biases."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.qwen2 import values_of_3_positions

layer = partial(blocks.layer, normed="heads")


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")  # see qwen2
    return r.config()


# The language model of Qwen3-VL is the same; see qwen2 for its rotation.
FAMILY = Family(
    ("qwen3", "qwen3vl"),
    (
        HuggingFace("qwen3", "qwen3", HFReader.no_window, defaults={"head_dim": 128}),
        HuggingFace(
            "qwen3_vl_text",
            "qwen3vl",
            values_of_3_positions,
            pictures="qwen3_vl",
            defaults={"head_dim": 128, "rope_theta": 5e6},
        ),
    ),
    configure,
    layer,
)
