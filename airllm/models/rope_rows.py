"""The cosines and sines of rope: a cache with a row for each position, filled when first needed."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm.models.rope import Rotation
from airllm.numpy_ops import rope_table

_AT_LEAST = 256  # positions that are computed at once, if the capacity allows


class RopeRows:
    """The rows of rope_table from position 0 to the last that was asked for."""

    def __init__(self, rotation: Rotation, capacity: int) -> None:
        """capacity: the number of positions, at most."""
        self._inv_freq, self._capacity = rotation.frequencies(capacity), capacity
        self._rotation = rotation
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
            step = self._rotation.step
            positions = np.arange(len(self._table), wanted) // step * step
            magnitudes = self._rotation.magnitudes(positions).astype(np.float32)
            missing = rope_table(positions, self._inv_freq) * magnitudes[:, np.newaxis]
            self._table = np.concatenate([self._table, missing])
        if len(stretches) == 1:
            [(start, count)] = stretches
            return self._table[start : start + count]
        return np.concatenate([self._table[start : start + count] for start, count in stretches])
