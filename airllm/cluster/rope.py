"""The angles by which a root's rope turns queries and keys."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.cluster.op_config import Rope, RopeType
from airllm.numpy_ops import rope_table

_AHEAD = 64  # positions whose rows are computed together


@dataclass(frozen=True, slots=True)
class Angles:
    """The parameters of the frequencies. factor: 1 if the frequencies are not scaled."""

    head_dim: int
    theta: float
    factor: float
    low_frequency_factor: float
    high_frequency_factor: float
    original_length: int

    @classmethod
    def of(cls, config: Rope) -> "Angles":
        if config.type is RopeType.FALCON or config.factor == 1.0:
            return cls(config.head_dim, config.theta, 1.0, 1.0, 1.0, 1)
        return cls(
            config.head_dim,
            config.theta,
            config.factor,
            config.low_frequency_factor,
            config.high_frequency_factor,
            config.original_length,
        )

    def frequencies(self) -> NDArray[np.float64]:
        """Radians per position: [head_dim / 2]. Low frequencies are divided by the factor, high
        frequencies are not, and frequencies between are a mixture of both (Llama 3.1)."""
        exponents = np.arange(0, self.head_dim, 2, dtype=np.float64) / self.head_dim
        f = self.theta**-exponents
        if self.factor == 1.0:
            return f
        turns = self.original_length * f / (2 * np.pi)  # full turns over the original length
        low, high = self.low_frequency_factor, self.high_frequency_factor
        share = np.clip((turns - low) / (high - low), 0.0, 1.0)
        return (1 - share) * f / self.factor + share * f


class Turns:
    """The cosines and sines of a step's positions: `table`, float32 [rows, head_dim].

    Computing one row takes as long as many, so rows for the next steps are computed ahead.
    """

    def __init__(self, angles: Angles, rows: int) -> None:
        self.table = np.empty((rows, angles.head_dim), np.float32)
        self._frequencies = angles.frequencies()
        self._first = 0
        self._ahead = self.table[:0]

    @staticmethod
    def bytes_of(angles: Angles, rows: int) -> int:
        """The most bytes in use: the float32 table, and float64 values while it is computed."""
        return (4 + 16) * angles.head_dim * max(rows, _AHEAD)

    def fill(self, position: int, n: int) -> None:
        at = position - self._first
        if not 0 <= at <= len(self._ahead) - n:
            self._first, at = position, 0
            positions = np.arange(position, position + max(n, _AHEAD))
            self._ahead = rope_table(positions, self._frequencies)
        self.table[:n] = self._ahead[at : at + n]
