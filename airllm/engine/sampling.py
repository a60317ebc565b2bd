"""From logits to a token: temperature, top-k, top-p, min-p and the repetition penalty.

In the order of llama.cpp: the penalty, then top-k, top-p and min-p cut the candidates down, then
the temperature shapes what is left and one is drawn.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm import tensor_ops_hybrid as ops

__all__ = ["Sampler", "Sampling"]

# The repetition penalty looks back so many tokens, as llama.cpp's does: over all of a long text,
# words that any text repeats would be punished too.
PENALTY_WINDOW = 64


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
        try:
            return ops.sample(
                logits,
                self._random.random(),
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                min_p=settings.min_p,
            )
        except ValueError as error:
            raise ValueError(f"{error} The model's file may be damaged.") from None


def _penalised(
    logits: NDArray[np.float32], history: Sequence[int], penalty: float
) -> NDArray[np.float32]:
    """A copy with the logits of the last tokens moved away from being chosen."""
    logits = logits.copy()
    recent = np.unique(np.asarray(history[-PENALTY_WINDOW:], dtype=np.int64))
    values = logits[recent]
    logits[recent] = np.where(values > 0, values / penalty, values * penalty)
    return logits
