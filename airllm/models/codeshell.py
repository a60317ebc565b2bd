"""CodeShell 7B: StarCoder2's layers, with one matrix for Q, K and V. A file may have the embedding
as the output matrix alone."""

from dataclasses import replace
from functools import partial

from airllm.formats.model_file import ModelParts
from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.starcoder2 import EPS, feed_forward

_EMBEDDING, _OUTPUT = "token_embd.weight", "output.weight"
_BIASED = ("attn_qkv", "attn_output", "ffn_up", "ffn_down")


def configure(r: ConfigReader) -> ModelConfig:
    biases = {"attn_norm", "ffn_norm", "output_norm", *_BIASED}
    return r.config(eps_key=EPS, layer_norms=True, biases=frozenset(biases))


def renamed(file: ModelParts) -> ModelParts:
    """With the matrix under the embedding's name, as files of other families have it."""
    if _EMBEDDING in file.tensors or _OUTPUT not in file.tensors:
        return file
    tensors = {**file.tensors, _EMBEDDING: replace(file.tensors[_OUTPUT], name=_EMBEDDING)}
    del tensors[_OUTPUT]
    return file.remade(file.metadata, tensors.values(), {})


FAMILY = Family(
    ("codeshell",),
    (),
    configure,
    partial(blocks.layer, fused=True, feed_forward=feed_forward),
    renewed=renamed,
)
