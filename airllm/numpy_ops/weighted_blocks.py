"""Quantises blocks of 32 columns where columns have an importance: what
cpp_ext/kernels/weighted_blocks.h does, to the same bits.

The search minimises the sum of w * (x - value)^2 over a block, w being the importance of a column:
from a few starts, the levels nearest to x and the scale and minimum with the least error for these
levels are taken in turns. Arrays are [32, n_blocks]; what a block has one of is [n_blocks]. Sums
over columns are float32 and run from the first to the last.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops.blocks import IQ4_VALUES, Bytes
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.k_blocks import has_scale, is_too_small, weights_of
from airllm.numpy_ops.k_search import added, half, inverse

__all__ = ["WEIGHTED", "weighted_blocks"]

_TURNS = 3
# Where the fit starts. Without a minimum: the x of the largest magnitude is the lowest or the
# highest level times these. With: the lowest and the highest level stand for the least and the
# greatest x, moved inwards by so many steps between levels.
_TO_LOW, _TO_HIGH = (1.0, 1.06, 0.94, 0.88), (1.0, 1.07)
_INWARDS = ((0, 0), (0.4, 0.4), (0.8, 0), (0, 0.8), (1, 1), (2, 0), (0, 2))

# The levels of the codes, in order.
WEIGHTED: dict[str, Float32] = {
    "q4_0": np.arange(-8, 8, dtype=np.float32),
    "q4_1": np.arange(16, dtype=np.float32),
    "q5_0": np.arange(-16, 16, dtype=np.float32),
    "q5_1": np.arange(32, dtype=np.float32),
    "iq4_nl": IQ4_VALUES.astype(np.float32),
}
_WITH_MINIMUM = ("q4_1", "q5_1")


@np.errstate(all="ignore")
def weighted_blocks(x: Float32, type: str, importance: Float32) -> tuple[Float32, Bytes]:
    """x, importance: float32 [n_blocks, 32]. Returns the scales, with a minimum also that, float32
    [n_blocks, 1 or 2], exact in half precision, and the codes, uint8 [n_blocks, 32]."""
    magnitude = np.abs(x).max(axis=1)
    sound = has_scale(magnitude)
    each = sound[:, np.newaxis]
    search = _Search(
        np.ascontiguousarray(np.where(each, x, np.float32(0)).T),
        np.ascontiguousarray(np.where(each, weights_of(x, importance), np.float32(0)).T),
        WEIGHTED[type],
        type in _WITH_MINIMUM,
    )
    d, m = (half(found) for found in search.find())
    codes = search.codes(d, m).T
    nothing = np.where(is_too_small(magnitude), np.float32(0), np.float32(np.nan))
    header = [np.where(sound, found, nothing) for found in ((d, m) if search.has_min else (d,))]
    return np.stack(header, axis=1), np.ascontiguousarray(codes)


@dataclass(frozen=True)
class _Search:
    """Blocks of one type, side by side."""

    x: Float32
    w: Float32
    levels: Float32
    has_min: bool

    def find(self) -> tuple[Float32, Float32]:
        low, high = self.x.min(axis=0), self.x.max(axis=0)
        top, bottom = self.levels[-1], self.levels[0]
        best = (np.full_like(low, np.inf), np.zeros_like(low), np.zeros_like(low))
        if self.has_min:
            step = (high - low) / top
            for of_low, of_high in _INWARDS:
                minimum = low + step * np.float32(of_low)
                scale = (high - step * np.float32(of_high) - minimum) / top
                best = self._fit(scale, minimum, best)
        else:
            extreme = np.where(-low > high, low, high)
            for level, shares in ((bottom, _TO_LOW), (top, _TO_HIGH)):
                for share in shares:
                    scale = extreme / (level * np.float32(share))
                    best = self._fit(scale, np.zeros_like(low), best)
        return best[1], best[2]

    def codes(self, scale: Float32, minimum: Float32) -> Bytes:
        found = np.searchsorted(self.levels, self._nearest(scale, minimum))
        return found.astype(np.uint8)

    def _nearest(self, scale: Float32, minimum: Float32) -> Float32:
        """The nearest levels; between two values of a table, the upper one."""
        above = self.x - minimum if self.has_min else self.x
        scaled = above * inverse(scale)
        if self.levels[1] - self.levels[0] == 1:
            whole: Float32 = np.rint(np.clip(scaled, self.levels[0], self.levels[-1]))
            return whole
        middles = (self.levels[1:] + self.levels[:-1]) / np.float32(2)
        at: NDArray[np.intp] = np.searchsorted(middles, scaled, side="right")
        return self.levels[at]

    def _fit(
        self, scale: Float32, minimum: Float32, best: tuple[Float32, Float32, Float32]
    ) -> tuple[Float32, Float32, Float32]:
        """best: the least error so far, and its scale and minimum."""
        for turn in range(_TURNS + 1):
            q = self._nearest(scale, minimum)
            weighted = self.w * q
            off = self.x - scale * q
            if self.has_min:
                off = off - minimum
            error = added(self.w * off * off)
            better = error < best[0]
            best = (
                np.where(better, error, best[0]),
                np.where(better, scale, best[1]),
                np.where(better, minimum, best[2]),
            )
            if turn == _TURNS:
                break
            wqq, wxq = added(weighted * q), added(weighted * self.x)
            if self.has_min:
                w, wq, wx = added(self.w), added(weighted), added(self.w * self.x)
                determinant = w * wqq - wq * wq
                solved = determinant > np.float32(1e-6) * (w * wqq)
                scale = np.where(solved, (w * wxq - wx * wq) / determinant, scale)
                minimum = np.where(solved, (wqq * wx - wq * wxq) / determinant, minimum)
            else:
                scale = np.where(wqq > 0, wxq / wqq, scale)
        return best
