"""Converts a model's matrices to another type while they are read."""

import dataclasses

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import INTEGERS
from airllm.formats.mapped_file import quote
from airllm.formats.mixes import chosen_types
from airllm.formats.model_file import DerivedModel, ModelFile, Tensor, in_pieces
from airllm.formats.numbers import FLOATS, decode, encode, row_bytes
from airllm.util.metadata import FormatError

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
    matrix in the tensor, for types in WEIGHTED. FormatError names a tensor with values that `type`
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


def _is_looked_up(file: ModelFile, tensor: Tensor) -> bool:
    """Whether it is a table of n-grams; other models look their tokens up under the same name."""
    architecture = file.metadata.text("general.architecture", "")
    has_ngrams = f"{architecture}.ple.layers" in file.metadata
    return has_ngrams and tensor.name == "per_layer_token_embd.weight"


class RetypedModel(DerivedModel):
    """A ModelFile that converts the float matrices of another to `type` as they are read, and
    closes the other.

    These matrices have no extents. Matrices that are quantised already stay as they are, and so
    does a table of n-grams: it is not kept in memory, and a token reads a few rows of it.
    """

    def __init__(self, file: ModelFile, type: str) -> None:
        """ValueError for an unknown type, or a model without float matrices."""
        types = chosen_types(file, type, argument="quantize").types
        self._type = type
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
        floats = [tensor for tensor in matrices if tensor.type in FLOATS]
        if matrices and not floats:
            raise ValueError(
                f"{file.path}: its matrices are quantised already ({matrices[0].type}); "
                "`airllm convert` makes another type of them, with what they have lost"
            )
        # A table of integers is read as floats, and stays so.
        changed = {
            tensor.name: retyped(tensor, types[tensor.name])
            for tensor in floats
            if types[tensor.name] != INTEGERS and not _is_looked_up(file, tensor)
        }
        super().__init__(file, file.metadata, {**file.tensors, **changed})
        self.closed = False

    def data(self, name: str) -> Bytes:
        kept = self.tensors[name] is self._model.tensors[name]
        return self._model.data(name) if kept else super().data(name)

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        tensor, source = self.tensors[name], self._model.tensors[name]
        if tensor is source:
            return self._model.read(name, memory, rows)
        first, end = rows or (0, tensor.n_rows)
        raw = memory[: (end - first) * tensor.row_bytes].reshape(end - first, tensor.row_bytes)
        scratch = np.empty(0, np.uint8)
        for start, stop in in_pieces(end - first, source.shape[-1]):
            if not scratch.size:
                scratch = np.empty((stop - start) * source.row_bytes, np.uint8)
            piece = (first + start, first + stop)
            raw[start:stop] = convert_rows(self._model, source, tensor.type, piece, scratch)
        leading = tensor.shape[:-1] if rows is None else (end - first,)
        return raw.reshape(*leading, tensor.row_bytes)

    def fingerprint(self) -> bytes:
        import hashlib  # late, as in ModelFile

        return hashlib.sha256(self._model.fingerprint() + self._type.encode()).digest()
