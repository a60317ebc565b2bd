"""Multiplies matrices by the constants that folders of Falcon-H1 have beside them.

In GGUF files the matrices have these factors in them; of a folder, the layers multiply.
"""

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from airllm.formats.model_file import DerivedModel, ModelFile, Tensor
from airllm.formats.numbers import decode
from airllm.util.metadata import Metadata

__all__ = ["FACTOR", "multiplied"]

# Before the name of a slot, and behind the architecture: a number, or one for each part of the
# rows. The parts of ssm_in are the gate, x, B, C and the time steps.
FACTOR = "factor."
_PARTS = 5

Bytes = npt.NDArray[np.uint8]
Factors = npt.NDArray[np.float32]


def multiplied(model: ModelFile) -> ModelFile:
    """The model with matrices as GGUF files have them; the model itself if they are."""
    prefix = f"{model.metadata.text('general.architecture', '')}.{FACTOR}"
    return _Multiplied(model, prefix) if _keys(model, prefix) else model


def _keys(model: ModelFile, prefix: str) -> list[str]:
    return [key for key in model.metadata if key.startswith(prefix)]


def _factors(metadata: Metadata, key: str) -> Factors:
    value = metadata[key]
    if not isinstance(value, np.ndarray):
        return np.array([metadata.number(key)], np.float32)
    if value.dtype.kind != "f" or value.shape != (_PARTS,):
        raise metadata.fault(f"{key} is no array of {_PARTS} numbers")
    return value.astype(np.float32)


class _Multiplied(DerivedModel):
    """A ModelFile whose matrices with factors are float32. Logits that are made of the embedding
    have a matrix of their own: their factor is another."""

    def __init__(self, model: ModelFile, prefix: str) -> None:
        keys = _keys(model, prefix)
        factors = {key.removeprefix(prefix): _factors(model.metadata, key) for key in keys}
        entries = {key: value for key, value in model.metadata.items() if key not in keys}
        super().__init__(model, Metadata(model.metadata.source, entries), model.tensors)
        sources = dict(model.tensors)
        if "output.weight" not in sources and "token_embd.weight" in sources:
            sources["output.weight"] = sources["token_embd.weight"]
            if "token_embd" in factors:
                factors.setdefault("output", np.ones(1, np.float32))
        self._sources: dict[str, tuple[Tensor, Factors]] = {}  # of what is multiplied
        tensors = dict(model.tensors)
        for name, source in sources.items():
            slot = name.removesuffix(".weight").split(".")[-1]
            if slot in factors and name.endswith(".weight"):
                self._sources[name] = source, self._of_rows(name, factors[slot], source.n_rows)
                row_bytes = 4 * source.shape[-1]
                n_bytes = source.n_rows * row_bytes
                tensors[name] = replace(
                    source, name=name, type="f32", row_bytes=row_bytes, nbytes=n_bytes, extents=()
                )
        self.tensors = MappingProxyType(tensors)

    def _of_rows(self, name: str, factors: Factors, n_rows: int) -> Factors:
        """FormatError for parts that are not all rows of the tensor."""
        if factors.size == 1:
            return np.repeat(factors, n_rows)
        architecture = self.metadata.text("general.architecture")
        inner, n_groups, state, n_heads = (
            self.metadata.integer(f"{architecture}.ssm.{key}", low=1)
            for key in ("inner_size", "group_count", "state_size", "time_step_rank")
        )
        sizes = [inner, inner, n_groups * state, n_groups * state, n_heads]
        if sum(sizes) != n_rows:
            raise self.metadata.fault(
                f"tensor {name} has {n_rows} rows; expected {sum(sizes)}, as the metadata says"
            )
        return np.repeat(factors, sizes)

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        if name not in self._sources:
            return self._model.read(name, memory, rows)
        source, factors = self._sources[name]
        first, end = rows or (0, source.n_rows)
        raw = np.empty((end - first) * source.row_bytes, np.uint8)
        values = decode(self._model.read(source.name, raw, (first, end)), source.type)
        found = memory[: 4 * values.size].reshape(end - first, -1)
        found[...] = (values * factors[first:end, np.newaxis]).view(np.uint8)
        return found
