"""From logits to a token: temperature, top-k, top-p, min-p and the repetition penalty.

In the order of llama.cpp: the penalty, then top-k, top-p and min-p cut the candidates down, then
the temperature shapes what is left and one is drawn.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from airllm import tensor_ops_hybrid as ops
from airllm.engine.settings import Sampling

__all__ = ["Sampler"]

# The repetition penalty looks back so many tokens, as llama.cpp's does: over all of a long text,
# words that any text repeats would be punished too.
PENALTY_WINDOW = 64


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
