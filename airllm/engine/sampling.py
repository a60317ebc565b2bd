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
from airllm.util.arguments import check_count, check_number

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
        def number(name: str, high: float, expected: str, *, above: bool = False) -> None:
            value = check_number(name, getattr(self, name), 0.0, high, expected, above=above)
            object.__setattr__(self, name, value)

        number("temperature", math.inf, "a finite one of 0 (greedy) or more")
        number("top_p", 1.0, "above 0, up to 1", above=True)
        number("min_p", 1.0, "0 to 1")
        number("repeat_penalty", math.inf, "a finite one above 0", above=True)
        object.__setattr__(self, "top_k", check_count("top_k", self.top_k, least=0))
        if self.seed is not None:
            object.__setattr__(self, "seed", check_count("seed", self.seed, least=0))


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
    values = logits[recent].astype(np.float64)
    with np.errstate(over="ignore"):  # a penalty of 1e-300 makes some as large as can be
        values = np.where(values > 0, values / penalty, values * penalty)
    largest = float(np.finfo(np.float32).max)
    logits[recent] = np.clip(values, -largest, largest)
    return logits
