"""Chooses a token from logits.

The order is that of llama.cpp: the biases, the penalties and DRY change logits; a grammar rules
tokens out; then top-k, typical-p, top-p and min-p reduce the candidates; then the temperature
shapes their distribution, from which a token is drawn.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from airllm import tensor_ops_hybrid as ops
from airllm.engine.repetition import Repetition
from airllm.engine.settings import Sampling

__all__ = ["Sampler", "log_probabilities"]

_LARGEST = float(np.finfo(np.float32).max)


class Sampler:
    """Chooses tokens, one after another, with its own random number generator."""

    def __init__(
        self, sampling: Sampling, token_bytes: Callable[[int], bytes] | None = None
    ) -> None:
        """token_bytes: of a token, for dry_breakers; without it nothing breaks a repetition."""
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)
        self._dry = Repetition(sampling, token_bytes) if sampling.dry_multiplier else None

    def sample(
        self,
        logits: NDArray[np.float32],
        history: Sequence[int] = (),
        allowed: NDArray[np.bool_] | None = None,
    ) -> int:
        """The next token's id.

        logits: float32 [vocab], not changed; history: the tokens so far, for the penalties.
        allowed: [vocab], the tokens that may come; None for all.
        ValueError if the largest logit is not a finite number: the model or its file is broken.
        """
        settings = self.sampling
        logits = self._changed(logits, history, allowed)
        if settings.temperature == 0.0:
            # 4 us for 49,152 logits, where ops.sample takes 20: it has answers to many at once.
            token = int(logits.argmax())
            if np.isfinite(logits[token]):
                return token  # else ops.sample says what is wrong
        if settings.typical_p < 1.0 and settings.temperature > 0.0:
            logits = _typical(logits, settings.top_k, settings.typical_p)
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

    def _changed(
        self,
        logits: NDArray[np.float32],
        history: Sequence[int],
        allowed: NDArray[np.bool_] | None,
    ) -> NDArray[np.float32]:
        """The logits after biases, penalties and what is not allowed; a copy if they change."""
        settings = self.sampling
        recent = _recent(history, settings.penalty_window)
        penalties = (
            settings.repeat_penalty != 1.0
            or settings.presence_penalty != 0.0
            or settings.frequency_penalty != 0.0
        )
        changes = settings.logit_bias or allowed is not None
        if not changes and not (recent and (penalties or self._dry)):
            return logits
        logits = logits.copy()
        if settings.logit_bias:
            tokens = np.fromiter(settings.logit_bias.keys(), np.int64)
            biases = np.fromiter(settings.logit_bias.values(), np.float64)
            logits[tokens] = _clipped(logits[tokens] + biases)
        if recent and penalties:
            _penalise(logits, recent, settings)
        if recent and self._dry:
            for token, penalty in self._dry.penalties(recent).items():
                logits[token] = _clipped(np.float64(logits[token]) - penalty)
        if allowed is not None:
            logits[~allowed] = -np.inf
        return logits


def log_probabilities(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """The natural logarithms of the probabilities of the model's distribution, float64 [vocab]."""
    values = logits.astype(np.float64)
    values -= values.max()
    values -= np.log(np.exp(values).sum())
    return values


def _recent(history: Sequence[int], window: int) -> Sequence[int]:
    """The tokens that the penalties look at; window: -1 for all."""
    return history if window == -1 else history[max(0, len(history) - window) :]


def _penalise(logits: NDArray[np.float32], recent: Sequence[int], settings: Sampling) -> None:
    tokens, counts = np.unique(np.asarray(recent, dtype=np.int64), return_counts=True)
    values = logits[tokens].astype(np.float64)
    penalty = settings.repeat_penalty
    with np.errstate(over="ignore"):  # a penalty of 1e-300 can overflow; clipped below
        values = np.where(values > 0, values / penalty, values * penalty)
    values -= settings.frequency_penalty * counts + settings.presence_penalty
    logits[tokens] = _clipped(values)


def _clipped(values: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    """Within float32, so that no penalty makes the largest logit infinite; -inf and NaN stay."""
    kept = np.where(np.isneginf(values), values, np.clip(values, -_LARGEST, _LARGEST))
    return np.asarray(kept, np.float64)


def _typical(logits: NDArray[np.float32], top_k: int, typical_p: float) -> NDArray[np.float32]:
    """The logits with -inf for all tokens but the typical ones among the top_k likeliest.

    Tokens are typical whose surprise, -log(probability), is nearest to the mean surprise; as many
    stay as together reach the probability typical_p.
    """
    if not np.isfinite(logits.max()):  # which is NaN if any is
        return logits  # ops.sample says what is wrong with it
    ids = np.flatnonzero(np.isfinite(logits))
    if 0 < top_k < len(ids):
        # Of equal logits the lower ids first, as in ops.sample.
        ids = ids[np.argsort(-logits[ids], kind="stable")[:top_k]]
    surprise = -log_probabilities(logits[ids])
    probabilities = np.exp(-surprise)
    mean = (probabilities * surprise).sum()
    order = np.argsort(np.abs(surprise - mean), kind="stable")
    share = np.cumsum(probabilities[order])
    stay = ids[order[: int(np.searchsorted(share, typical_p)) + 1]]
    typical = np.full_like(logits, -np.inf)
    typical[stay] = logits[stay]
    return typical
