"""Baichuan and Baichuan 2 (arXiv:2309.10305): a Llama, whose models of 13B have biases by distance
(ALiBi, arXiv:2108.12409) in place of rotation. Of Baichuan 2 the rows of the output matrix have the
length 1 when they multiply.
"""

import numpy as np

from airllm.formats.numbers import decode
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace

_LAYERS_OF_13B = 40  # nothing else in a file tells these models apart
_VOCABULARY_OF_2 = 125696
_ROWS_LOOKED_AT = 16


def configure(r: ConfigReader) -> ModelConfig:
    alibi = r.n_layers == _LAYERS_OF_13B
    if alibi:
        r.ignore_rope()
    c = r.config(
        layers=[LayerConfig(rotates=not alibi)] * r.n_layers,
        alibi=8.0 if alibi else 0.0,
        rope_interleaved=True,
    )
    if c.vocab_size == _VOCABULARY_OF_2 and not _has_length_1(r):
        raise r.metadata.fault(
            "tensor output.weight has rows that are not of length 1, as those of Baichuan 2 have "
            "to be; convert the model again, with lm_head.weight normalised"
        )
    return c


def _has_length_1(r: ConfigReader) -> bool:
    """Whether the first rows have that length."""
    output = r.file.tensors.get("output.weight")
    if output is None:
        return False
    rows = decode(r.file.data(output.name)[:_ROWS_LOOKED_AT], output.type)
    return bool(np.abs(np.linalg.norm(rows, axis=1) - 1.0).max() < 0.1)


FAMILY = Family(
    ("baichuan",),
    (
        HuggingFace(
            "baichuan",
            "baichuan",
            names={"self_attn.W_pack": ("attn_q", "attn_k", "attn_v")},
            gguf_interleaved=True,
        ),
    ),
    configure,
)
