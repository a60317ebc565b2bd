"""What a Hugging Face folder's config.json says, translated to the metadata of a GGUF file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_quantization import Quantization
from airllm.util.metadata import Metadata

__all__ = [
    "HEADS_TILED",
    "LATENTS_JOINED",
    "MOST_HEADS",
    "ROPE_INTERLEAVED",
    "Change",
    "HFConfig",
    "Heads",
    "Names",
    "Slots",
    "Translate",
]

# Whether rope rotates neighbouring dimensions of a head, or dimensions j and j + rope_dims / 2.
# Folders of some families differ in that from GGUF files, whose converter reorders rows.
ROPE_INTERLEAVED = "airllm.rope.interleaved"
# Whether heads of values that use the same keys lie n_kv_heads apart (see models.config.DeltaNet),
# where that is not as in GGUF files of the architecture. In folders these heads are neighbours.
HEADS_TILED = "airllm.delta_net.tiled"
# Whether GGUF files of the architecture have one matrix in place of attn_k_b and attn_v_b.
LATENTS_JOINED = "airllm.latents.joined"


Change = Callable[[NDArray[np.float32]], NDArray[np.float32]]


@dataclass(frozen=True)
class Slots:
    """GGUF's names of a tensor whose rows are not simply stored one after the other.

    alternate: the names take turns, row by row; otherwise each has the next part of the rows.
    matrices: so many float matrices lie below each other in one. 0: they are stacked, or one.
    transposed: float matrices are stored as [k, n].
    columns: float matrices have so many columns, k; where others are stored, they are [k, n]. 0: it
    is known how they are stored.
    head_rows: of the first and the second name. The matrix has the rows of one head after another,
    [n_heads * sum(head_rows), k]. The tensors are [n_heads, k, rows], which is transposed, and
    [n_heads, rows, k].
    head_parts: the matrix has the rows of one head after another, in parts; for each part the index
    of its name, and its rows. A tensor has its first part of all heads, then its second, and so on.
    joined: the name's * counts parts, whose rows follow each other. They are no layer's tensor.
    rows: of a tensor of floats; rows of zeros follow those that the folder has. 0: as it has.
    below: the tensor has integers from 0 on, below this number; as float32, which has them all.
    """

    names: tuple[str, ...]
    alternate: bool = False
    matrices: int = 0
    transposed: bool = False
    columns: int = 0
    head_rows: tuple[int, int] | None = None
    head_parts: tuple[tuple[int, int], ...] = ()
    joined: bool = False
    rows: int = 0
    below: int = 0


# Of tensors, without the layer's prefix and ".weight": from Hugging Face's to GGUF's, for instance
# {"self_attn.q_proj": "attn_q"}. "*" stands for an expert's number: such tensors are stacked.
# Several names in place of one: each has an equal part of the tensor's rows. A name with a layer's
# prefix, "layers.3.self_attn.g_proj", is of that layer alone.
Names = Mapping[str, str | tuple[str, ...] | Slots]

# Where a folder has next-token heads: as layers behind the last, "layers.61.eh_proj", or by
# themselves, "mtp.fc". "": the family's heads are left out.
Heads = Literal["", "layers", "mtp"]
MOST_HEADS = 64


@dataclass(frozen=True)
class HFConfig:
    """metadata: GGUF's keys and values.
    further: layers behind the last, as far as there may be some: next-token heads. heads: how their
    tensors are named. of_heads: their entry of keys that have one for each layer.
    plus_one: norms are stored without the 1 that GGUF files add (Gemma).
    tied: the output matrix is the embedding.
    tensors: float32 arrays that GGUF has as tensors, by name.
    quantization: of the weights; None if they are floats.
    changed: what GGUF's values of a slot are, given the folder's, float32 both.
    columns: slots whose vectors are matrices of one column in GGUF files.
    numbers: names of tensors of one number in a layer's part, and GGUF's key of those numbers.
    constants: what int64 tensors of the folder must be, by their names in a layer's part; GGUF has
    them as metadata.
    """

    metadata: dict[str, object]
    names: Names
    further: range = range(0)
    heads: Heads = ""
    plus_one: bool = False
    tied: bool = False
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
    quantization: Quantization | None = None
    changed: Mapping[str, Change] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    constants: Mapping[str, NDArray[np.int64]] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    of_heads: Mapping[str, object] = field(default_factory=dict)

    def with_heads(self, n_heads: int) -> dict[str, object]:
        """The metadata of a folder that has so many next-token heads."""
        if not n_heads:
            return self.metadata
        architecture, n_layers = self.metadata["general.architecture"], self.further.start
        found: dict[str, object] = {
            f"{architecture}.block_count": n_layers + n_heads,
            f"{architecture}.nextn_predict_layers": n_heads,
        }
        for name, entry in self.of_heads.items():
            key = f"{architecture}.{name}"
            of_layers = self.metadata.get(key)
            if isinstance(of_layers, np.ndarray):
                found[key] = np.append(of_layers, np.full(n_heads, entry, of_layers.dtype))
        return {**self.metadata, **found}


# From config.json. FormatError names a key that is missing or has a value that is not implemented.
Translate = Callable[[Metadata], HFConfig]
