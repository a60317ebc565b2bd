"""PLaMo 13B: a Llama whose layers have attention and the network side by side."""

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family


def configure(r: ConfigReader) -> ModelConfig:
    return r.config()


FAMILY = Family(("plamo",), (), configure, blocks.parallel_layer)
