"""The cosines and sines of rope: a cache with a row for each position, filled when first needed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm.models.rope import Rotation
from airllm.numpy_ops import rope_table

_AT_LEAST = 256  # positions that are computed at once, if the capacity allows


class RopeRows:
    """The rows of rope_table from position 0 to the last that was asked for."""

    def __init__(self, rope: Rotation, capacity: int) -> None:
        """capacity: the number of positions, at most."""
        self._inv_freq, self._capacity = rope.frequencies(capacity), capacity
        self._magnitude = np.float32(rope.magnitude)
        self._table = np.empty((0, 2 * len(self._inv_freq)), np.float32)

    @property
    def nbytes(self) -> int:
        return self._table.nbytes

    def rows(self, stretches: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """For (first position, number of positions) of each sequence: [n_tokens, n_dims], which the
        caller must not change."""
        end = max(start + count for start, count in stretches)
        if end > len(self._table):
            wanted = max(end, min(max(2 * len(self._table), _AT_LEAST), self._capacity))
            missing = rope_table(np.arange(len(self._table), wanted), self._inv_freq)
            self._table = np.concatenate([self._table, self._magnitude * missing])
        if len(stretches) == 1:
            [(start, count)] = stretches
            return self._table[start : start + count]
        return np.concatenate([self._table[start : start + count] for start, count in stretches])
