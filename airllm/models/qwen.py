"""Qwen 1 (arXiv:2309.16609), 1.8B to 72B: a Llama with one matrix, and a bias, for Q, K and V."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    """Files say the width of gate and up together."""
    width = r.feed_forward_length()
    if width % 2:
        raise r.fault("feed_forward_length", width, "expected it even")
    return r.config(biases=frozenset(["attn_qkv"]), intermediate_size=width // 2)


FAMILY = Family(("qwen",), (), configure, partial(blocks.layer, fused=True))
