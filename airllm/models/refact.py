"""Refact 1.6B: a Llama with biases by distance (ALiBi, arXiv:2108.12409) in place of rotation."""

from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(layers=r.unrotated_layers(), alibi=8.0)


FAMILY = Family(("refact",), (), configure)
