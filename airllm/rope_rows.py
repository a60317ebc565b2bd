"""The cosines and sines that rope turns by, kept: a token needs a row of them, and looks it up."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import rope_table

_AT_ONCE = 256  # positions that are computed where one is missing


class RopeRows:
    """Rows of rope_table for positions from 0 on, computed as far as they have been asked for."""

    def __init__(self, inv_freq: NDArray[np.float64], capacity: int) -> None:
        """capacity: positions that there may be."""
        self._inv_freq, self._filled = inv_freq, 0
        self._table = np.empty((capacity, 2 * len(inv_freq)), np.float32)  # pages come when written

    @property
    def nbytes(self) -> int:
        """Bytes of the rows that are there."""
        return self._table[: self._filled].nbytes

    def rows(self, stretches: Sequence[tuple[int, int]]) -> NDArray[np.float32]:
        """For (first position, number of positions) of each sequence: [n_tokens, n_dims], which the
        caller must not change."""
        end = max(start + count for start, count in stretches)
        if end > self._filled:
            wanted = min(max(end, self._filled + _AT_ONCE), len(self._table))
            missing = np.arange(self._filled, wanted)
            self._table[self._filled : wanted] = rope_table(missing, self._inv_freq)
            self._filled = wanted
        if len(stretches) == 1:
            [(start, count)] = stretches
            return self._table[start : start + count]
        return np.concatenate([self._table[start : start + count] for start, count in stretches])
