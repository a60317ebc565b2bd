"""What a Hugging Face folder's config.json says, translated to the metadata of a GGUF file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from airllm.util.metadata import Metadata

__all__ = ["ROPE_INTERLEAVED", "HFConfig", "Translate"]

# Whether rope rotates neighbouring dimensions of a head, or dimensions j and j + rope_dims / 2.
# Folders of some families differ in that from GGUF files, whose converter reorders rows.
ROPE_INTERLEAVED = "airllm.rope.interleaved"


@dataclass(frozen=True)
class HFConfig:
    """metadata: GGUF's keys and values.
    names: of tensors, without the layer's prefix and ".weight": from Hugging Face's to GGUF's, for
    instance {"self_attn.q_proj": "attn_q"}. "*" stands for an expert's number: such tensors are
    stacked. Several names in place of one: the tensor's rows are shared out among them.
    left_out: layers whose tensors are left out; they guess further tokens.
    plus_one: norms are stored without the 1 that GGUF files add (Gemma).
    tied: the output matrix is the embedding.
    tensors: float32 arrays that GGUF has as tensors, by name.
    """

    metadata: dict[str, object]
    names: Mapping[str, str | tuple[str, ...]]
    left_out: range = range(0)
    plus_one: bool = False
    tied: bool = False
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)


# From config.json. FormatError names a key that is missing or has a value that is not implemented.
Translate = Callable[[Metadata], HFConfig]
