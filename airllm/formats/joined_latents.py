"""Joins the matrices that make keys and values of latents, as GGUF files of MiniCPM3 have them.

They have one matrix, attn_kv_b, in which the rows of a head's keys lie before those of its values,
and the sizes of keys and values that each head would keep for itself.
"""

import numpy as np
import numpy.typing as npt

from airllm.formats.hf_config import LATENTS_JOINED
from airllm.formats.model_file import DerivedModel, ModelFile, Tensor
from airllm.formats.numbers import decode
from airllm.util.metadata import FormatError, Metadata

__all__ = ["joined_latents"]

_KEYS, _BOTH = ".attn_k_b.weight", ".attn_kv_b.weight"
_PARTS = "key", "value"

Bytes = npt.NDArray[np.uint8]


def joined_latents(model: ModelFile) -> ModelFile:
    """The model with matrices as its GGUF files have them; the model itself if they are."""
    return _JoinedLatents(model) if model.metadata.flag(LATENTS_JOINED, False) else model


def _fit(keys: tuple[int, ...], values: tuple[int, ...]) -> bool:
    return len(keys) == len(values) == 3 and (keys[0], keys[1]) == (values[0], values[2])


class _JoinedLatents(DerivedModel):
    """A ModelFile whose joined matrices are float32: [n_heads * (key_dim + value_dim), rank]."""

    def __init__(self, model: ModelFile) -> None:
        said = model.metadata
        before = said.text("general.architecture") + ".attention."
        lengths = {f"{before}{part}_length": f"{before}{part}_length_mla" for part in _PARTS}
        entries = {
            **{key: value for key, value in said.items() if key not in lengths.values()},
            **{key: said.integer(mla, low=1) for key, mla in lengths.items()},
            before + "head_count_kv": said.integer(before + "head_count", low=1),
        }
        del entries[LATENTS_JOINED]
        super().__init__(model, Metadata(said.source, entries), {})
        self._halves: dict[str, tuple[Tensor, Tensor]] = {}
        tensors = dict(model.tensors)
        for name in [name for name in tensors if name.endswith(_KEYS)]:
            whole = name.replace(_KEYS, _BOTH)
            keys, values = tensors.pop(name), tensors.pop(name.replace("k_b", "v_b"), None)
            if values is None or not _fit(keys.shape, values.shape):
                raise FormatError(
                    f"{said.source}: {name} has the shape {keys.shape}, and its values "
                    f"{values and values.shape}; expected [n_heads, rank, key_dim] and "
                    "[n_heads, value_dim, rank]"
                )
            n_heads, rank, key_dim = keys.shape
            shape = n_heads * (key_dim + values.shape[1]), rank
            n_bytes = 4 * rank * shape[0]
            self._halves[whole] = keys, values
            tensors[whole] = Tensor(whole, "f32", shape, 4 * rank, n_bytes, ())
        self.tensors = tensors

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        if name not in self._halves:
            return self._model.read(name, memory, rows)
        keys, values = self._halves[name]
        first, end = rows or (0, self.tensors[name].n_rows)
        (_, rank, key_dim), value_dim = keys.shape, values.shape[1]
        found = memory[: 4 * rank * (end - first)].reshape(end - first, -1)
        every = key_dim + value_dim
        for head in range(first // every, (end - 1) // every + 1):
            joined = np.concatenate(
                [
                    self._rows(keys, head * rank, (head + 1) * rank).T,  # [key_dim, rank]
                    self._rows(values, head * value_dim, (head + 1) * value_dim),
                ]
            )
            start, stop = max(first, head * every), min(end, (head + 1) * every)
            part = joined[start - head * every : stop - head * every]
            found[start - first : stop - first] = np.ascontiguousarray(part).view(np.uint8)
        return found

    def _rows(self, tensor: Tensor, first: int, end: int) -> npt.NDArray[np.float32]:
        raw = np.empty((end - first) * tensor.row_bytes, np.uint8)
        return decode(self._model.read(tensor.name, raw, (first, end)), tensor.type)
