"""The search for the scales of the K types: what cpp_ext/kernels/k_search.h does, to the same bits.

A block of 256 columns has sub-blocks of 16 or 32, which share a scale s * d and, in some types, a
minimum m * d_min. The search minimises the sum of w * (x - value)^2 over the block, w being the
importance of a column. First each sub-block is fitted by itself: from a few starts, the codes
nearest to x and the scale and minimum with the least error for these codes are taken in turns. Then
the whole block: d and d_min in half precision and the integers s and m are taken in turns, s and m
among their neighbours and with the codes that are nearest for them.

Arrays are [columns of a sub-block, n_blocks, n_sub_blocks]; what a sub-block has one of is
[n_blocks, n_sub_blocks], what a block has one of is [n_blocks]. Sums over columns and over
sub-blocks are float32 and run from the first to the last.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops.checks import Float32

__all__ = ["SEARCHES", "Found", "Search", "added", "half", "inverse"]

LEAST_WEIGHT = np.float32(2.0**-20)  # of the largest importance in a block
_TINY = np.float32(1e-30)

Float64 = NDArray[np.float64]


@dataclass
class Found:
    """d, d_min: float32 [n_blocks], exact in half precision. s, m: whole numbers in float32,
    [n_blocks, n_sub_blocks]. error: float32 [n_blocks], infinite where d overflows."""

    d: Float32
    d_min: Float32
    s: Float32
    m: Float32
    error: Float32


class _Sums(NamedTuple):
    """Over the columns of each sub-block: w * (x - value)^2, w q, w q^2 and w x q."""

    error: Float32
    q: Float32
    qq: Float32
    xq: Float32


@dataclass(frozen=True)
class Search:
    """A type's search.

    sub: columns of a sub-block. code, s: the least and the greatest value, codes less the code of
    zero. starts: (low, high). With a minimum: code 0 and the greatest code stand for the least and
    the greatest x, moved inwards by these shares of the distance of the two. Without: the x of the
    largest magnitude is `low` times the scale. turns: how often codes and scales are taken in turns
    from each start. tops: the integers s that the largest scale begins with. rounds: the same turns
    for the whole block, from each top.
    """

    sub: int
    has_min: bool
    code: tuple[int, int]
    s: tuple[int, int]
    starts: tuple[tuple[float, float], ...]
    turns: int
    tops: tuple[int, ...]
    rounds: int

    def find(self, x: Float32, w: Float32) -> Found:
        block = _Block(self, x, w)
        exact_s, exact_m = block.fit()
        largest_at = np.abs(exact_s).argmax(axis=1)[:, np.newaxis]
        largest_s = np.take_along_axis(exact_s, largest_at, axis=1)[:, 0]
        largest_m = exact_m.max(axis=1)
        nothing = np.zeros_like(exact_s)
        zero = np.zeros_like(largest_s)
        best = Found(zero, zero, nothing, nothing, np.full_like(zero, np.inf))
        for top in self.tops:
            d = _up_to_half(largest_s / np.float32(top))
            d_min = _up_to_half(largest_m / np.float32(self.s[1]))
            s = np.rint(np.clip(exact_s * inverse(d)[:, np.newaxis], *self.s))
            m = np.rint(np.clip(exact_m * inverse(d_min)[:, np.newaxis], 0, self.s[1]))
            for turn in range(self.rounds + 1):
                s, m, error = block.neighbours(d, d_min, s, m)
                better = error < best.error
                each = better[:, np.newaxis]
                best = Found(
                    np.where(better, d, best.d),
                    np.where(better, d_min, best.d_min),
                    np.where(each, s, best.s),
                    np.where(each, m, best.m),
                    np.where(better, error, best.error),
                )
                if turn < self.rounds:
                    d, d_min = block.refit(d, d_min, s, m)
        return best

    def codes(self, x: Float32, found: Found) -> Float32:
        """The codes nearest to x, less the code of zero: whole numbers of the shape of x."""
        scale, minimum = found.d[:, np.newaxis] * found.s, found.d_min[:, np.newaxis] * found.m
        return self.nearest(x, scale, minimum)

    def nearest(self, x: Float32, scale: Float32, minimum: Float32) -> Float32:
        above = x + minimum if self.has_min else x
        codes: Float32 = np.rint(np.clip(above * inverse(scale), *self.code))
        return codes


class _Block:
    """Blocks of one type, side by side. x, w: [columns of a sub-block, n_blocks, n_sub_blocks]."""

    def __init__(self, search: Search, x: Float32, w: Float32) -> None:
        self.search, self.x, self.w = search, x, w
        self.w_sum, self.wx_sum = added(w), added(w * x)

    def sums(self, scale: Float32, minimum: Float32) -> _Sums:
        q = self.search.nearest(self.x, scale, minimum)
        wq = self.w * q
        has_min = self.search.has_min
        return _Sums(
            self.error(q, scale, minimum),
            added(wq) if has_min else np.zeros_like(scale),
            added(wq * q),
            added(wq * self.x),
        )

    def error(self, q: Float32, scale: Float32, minimum: Float32) -> Float32:
        above = self.x + minimum if self.search.has_min else self.x
        off = above - scale * q
        return added(self.w * off * off)

    def fit(self) -> tuple[Float32, Float32]:
        """The best scale and minimum of each sub-block by itself."""
        search = self.search
        low, high = self.x.min(axis=0), self.x.max(axis=0)
        extreme = np.where(-low > high, low, high)
        if search.has_min:
            low = np.minimum(low, np.float32(0))
        width = high - low
        best_error = np.full_like(low, np.inf)
        best_s, best_m = np.zeros_like(low), np.zeros_like(low)
        for start_low, start_high in search.starts:
            if search.has_min:
                minimum = np.maximum(-(low + width * np.float32(start_low)), np.float32(0))
                top = np.float32(search.code[1])
                scale = (high - width * np.float32(start_high) + minimum) / top
            else:
                minimum, scale = np.zeros_like(low), extreme / np.float32(start_low)
            for turn in range(search.turns + 1):
                now = self.sums(scale, minimum)
                better = now.error < best_error
                best_error = np.where(better, now.error, best_error)
                best_s = np.where(better, scale, best_s)
                best_m = np.where(better, minimum, best_m)
                if turn < search.turns:
                    scale, minimum = self._refit(now, scale, minimum)
        return best_s, best_m

    def _refit(self, of: _Sums, scale: Float32, minimum: Float32) -> tuple[Float32, Float32]:
        """The scale and minimum with the least error for given codes: the solution of two
        equations, or of one where the minimum would be negative. Where it has none, both stay."""
        alone = of.xq / of.qq
        if not self.search.has_min:
            return np.where(of.qq > 0, alone, scale), minimum
        w, x = self.w_sum, self.wx_sum
        determinant = w * of.qq - of.q * of.q
        below = (of.q * of.xq - of.qq * x) / determinant
        both = (w * of.xq - x * of.q) / determinant
        solved = determinant > np.float32(1e-6) * (w * of.qq)
        return (
            np.where(solved, np.where(below < 0, alone, both), scale),
            np.where(solved, np.maximum(below, np.float32(0)), minimum),
        )

    def neighbours(
        self, d: Float32, d_min: Float32, s: Float32, m: Float32
    ) -> tuple[Float32, Float32, Float32]:
        """Those of the neighbours of s and m that have the least error, and the blocks' errors."""
        search = self.search
        best_error, best_s, best_m = np.full_like(s, np.inf), s, m
        for i in (-1, 0, 1):
            near_s = np.clip(s + np.float32(i), *search.s)
            for j in (-1, 0, 1) if search.has_min else (0,):
                near_m = np.clip(m + np.float32(j), 0, search.s[1])
                scale, minimum = d[:, np.newaxis] * near_s, d_min[:, np.newaxis] * near_m
                error = self.error(search.nearest(self.x, scale, minimum), scale, minimum)
                better = error < best_error
                best_error = np.where(better, error, best_error)
                best_s, best_m = np.where(better, near_s, best_s), np.where(better, near_m, best_m)
        return best_s, best_m, added(best_error.T)

    def refit(self, d: Float32, d_min: Float32, s: Float32, m: Float32) -> tuple[Float32, Float32]:
        """The d and d_min with the least error for s, m and the codes that are nearest now."""
        now = self.sums(d[:, np.newaxis] * s, d_min[:, np.newaxis] * m)
        a, b = s.astype(np.float64), m.astype(np.float64)
        terms = (a * a * now.qq, a * b * now.q, b * b * self.w_sum, a * now.xq, b * self.wx_sum)
        aa, ab, bb, xa, xb = (added(term.T) for term in terms)
        determinant = aa * bb - ab * ab
        solved = determinant > 1e-6 * (aa * bb)
        alone = np.where(aa > 0, half((xa + d_min * ab) / aa), d)
        return (
            np.where(solved, half((bb * xa - ab * xb) / determinant), alone),
            np.where(solved, half((ab * xa - aa * xb) / determinant), d_min),
        )


def added(values: NDArray[Any]) -> NDArray[Any]:
    """The sum over the first axis, from the first to the last."""
    total: NDArray[Any] = values[0].copy()
    for value in values[1:]:
        total += value
    return total


def half(values: NDArray[Any]) -> Float32:
    """Rounded to half precision, from float64 by way of float32."""
    return values.astype(np.float32).astype(np.float16).astype(np.float32)


def _up_to_half(values: Float32) -> Float32:
    """The nearest half that is not nearer to zero, so that the largest s stays within its range."""
    half = values.astype(np.float16)
    nearer = np.abs(half.astype(np.float32)) < np.abs(values)
    bits: NDArray[np.uint16] = half.view(np.uint16) + nearer.astype(np.uint16)
    return bits.view(np.float16).astype(np.float32)


def inverse(scale: Float32) -> Float32:
    """1 / scale; 0 for a scale so small that no value in half precision is."""
    return np.where(np.abs(scale) < _TINY, np.float32(0), np.float32(1) / scale)


SEARCHES = {
    "q2_k": Search(
        sub=16,
        has_min=True,
        code=(0, 3),
        s=(0, 15),
        starts=((0, 0), (0.1, 0.1), (0.2, 0.2), (0, 0.2), (0.2, 0)),
        turns=2,
        tops=(15, 14, 13),
        rounds=2,
    ),
    "q3_k": Search(
        sub=16,
        has_min=False,
        code=(-4, 3),
        s=(-32, 31),
        starts=((-4, 0), (-4.5, 0), (-3.5, 0), (3, 0), (3.5, 0)),
        turns=2,
        tops=(-32, -31),
        rounds=2,
    ),
    "q4_k": Search(
        sub=32,
        has_min=True,
        code=(0, 15),
        s=(0, 63),
        starts=((0, 0), (0.03, 0.03), (0.1, 0), (0, 0.1), (0, -0.06)),
        turns=2,
        tops=(63, 60),
        rounds=1,
    ),
    "q5_k": Search(
        sub=32,
        has_min=True,
        code=(0, 31),
        s=(0, 63),
        starts=((0, 0), (0.02, 0.02), (0, -0.033)),
        turns=2,
        tops=(63, 60),
        rounds=1,
    ),
    "q6_k": Search(
        sub=16,
        has_min=False,
        code=(-32, 31),
        s=(-128, 127),
        starts=((-32, 0), (-31, 0), (-33, 0), (-34, 0), (31, 0)),
        turns=1,
        tops=(-128,),
        rounds=1,
    ),
}
