"""GGUF files of DeepSeek models from before May 2025, and those of MiniCPM3, as newer ones are.

In each layer they have `attn_kv_b`, in which the rows of a head's keys lie before those of its
values, and not `attn_k_b` and `attn_v_b`. Their sizes are those of keys and values that each head
would keep for itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from airllm.formats.mapped_file import quote
from airllm.formats.model_file import Extent, Made, ModelParts, Tensor
from airllm.formats.numbers import FLOATS, decode, encode, row_bytes
from airllm.models.config_reader import MAX_HEAD_DIM, MAX_HEADS
from airllm.util.metadata import FormatError, Metadata

__all__ = ["renewed"]

_BOTH = ".attn_kv_b.weight"


def renewed(file: ModelParts, own: Mapping[str, object] = MappingProxyType({})) -> ModelParts:
    """The file itself if it is no older one. own: further entries of its metadata. FormatError for
    sizes that contradict each other."""
    both = [tensor for name, tensor in file.tensors.items() if name.endswith(_BOTH)]
    if not both or any(name.endswith(".attn_k_b.weight") for name in file.tensors):
        return file
    said, before = file.metadata, file.metadata.text("general.architecture") + ".attention."
    heads = said.integer(before + "head_count", low=1, high=MAX_HEADS)
    rope_dims = said.integer(
        before.replace("attention", "rope") + "dimension_count", low=2, high=MAX_HEAD_DIM - 1
    )
    rank = said.integer(before + "kv_lora_rank", low=1, high=MAX_HEAD_DIM - rope_dims)
    length = said.integer(before + "key_length", low=rope_dims + 1)
    hidden = said.integer(before.replace("attention.", "embedding_length"), low=1)
    value_dim = said.integer(before + "value_length", hidden // heads, low=1)
    tensors, made = dict(file.tensors), {}
    for whole in both:
        expected = heads * (length - rope_dims + value_dim), rank
        if whole.shape != expected:
            raise said.fault(
                f"tensor {whole.name} has shape {list(whole.shape)}; expected {list(expected)}, as "
                "the metadata says"
            )
        matrices = _Heads(file, whole, heads, length - rope_dims, value_dim)
        del tensors[whole.name]
        tensors |= {tensor.name: tensor for tensor in (matrices.keys, matrices.values)}
        made[matrices.keys.name] = Made(matrices.rows_of_keys, whole.extents)
    sizes = {
        "head_count_kv": 1,
        "key_length": rank + rope_dims,
        "value_length": rank,
        "key_length_mla": length,
        "value_length_mla": value_dim,
    }
    entries = {**said, **own, **{before + name: size for name, size in sizes.items()}}
    return file.remade(Metadata(said.source, entries), tensors.values(), made)


@dataclass(frozen=True)
class _Heads:
    """The matrices of a layer's heads. whole: attn_kv_b [n_heads * (key_dim + value_dim), rank]."""

    file: ModelParts
    whole: Tensor
    n_heads: int
    key_dim: int
    value_dim: int

    @property
    def values(self) -> Tensor:
        """attn_v_b [n_heads, value_dim, rank]: rows of the file."""
        size, (place,) = self.whole.row_bytes, self.whole.extents
        first = range(self.key_dim, self.whole.n_rows, self.key_dim + self.value_dim)
        extents = [
            Extent(place.part, place.offset + row * size, self.value_dim * size) for row in first
        ]
        return replace(
            self.whole,
            name=self.whole.name.replace("kv_b", "v_b"),
            shape=(self.n_heads, self.value_dim, self.whole.shape[-1]),
            nbytes=self.n_heads * self.value_dim * size,
            extents=tuple(extents),
        )

    @property
    def keys(self) -> Tensor:
        """attn_k_b [n_heads, rank, key_dim]. Its rows are columns of the file's, across blocks: it
        is F16 where the file has a quantised type."""
        rank, type = self.whole.shape[-1], self.whole.type
        type = type if type in FLOATS else "f16"
        size = row_bytes(type, self.key_dim)
        assert size is not None  # each value is a block
        return Tensor(
            name=self.whole.name.replace("kv_b", "k_b"),
            type=type,
            shape=(self.n_heads, rank, self.key_dim),
            row_bytes=size,
            nbytes=self.n_heads * rank * size,
            extents=(),
        )

    def rows_of_keys(self, first: int, end: int) -> NDArray[np.uint8]:
        """Rows of attn_k_b, of all heads: uint8 [end - first, row_bytes]. FormatError for values
        that its type cannot hold."""
        rank, found = self.whole.shape[-1], []
        for head in range(first // rank, (end - 1) // rank + 1):
            row = head * (self.key_dim + self.value_dim)
            memory = np.empty(self.key_dim * self.whole.row_bytes, np.uint8)
            raw = self.file.read(self.whole.name, memory, (row, row + self.key_dim))
            columns = decode(raw, self.whole.type).T  # [rank, key_dim]
            found.append(columns[max(first - head * rank, 0) : end - head * rank])
        try:
            return encode(np.ascontiguousarray(np.concatenate(found)), self.keys.type)
        except ValueError as error:
            raise FormatError(
                f"{self.file.path}: tensor {quote(self.whole.name)} {error}"
            ) from None
