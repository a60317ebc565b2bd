"""A Hugging Face folder's tensors as rows: rows that its files have, or rows made from them."""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import TYPES
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, Made, Tensor
from airllm.formats.numbers import FLOATS, decode, encode
from airllm.formats.safetensors import StoredTensor
from airllm.util.metadata import FormatError

__all__ = [
    "FLOAT_TYPES",
    "RowSource",
    "Stored",
    "alternate",
    "integers",
    "joined",
    "of_heads",
    "padded",
    "plain",
    "sliced",
    "stacked",
    "transposed",
]

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


def transposed(stored: Stored) -> RowSource:
    """Of a float tensor [..., k, n], the tensor [..., n, k]."""
    source = plain(stored)
    if len(stored.shape) < 2:
        raise stored.fault(f"has shape {list(stored.shape)}; expected at least two axes")
    *leading, k, n = stored.shape
    size = stored.row_bytes // n

    def of_matrix(matrix: int, first: int, end: int) -> Bytes:
        strip = stored.read(matrix * k, (matrix + 1) * k, (first * size, end * size))
        values = strip.reshape(k, end - first, size).swapaxes(0, 1)
        return values.reshape(end - first, k * size)

    rows = _by_matrix(n, of_matrix)
    shape = (*leading, n, k)
    return replace(source, shape=shape, extents=(), rows=rows, sources=source.extents)


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


def stacked(name: str, sources: Sequence[RowSource]) -> RowSource:
    """One tensor of many of a shape: [n, *shape]. FormatError if they differ."""
    first = sources[0]
    for source in sources:
        same = (source.type, source.shape, not source.extents)
        if same != (first.type, first.shape, not first.extents):
            raise FormatError(
                f"{source.file.path}: tensor {quote(source.name)} differs in type or shape from "
                f"{quote(first.name)}"
            )
    rows = _by_matrix(
        math.prod(first.shape[:-1]), lambda index, start, end: sources[index].rows(start, end)
    )
    return RowSource(
        name,
        first.file,
        first.type,
        (len(sources), *first.shape),
        tuple(extent for source in sources for extent in source.extents),
        rows,
        tuple(extent for source in sources for extent in source.sources),
        tuple(factor for source in sources for factor in source.scale),
    )


def joined(name: str, sources: Sequence[RowSource]) -> RowSource:
    """One matrix of the rows of several, one after another. FormatError if they differ in width or
    type, or have scales."""
    first = sources[0]
    for source in sources:
        same = (source.type, len(source.shape), source.shape[-1], not source.extents, source.scale)
        if same != (first.type, 2, first.shape[-1], not first.extents, ()):
            raise FormatError(
                f"{source.file.path}: tensor {quote(source.name)} differs in type or width from "
                f"{quote(first.name)}, or has a scale"
            )
    ends = list(itertools.accumulate(source.shape[0] for source in sources))

    def rows(start: int, end: int) -> Bytes:
        found, at = [], bisect.bisect_right(ends, start)
        while start < end:
            before, until = ends[at] - sources[at].shape[0], min(end, ends[at])
            found.append(sources[at].rows(start - before, until - before))
            start, at = until, at + 1
        return found[0] if len(found) == 1 else np.concatenate(found)

    return RowSource(
        name,
        first.file,
        first.type,
        (ends[-1], first.shape[-1]),
        tuple(extent for source in sources for extent in source.extents),
        rows,
        tuple(extent for source in sources for extent in source.sources),
    )


def sliced(source: RowSource, count: int, index: int, n_matrices: int) -> RowSource:
    """The rows of one of `count` equal parts, which follow each other in each of n_matrices."""
    n_rows = math.prod(source.shape[:-1]) // n_matrices // count
    axis = max(len(source.shape) - 2, 0)
    shape = (*source.shape[:axis], source.shape[axis] // count, *source.shape[axis + 1 :])
    n_bytes = sum(extent.nbytes for extent in source.extents) // n_matrices // count
    extents = tuple(
        Extent(extent.part, extent.offset + at * n_bytes, n_bytes)
        for extent in source.extents
        for at in range(index, n_matrices * count, count)
    )

    def of_matrix(matrix: int, first: int, end: int) -> Bytes:
        start = (matrix * count + index) * n_rows
        return source.rows(start + first, start + end)

    return replace(source, shape=shape, extents=extents, rows=_by_matrix(n_rows, of_matrix))


def alternate(source: RowSource, count: int, index: int, *, bias: bool) -> RowSource:
    """The rows index, index + count, ... of a tensor [..., n, k]; of a bias [..., n], likewise its
    values."""
    sources = source.sources or source.extents
    if bias:
        size, n = source.row_bytes // source.shape[-1], source.shape[-1] // count

        def values(first: int, end: int) -> Bytes:
            found = source.rows(first, end).reshape(end - first, n, count, size)
            return found[:, :, index].reshape(end - first, n * size)

        shape = (*source.shape[:-1], n)
        return replace(source, shape=shape, extents=(), rows=values, sources=sources)

    def rows(first: int, end: int) -> Bytes:
        return source.rows(first * count, end * count)[index::count]

    shape = (*source.shape[:-2], source.shape[-2] // count, source.shape[-1])
    return replace(source, shape=shape, extents=(), rows=rows, sources=sources)


def padded(source: RowSource, n_rows: int) -> RowSource:
    """A matrix of floats with rows of zeros behind its own, n_rows in all."""
    there = source.shape[0]
    if there == n_rows:
        return source
    if len(source.shape) != 2 or there > n_rows or source.type not in FLOAT_TYPES.values():
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} is {source.type} "
            f"{list(source.shape)}; expected a matrix of floats with at most {n_rows} rows"
        )

    def rows(first: int, end: int) -> Bytes:
        found = np.zeros((end - first, source.row_bytes), np.uint8)
        if first < there:
            own = source.rows(first, min(end, there))
            found[: len(own)] = own
        return found

    shape = (n_rows, *source.shape[1:])
    return replace(source, shape=shape, extents=(), rows=rows, sources=source.extents)


def of_heads(source: RowSource, head_rows: tuple[int, int]) -> tuple[RowSource, RowSource]:
    """The first and the last rows of each head of a matrix, [n_heads, k, rows] and
    [n_heads, rows, k]; see Slots. If the matrix is quantised, the first is F16."""
    first, last = head_rows
    every = first + last
    if len(source.shape) != 2 or source.shape[0] % every:
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} has shape {list(source.shape)}; "
            f"expected a multiple of {every} rows, {first} and {last} for each head"
        )
    n_heads, k = source.shape[0] // every, source.shape[1]
    type = source.type if source.type in FLOATS else "f16"
    sources = source.sources or source.extents

    def columns(head: int, start: int, end: int) -> Bytes:
        rows = source.rows(head * every, head * every + first)
        if type == source.type:
            values = rows.reshape(first, k, -1)
            return np.ascontiguousarray(values[:, start:end].swapaxes(0, 1)).reshape(
                end - start, -1
            )
        turned = np.ascontiguousarray(decode(rows, source.type).T[start:end])
        try:
            return encode(turned, type)
        except ValueError as error:
            raise FormatError(f"{source.file.path}: tensor {quote(source.name)} {error}") from None

    def rows(head: int, start: int, end: int) -> Bytes:
        return source.rows(head * every + first + start, head * every + first + end)

    extents = tuple(
        Extent(extent.part, extent.offset + head * every * size + first * size, last * size)
        for extent in source.extents
        for size in [source.row_bytes]
        for head in range(n_heads)
    )
    return (
        replace(
            source,
            type=type,
            shape=(n_heads, k, first),
            extents=(),
            rows=_by_matrix(k, columns),
            sources=sources,
        ),
        replace(source, shape=(n_heads, last, k), extents=extents, rows=_by_matrix(last, rows)),
    )


def of_head_parts(source: RowSource, parts: Sequence[tuple[int, int]], index: int) -> RowSource:
    """The rows of the parts of all heads that belong to name number `index`; see Slots."""
    if len(source.shape) == 1:  # a bias
        return _row(of_head_parts(_column(source), parts, index))
    every, n_rows = sum(rows for _, rows in parts), source.shape[0]
    if len(source.shape) != 2 or n_rows % every:
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} has shape {list(source.shape)}; "
            f"expected a multiple of {every} rows, those of a head"
        )
    runs, first = [], 0  # (first, end) of rows
    for name, rows in parts:
        if name == index:
            starts = range(first, n_rows, every)
            runs += [(start, start + rows) for start in starts]
        first += rows
    ends = list(itertools.accumulate(end - start for start, end in runs))
    size = source.row_bytes

    def taken(first: int, end: int) -> Bytes:
        found, at = [], bisect.bisect_right(ends, first)
        while first < end:
            start = runs[at][1] - ends[at]
            until = min(end, ends[at])
            found.append(source.rows(start + first, start + until))
            first, at = until, at + 1
        return found[0] if len(found) == 1 else np.concatenate(found)

    extents = tuple(
        Extent(extent.part, extent.offset + start * size, (end - start) * size)
        for extent in source.extents
        for start, end in runs
    )
    sources = source.sources or source.extents
    shape = (ends[-1], source.shape[1])
    return replace(source, shape=shape, extents=extents, rows=taken, sources=sources)


def _column(source: RowSource) -> RowSource:
    """A vector as a matrix of one column."""
    n = source.shape[0]
    return replace(
        source,
        shape=(n, 1),
        rows=lambda first, end: source.rows(0, 1).reshape(n, -1)[first:end],
    )


def _row(source: RowSource) -> RowSource:
    """A matrix of one column as a vector."""
    n = source.shape[0]
    return replace(source, shape=(n,), rows=lambda first, end: source.rows(0, n).reshape(1, -1))


def channels(source: RowSource) -> RowSource:
    """Of the filters [channels, 1, taps] of a convolution, [channels, taps]."""
    if len(source.shape) != 3 or source.shape[1] != 1:
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} has shape {list(source.shape)}; "
            "expected [channels, 1, taps]"
        )
    return replace(source, shape=(source.shape[0], source.shape[2]))


def _by_matrix(n_rows: int, part: Callable[[int, int, int], Bytes]) -> Callable[[int, int], Bytes]:
    """The rows of matrices of n_rows rows each, one matrix after the other. part: (index of the
    matrix, first, end) to rows of it."""

    def rows(first: int, end: int) -> Bytes:
        found = []
        while first < end:
            matrix, row = divmod(first, n_rows)
            until = min(n_rows, row + end - first)
            found.append(part(matrix, row, until))
            first += until - row
        return found[0] if len(found) == 1 else np.concatenate(found)

    return rows
