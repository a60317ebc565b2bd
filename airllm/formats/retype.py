"""Converts a model's matrices to another type while they are read."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import ModelFile, Tensor, in_pieces
from airllm.formats.numbers import FLOATS, WRITABLE, decode, encode, row_bytes
from airllm.util.closing import Closing
from airllm.util.metadata import FormatError, Metadata
from airllm.util.shown import shown

__all__ = ["RetypedModel", "convert_rows", "retyped", "target_type"]

_FINER = dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"), "q8_0")

# Names of matrices that stay as they are. ssm_a, ssm_d and ssm_norm are vectors in effect.
_EXACT = (
    *(".bias", "ffn_gate_inp.weight", "ssm_conv1d.weight", "shortconv.conv.weight"),
    *("ssm_norm.weight", "ssm_a", "ssm_d"),
    *(f"ssm_conv1d_{part}.weight" for part in "qkv"),
)

Bytes = npt.NDArray[np.uint8]


def target_type(tensor: Tensor, wanted: str, *, tied: bool) -> str:
    """The type of a tensor in a model of type `wanted`.

    Vectors, biases, short convolutions and the routers of experts are F32: they are a thousandth of
    a model and matter much.
    The matrix that makes the logits (the embedding if it is `tied`) has at least 8 bit. Rows that
    are not whole blocks are F16.
    """
    if len(tensor.shape) < 2 or tensor.name.endswith(_EXACT):
        return "f32"
    if tensor.name == ("token_embd.weight" if tied else "output.weight"):
        wanted = _FINER.get(wanted, wanted)
    return "f16" if row_bytes(wanted, tensor.shape[-1]) is None else wanted


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
    file: ModelFile, tensor: Tensor, type: str, rows: tuple[int, int], memory: Bytes
) -> Bytes:
    """Read rows of a tensor of `file` and convert them to `type`: uint8 [rows, row_bytes].
    memory: takes the bytes of the file. FormatError names a tensor with values that `type` cannot
    hold."""
    raw = file.read(tensor.name, memory, rows)
    if type == tensor.type:
        return raw
    try:
        return encode(decode(raw, tensor.type), type)
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
        if type not in WRITABLE:
            raise ValueError(f"quantize is {shown(type)}; expected one of {', '.join(WRITABLE)}")
        tied = "output.weight" not in file.tensors
        self._file, self._type = file, type
        self.path, self.metadata, self.parts = file.path, file.metadata, file.parts
        matrices = [tensor for tensor in file.tensors.values() if len(tensor.shape) > 1]
        floats = [tensor for tensor in matrices if tensor.type in FLOATS]
        if matrices and not floats:
            raise ValueError(
                f"{file.path}: its matrices are quantised already ({matrices[0].type}); "
                "`airllm convert` makes another type of them, with what they have lost"
            )
        changed = {
            tensor.name: retyped(tensor, target_type(tensor, type, tied=tied)) for tensor in floats
        }
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
