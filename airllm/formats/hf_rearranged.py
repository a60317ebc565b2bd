"""Tensors made of other tensors of a Hugging Face folder: stacked, joined, sliced, transposed.

Each function takes and gives a RowSource, whose rows are read, or made, when they are needed.
"""

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from airllm.formats.hf_sources import FLOAT_TYPES, Bytes, RowSource, Stored, plain
from airllm.formats.mapped_file import quote
from airllm.formats.model_file import Extent
from airllm.formats.numbers import FLOATS, decode, encode
from airllm.util.metadata import FormatError

__all__ = [
    "alternate",
    "channels",
    "joined",
    "of_head_parts",
    "of_heads",
    "padded",
    "sliced",
    "stacked",
    "transposed",
]


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
        return _row(of_head_parts(column(source), parts, index))
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


def column(source: RowSource) -> RowSource:
    """A vector as a matrix of one column; other axes are of length 1."""
    n, n_rows = math.prod(source.shape), math.prod(source.shape[:-1])
    return replace(
        source,
        shape=(n, 1),
        rows=lambda first, end: source.rows(0, n_rows).reshape(n, -1)[first:end],
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
