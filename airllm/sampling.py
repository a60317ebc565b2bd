"""From logits to a token: temperature, top-k, top-p, min-p and the repetition penalty.

In the order of llama.cpp: the penalty, then top-k, top-p and min-p cut the candidates down, then
the temperature shapes what is left and one is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["Sampler", "Sampling"]

# The repetition penalty looks back so many tokens, as llama.cpp's does: over all of a long text,
# words that any text repeats would be punished too.
PENALTY_WINDOW = 64

_GROUP = 64  # logits, see _top_k


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ValueError or TypeError names an argument that makes no sense.

    temperature: 0 takes the likeliest token, the lowest id where several are equally likely; up to
        1 the model's own distribution gets its shape back, above it flattens.
    top_k: only the k likeliest tokens; 0 is all of them.
    top_p: only the likeliest tokens that together reach this probability (arXiv:1904.09751).
    min_p: only tokens at least this fraction as likely as the likeliest (arXiv:2407.01082).
    repeat_penalty: divides the positive and multiplies the negative logits of the last 64 tokens
        (arXiv:1909.05858); 1 changes nothing.
    seed: the same seed draws the same tokens from the same logits; None draws anew each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        _check_number("temperature", self.temperature, 0.0, math.inf, "0 (greedy) or more")
        _check_number("top_p", self.top_p, 0.0, 1.0, "above 0, up to 1", above=True)
        _check_number("min_p", self.min_p, 0.0, 1.0, "0 to 1")
        _check_number("repeat_penalty", self.repeat_penalty, 0.0, math.inf, "above 0", above=True)
        _check_integer("top_k", self.top_k, "0 (all tokens) or more")
        if self.seed is not None:
            _check_integer("seed", self.seed, "0 or more, or None")


def _check_number(
    name: str, value: object, low: float, high: float, expected: str, *, above: bool = False
) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} is {value!r}; expected a number, {expected}")
    in_range = low <= value <= high and math.isfinite(value) and not (above and value == low)
    if not in_range:
        raise ValueError(f"{name} is {value}; expected {expected}")


def _check_integer(name: str, value: object, expected: str) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise TypeError(f"{name} is {value!r}; expected an integer, {expected}")
    if value < 0:
        raise ValueError(f"{name} is {value}; expected {expected}")


class Sampler:
    """Chooses tokens, one after another, with random numbers of its own."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token's id.

        logits: float32 [vocab], not changed; history: the tokens so far, for the penalty.
        ValueError when the largest logit is not a finite number: the model or its file is broken.
        """
        settings = self.sampling
        if settings.repeat_penalty != 1.0 and history:
            logits = _penalised(logits, history, settings.repeat_penalty)
        best = int(np.argmax(logits))  # the first of equals; NaN if there is one
        if not math.isfinite(logits[best]):
            raise ValueError(
                f"the model's largest logit is {logits[best]}; the model's file may be damaged"
            )
        if settings.temperature == 0.0:
            return best
        ids, probabilities = self.candidates(logits)
        cumulative = np.cumsum(probabilities)
        drawn = np.searchsorted(cumulative, self._random.random() * cumulative[-1], side="right")
        return int(ids[min(drawn, len(ids) - 1)])  # the product may round up to the last sum

    def candidates(
        self, logits: NDArray[np.float32]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """The tokens that may be drawn, likeliest first, and the probability of each.

        logits: float32 [vocab], after the penalty. Returns int64 [n], float64 [n] with a sum of 1.
        """
        settings = self.sampling
        ids = _top_k(logits, settings.top_k)
        values = logits[ids].astype(np.float64)
        values -= values.max()
        relative = np.exp(values)  # probability, relative to the likeliest's
        total = relative.sum()
        # min-p first: it takes the same tokens away as after top-p, and spares sorting them.
        likely = np.flatnonzero(relative >= settings.min_p)
        likely = likely[np.argsort(-relative[likely], kind="stable")]
        # As many as reach top_p: the one that crosses it is the last.
        share = np.cumsum(relative[likely]) / total
        likely = likely[: int(np.searchsorted(share, settings.top_p)) + 1]
        with np.errstate(over="ignore"):  # a tiny temperature: only the likeliest is left
            shaped = np.exp(values[likely] / settings.temperature)
        return ids[likely], shaped / shaped.sum()


def _top_k(logits: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    """Ids of the k largest logits, lower ids first among equals; all of them if k is 0."""
    n_groups = len(logits) // _GROUP
    if k == 0 or k >= len(logits):
        return np.arange(len(logits))
    if k < n_groups:
        # k groups have a largest value of at least `floor`, so the k largest are not below it.
        # That takes 20 us for 49,152 logits, where np.partition on all of them takes 250.
        groups = logits[: n_groups * _GROUP].reshape(_GROUP, n_groups).max(axis=0)
        floor = np.partition(groups, -k)[-k]
        ids = np.flatnonzero(logits >= floor)
    else:
        ids = np.arange(len(logits))
    return ids[np.argsort(-logits[ids], kind="stable")[:k]]


def _penalised(
    logits: NDArray[np.float32], history: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    """A copy with the logits of the last tokens moved away from being chosen."""
    logits = logits.copy()
    recent = np.unique(np.asarray(history[-PENALTY_WINDOW:], dtype=np.int64))
    values = logits[recent]
    logits[recent] = np.where(values > 0, values / penalty, values * penalty)
    return logits
