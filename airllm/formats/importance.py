"""llama.cpp's importance files: how much each column of a matrix matters, measured on a text.

A file has, for a matrix, the mean square of each of its inputs: a column's error counts by it. For
the matrices of experts it has one such vector for each expert. There are two formats. Newer files
are GGUF files with tensors NAME.in_sum2 (sums of squares, [n matrices, k]) and NAME.counts (the
number of inputs that were added, [n matrices, 1]). Older ones (.dat) are a list of names, each with
the number of chunks of text and with means times this number.
"""

import os
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from airllm.formats.gguf_header import read_header
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Tensor
from airllm.util.metadata import FormatError

__all__ = ["Importance"]

Vectors = NDArray[np.float32]

_SUMS, _COUNTS = ".in_sum2", ".counts"
# Rows of these are looked up or, if they make the logits, usually not measured.
_NOT_MEASURED = ("token_embd.weight", "per_layer_token_embd.weight", "output.weight")
# Matrices that files may have as one, of the same input.
_TOGETHER = ((("_gate_exps.", "_up_exps."), "_gate_up_exps."),)


class Importance:
    """path: of the file. vectors: by the matrix's name, float32 [its values], finite and not
    negative. Those of a matrix of experts are one after the other."""

    def __init__(self, path: Path, vectors: Mapping[str, Vectors]) -> None:
        """FormatError for a vector with NaN, an infinity or a negative number."""
        self.path, self.vectors = path, MappingProxyType(dict(vectors))
        for name, vector in self.vectors.items():
            good = (vector >= 0) & (vector < np.inf)
            if not good.all():
                at = int(good.argmin())
                raise FormatError(
                    f"{path}: the importance of {quote(name)} is {vector[at]} at {at}; expected "
                    "finite numbers from 0 on"
                )

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> "Importance":
        """FormatError for a file that is damaged or of another kind, OSError if it cannot be
        read."""
        path = Path(path)
        with MappedFile.open(path, hint="give the importance file in it") as file:
            newer = file.pread(0, 4) == b"GGUF"
            return cls(path, _read_gguf(file) if newer else _read_dat(file))

    def of(self, tensor: Tensor) -> Vectors | None:
        """For each matrix of the tensor: float32 [n matrices, k]. None if the file has nothing of
        this name; FormatError if it has another number of values."""
        vector = self.vectors.get(tensor.name)
        for parts, whole in _TOGETHER:
            for part in parts if vector is None else ():
                vector = self.vectors.get(tensor.name.replace(part, whole), vector)
        if vector is None:
            return None
        n, k = _matrices(tensor), tensor.shape[-1]
        if vector.size != n * k:
            each = f"{n} times {k:,}, for {n} matrices" if n > 1 else f"{k:,}, one for each column"
            raise FormatError(
                f"{self.path}: the importance of {quote(tensor.name)} has {vector.size:,} values; "
                f"expected {each}: it is that of another model"
            )
        return vector.reshape(n, k)

    def missing(self, tensors: Sequence[Tensor]) -> list[str]:
        """Names of those that the file does not have, but for the embedding and the head, which
        files seldom have. FormatError if it has none at all."""
        measured = [each for each in tensors if each.name not in _NOT_MEASURED]
        missing = [each.name for each in measured if self.of(each) is None]
        if measured and len(missing) == len(measured):
            raise FormatError(
                f"{self.path}: has nothing on {quote(missing[0])} or any other of the "
                f"{len(missing):,} matrices: it is the importance file of another model"
            )
        return missing


def _matrices(tensor: Tensor) -> int:
    """How many matrices lie in a tensor: all axes but the last two."""
    return tensor.n_rows // tensor.shape[-2] if len(tensor.shape) > 1 else 1


def _read_gguf(file: MappedFile) -> dict[str, Vectors]:
    header = read_header(file)
    kind = header.metadata.text("general.type", "model")
    if kind != "imatrix":
        raise header.metadata.fault(f"general.type is {kind!r}; expected 'imatrix'")
    tensors = {tensor.name: tensor for tensor in header.tensors}
    vectors = {}
    for name, sums in tensors.items():
        if not name.endswith(_SUMS):
            continue
        of = name.removesuffix(_SUMS)
        counts = tensors.get(of + _COUNTS)
        if counts is None:
            raise header.metadata.fault(f"tensor {quote(of + _COUNTS)} is missing")
        for tensor in (sums, counts):
            if tensor.type != "f32":
                raise header.metadata.fault(
                    f"tensor {quote(tensor.name)} is {tensor.type}; expected f32"
                )
        vectors[of] = _means(header.metadata.fault, of, *(_values(file, t) for t in (sums, counts)))
    if not vectors:
        raise header.metadata.fault(f"has no tensor whose name ends in {_SUMS!r}")
    return vectors


def _means(fault: Callable[[str], FormatError], of: str, sums: Vectors, counts: Vectors) -> Vectors:
    """Sums over counts, for each matrix. One without inputs, an expert that no token of the text
    chose, has 1 for each column."""
    if sums.size % counts.size or not ((counts >= 0) & (counts < np.inf)).all():
        raise fault(
            f"tensor {quote(of + _COUNTS)} has {counts.size:,} values, {counts.min()} to "
            f"{counts.max()}; expected a number from 0 on for each part of the {sums.size:,} sums"
        )
    by_matrix, each = sums.reshape(counts.size, -1), counts.reshape(-1, 1)
    with np.errstate(invalid="ignore"):
        means = by_matrix / np.where(each > 0, each, np.float32(1))
    return np.where(each > 0, means, np.float32(1)).reshape(-1)


def _values(file: MappedFile, tensor: Tensor) -> Vectors:
    values = np.empty(tensor.nbytes, np.uint8)
    file.read(tensor.offset, values, tensor.name)
    return values.view("<f4").astype(np.float32, copy=False)


def _read_dat(file: MappedFile) -> dict[str, Vectors]:
    reader = _DatReader(file)
    n_entries, vectors = reader.number("the number of matrices"), {}
    if not 1 <= n_entries <= 2**20:
        raise FormatError(
            f"{file.path}: is no importance file of llama.cpp: it begins with {n_entries:,} as the "
            "number of matrices"
        )
    for _ in range(n_entries):
        name = reader.take(reader.number("the length of a name"), "a name").decode(errors="replace")
        n_chunks = reader.number(f"the number of chunks of {quote(name)}")
        n_bytes = 4 * reader.number(f"the number of values of {quote(name)}")
        values = np.frombuffer(reader.take(n_bytes, f"the values of {quote(name)}"), "<f4")
        vectors[name] = (values / np.float32(max(n_chunks, 1))).astype(np.float32)
    return vectors


class _DatReader:
    """Reads an older file in order, and never beyond its end."""

    def __init__(self, file: MappedFile) -> None:
        self.file, self.at = file, 0

    def take(self, n_bytes: int, what: str) -> bytes:
        if not 0 <= n_bytes <= self.file.size - self.at:
            raise FormatError(
                f"{self.file.path}: {what} needs {n_bytes:,} bytes at offset {self.at:,}, but the "
                f"file ends at {self.file.size:,}; it is damaged or no importance file of llama.cpp"
            )
        raw = np.empty(n_bytes, np.uint8)
        self.file.read(self.at, raw, what)
        self.at += n_bytes
        return raw.tobytes()

    def number(self, what: str) -> int:
        (found,) = struct.unpack("<i", self.take(4, what))
        return int(found)
