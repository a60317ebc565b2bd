"""A table of which each token needs a few rows, and which stays in its files."""

import bisect
import itertools

import numpy as np
from numpy.typing import NDArray

from airllm.formats.model_file import ModelFile
from airllm.formats.numbers import decode

__all__ = ["RowTable"]


class RowTable:
    """Rows are read when they are asked for, by reads of their own: a memory map would read pages
    of 4 KiB, and count them as the process's memory."""

    def __init__(self, file: ModelFile, name: str) -> None:
        self._file, self._tensor = file, file.tensors[name]
        extents = self._tensor.extents
        self._starts = [0, *itertools.accumulate(extent.nbytes for extent in extents)]

    def rows(self, numbers: NDArray[np.int64]) -> NDArray[np.float32]:
        """float32 [*numbers.shape, width], of rows that the table has. FormatError if the file has
        changed since it was opened, OSError if it cannot be read."""
        wanted, places = np.unique(numbers, return_inverse=True)
        raw = np.empty((len(wanted), self._tensor.row_bytes), np.uint8)
        self._file.check_unchanged()
        for row, number in zip(raw, wanted.tolist(), strict=True):
            self._read(number, row)
        values = decode(raw, self._tensor.type)
        return values[places.reshape(-1)].reshape(*numbers.shape, -1)

    def _read(self, number: int, row: NDArray[np.uint8]) -> None:
        tensor = self._tensor
        first = number * tensor.row_bytes
        index = bisect.bisect_right(self._starts, first) - 1
        if index < len(tensor.extents) and first + row.nbytes <= self._starts[index + 1]:
            extent = tensor.extents[index]
            offset = extent.offset + first - self._starts[index]
            self._file.parts[extent.part].read(offset, row, tensor.name)
        else:  # made as it is read, or divided between two places
            self._file.read(tensor.name, row, (number, number + 1))
