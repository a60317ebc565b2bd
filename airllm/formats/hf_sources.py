"""A Hugging Face folder's tensors as rows: rows that its files have, or rows made from them."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import TYPES
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, Made, Tensor
from airllm.formats.numbers import decode
from airllm.formats.safetensors import StoredTensor
from airllm.util.metadata import FormatError

__all__ = ["FLOAT_TYPES", "Bytes", "RowSource", "Stored", "integers", "plain"]

FLOAT_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

_KINDS = {kind.name: kind for kind in TYPES.values()}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Stored:
    """A tensor in its file. part: the number of the file."""

    part: int
    file: MappedFile
    entry: StoredTensor

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def dtype(self) -> str:
        return self.entry.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.entry.shape

    @property
    def extent(self) -> Extent:
        return Extent(self.part, self.entry.offset, self.entry.nbytes)

    @property
    def row_bytes(self) -> int:
        return self.entry.nbytes // max(math.prod(self.shape[:-1]), 1)

    def fault(self, text: str) -> FormatError:
        return FormatError(f"{self.file.path}: tensor {quote(self.name)} {text}")

    def stacked(self, n_matrices: int) -> "Stored":
        """A matrix as n_matrices of equal height, which lie below each other in it."""
        shape = self.shape
        if len(shape) != 2 or shape[0] % n_matrices:
            raise self.fault(f"has shape {list(shape)}; expected rows of {n_matrices} matrices")
        entry = replace(self.entry, shape=(n_matrices, shape[0] // n_matrices, shape[1]))
        return replace(self, entry=entry)

    def expect_shape(self, *expected: int) -> None:
        if self.shape != expected:
            raise self.fault(f"has shape {list(self.shape)}; expected {list(expected)}")

    def expect_dtype(self, *expected: str) -> None:
        if self.dtype not in expected:
            raise self.fault(f"is of type {self.dtype}; expected {' or '.join(expected)}")

    def read(self, first: int, end: int, columns: tuple[int, int] | None = None) -> Bytes:
        """Rows of the tensor, all leading axes taken together: uint8 [end - first, bytes].
        columns: (first, end) byte of each row; None for all bytes."""
        size = self.row_bytes
        left, right = columns or (0, size)
        found = np.empty((end - first, right - left), np.uint8)
        at = self.entry.offset + first * size
        if right - left == size:
            self.file.read(at, found.reshape(-1), self.name)
        else:
            self.file.read_strip(at + left, found, size, self.name)
        return found

    def floats(
        self, first: int, end: int, columns: tuple[int, int] | None = None
    ) -> npt.NDArray[np.float32]:
        """Likewise as float32 [end - first, values], of a tensor whose type is one of FLOAT_TYPES.
        columns: (first, end) value of each row. FormatError for NaN and infinities."""
        size = {"F32": 4}.get(self.dtype, 2)
        found = self.read(
            first, end, None if columns is None else (size * columns[0], size * columns[1])
        )
        values = decode(found, FLOAT_TYPES[self.dtype])
        if not np.isfinite(values).all():
            raise self.fault("has values that are no finite numbers")
        return values


@dataclass(frozen=True)
class RowSource:
    """A tensor before it has GGUF's name.

    name: the folder's. file: names the tensor's file in messages. type, shape, extents: as Tensor
    has them. rows: reads or makes its rows, as Made does. sources: see Made. scale: by which
    products with the whole matrix are multiplied, float32, or with each of a stack; (): by nothing.
    """

    name: str
    file: MappedFile
    type: str
    shape: tuple[int, ...]
    extents: tuple[Extent, ...]
    rows: Callable[[int, int], Bytes]
    sources: tuple[Extent, ...] = ()
    scale: tuple[float, ...] = ()

    @property
    def row_bytes(self) -> int:
        return _KINDS[self.type].row_bytes(self.shape[-1])

    @property
    def made(self) -> Made | None:
        return None if self.extents else Made(self.rows, self.sources)

    def tensor(self, name: str) -> Tensor:
        n_bytes = math.prod(self.shape[:-1]) * self.row_bytes
        return Tensor(name, self.type, self.shape, self.row_bytes, n_bytes, self.extents)


def plain(stored: Stored) -> RowSource:
    """A tensor as its file has it. FormatError for a type other than F32, F16 and BF16."""
    if stored.dtype not in FLOAT_TYPES:
        raise stored.fault(
            f"is of type {stored.dtype}; supported are {', '.join(FLOAT_TYPES)}, and what "
            "quantization_config of config.json describes"
        )
    if not stored.shape or 0 in stored.shape:
        raise stored.fault(f"has shape {list(stored.shape)}, which holds nothing")
    type, extent = FLOAT_TYPES[stored.dtype], stored.extent
    return RowSource(stored.name, stored.file, type, stored.shape, (extent,), stored.read)


def integers(stored: Stored, below: int) -> RowSource:
    """A tensor of integers as float32. FormatError for those that are not from 0 to below - 1."""
    stored.expect_dtype("I32", "I64")
    if len(stored.shape) != 2 or 0 in stored.shape:
        raise stored.fault(f"has shape {list(stored.shape)}; expected a table")

    def rows(first: int, end: int) -> Bytes:
        found = stored.read(first, end).view("<i4" if stored.dtype == "I32" else "<i8")
        if found.size and not 0 <= found.min() <= found.max() < below:
            raise stored.fault(f"has numbers that are not from 0 to {below - 1}")
        return found.astype("<f4").view(np.uint8)

    return RowSource(stored.name, stored.file, "f32", stored.shape, (), rows, (stored.extent,))
