"""Chooses a token from logits: repetition penalty, top-k, top-p, min-p and temperature.

The order is that of llama.cpp: first the penalty; then top-k, top-p and min-p reduce the
candidates; then the temperature shapes their distribution, from which a token is drawn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm import tensor_ops_hybrid as ops
from airllm.engine.settings import Sampling

__all__ = ["Sampler"]

# The number of tokens that the repetition penalty looks back, as in llama.cpp: over a whole long
# text, it would also punish the words that every text repeats.
PENALTY_WINDOW = 64


class Sampler:
    """Chooses tokens, one after another, with its own random number generator."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def sample(self, logits: NDArray[np.float32], history: Sequence[int] = ()) -> int:
        """The next token's id.

        logits: float32 [vocab], not changed; history: the tokens so far, for the penalty.
        ValueError if the largest logit is not a finite number: the model or its file is broken.
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
    """A copy with the penalty applied to the logits of the last PENALTY_WINDOW tokens."""
    logits = logits.copy()
    recent = np.unique(np.asarray(history[-PENALTY_WINDOW:], dtype=np.int64))
    values = logits[recent].astype(np.float64)
    with np.errstate(over="ignore"):  # a penalty of 1e-300 can overflow; clipped below
        values = np.where(values > 0, values / penalty, values * penalty)
    largest = float(np.finfo(np.float32).max)
    logits[recent] = np.clip(values, -largest, largest)
    return logits
