"""Converts a model's matrices to another type while they are read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.mixes import chosen_types
from airllm.formats.model_file import ModelFile, Tensor, in_pieces
from airllm.formats.numbers import FLOATS, decode, encode, row_bytes
from airllm.util.closing import Closing
from airllm.util.metadata import FormatError, Metadata

__all__ = ["RetypedModel", "convert_rows", "retyped"]

Bytes = npt.NDArray[np.uint8]


def retyped(tensor: Tensor, type: str) -> Tensor:
    """The tensor's entry with another type and without extents."""
    if type == tensor.type:
        return tensor
    n_bytes = row_bytes(type, tensor.shape[-1])
    assert n_bytes is not None
    return dataclasses.replace(
        tensor, type=type, row_bytes=n_bytes, nbytes=tensor.n_rows * n_bytes, extents=()
    )


def convert_rows(
    file: ModelFile,
    tensor: Tensor,
    type: str,
    rows: tuple[int, int],
    memory: Bytes,
    importance: npt.NDArray[np.float32] | None = None,
) -> Bytes:
    """Read rows of a tensor of `file` and convert them to `type`: uint8 [rows, row_bytes].

    memory: takes the bytes of the file. importance: float32 [n matrices, k], of the columns of each
    matrix in the tensor, for types in SEARCHED. FormatError names a tensor with values that `type`
    cannot hold.
    """
    raw = file.read(tensor.name, memory, rows)
    if type == tensor.type:
        return raw
    values = decode(raw, tensor.type)
    try:
        if importance is None:
            return encode(values, type)
        n, first, made = tensor.n_rows // len(importance), rows[0], []
        while first < rows[1]:  # up to the end of the matrix
            end = min((first // n + 1) * n, rows[1])
            part = values[first - rows[0] : end - rows[0]]
            made.append(encode(part, type, importance[first // n]))
            first = end
        return np.concatenate(made)
    except ValueError as error:
        raise FormatError(f"{file.path}: tensor {quote(tensor.name)} {error}") from None


class RetypedModel(Closing):
    """A ModelFile that converts the float matrices of another to `type` as they are read.

    These matrices have no extents. Matrices that are quantised already stay as they are.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    parts: tuple[MappedFile, ...]

    def __init__(self, file: ModelFile, type: str) -> None:
        """ValueError for an unknown type, or a model without float matrices."""
        types = chosen_types(file, type, argument="quantize").types
        self._file, self._type = file, type
        self.path, self.metadata, self.parts = file.path, file.metadata, file.parts
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
        floats = [tensor for tensor in matrices if tensor.type in FLOATS]
        if matrices and not floats:
            raise ValueError(
                f"{file.path}: its matrices are quantised already ({matrices[0].type}); "
                "`airllm convert` makes another type of them, with what they have lost"
            )
        changed = {tensor.name: retyped(tensor, types[tensor.name]) for tensor in floats}
        self.tensors = MappingProxyType({**file.tensors, **changed})
        self.closed = False

    def data(self, name: str) -> Bytes:
        tensor = self.tensors[name]
        if tensor is self._file.tensors[name]:
            return self._file.data(name)
        made = self.read(name, np.empty(tensor.nbytes, np.uint8))
        made.flags.writeable = False
        return made

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        tensor, source = self.tensors[name], self._file.tensors[name]
        if tensor is source:
            return self._file.read(name, memory, rows)
        first, end = rows or (0, tensor.n_rows)
        raw = memory[: (end - first) * tensor.row_bytes].reshape(end - first, tensor.row_bytes)
        scratch = np.empty(0, np.uint8)
        for start, stop in in_pieces(end - first, source.shape[-1]):
            if not scratch.size:
                scratch = np.empty((stop - start) * source.row_bytes, np.uint8)
            piece = (first + start, first + stop)
            raw[start:stop] = convert_rows(self._file, source, tensor.type, piece, scratch)
        leading = tensor.shape[:-1] if rows is None else (end - first,)
        return raw.reshape(*leading, tensor.row_bytes)

    def fingerprint(self) -> bytes:
        import hashlib  # late, as in ModelFile

        return hashlib.sha256(self._file.fingerprint() + self._type.encode()).digest()

    def check_unchanged(self) -> None:
        self._file.check_unchanged()

    def release(self) -> None:
        self._file.close()

    def __repr__(self) -> str:
        return repr(self._file)
