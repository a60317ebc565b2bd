"""CogVLM's language model (arXiv:2311.03079): a Llama with one matrix for Q, K and V. Files have
other matrices for tokens of pictures, which no text needs."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family

_OF_PICTURES = ("attn_qkv", "attn_output", "gate", "up", "down")


def configure(r: ConfigReader) -> ModelConfig:
    idle = (f"blk.{i}.vis_{part}.weight" for i in range(r.n_layers) for part in _OF_PICTURES)
    return r.config(idle_tensors=frozenset(idle))


FAMILY = Family(("cogvlm",), (), configure, partial(blocks.layer, fused=True))
