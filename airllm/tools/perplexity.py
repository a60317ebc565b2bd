"""Perplexity of a model on a text, scored as llama.cpp's llama-perplexity scores it.

The tokens are cut into chunks of `context` tokens; an incomplete last chunk is dropped. Each chunk
starts from an empty cache, its first token replaced by BOS if the model wants one. Only the
second half is counted, so that every counted token has seen at least half a context: positions
context/2 ... context-2 each predict the token after them. Perplexity = exp(mean(-log p)).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.util.progress import OnProgress, part_of

MIN_CONTEXT = 3  # the smallest chunk with a counted position: 3 // 2 == 1 == 3 - 2

# Logits are asked for in slices of at most this many bytes: the second half of a 512-token chunk
# at a vocabulary of 49,152 is one slice, that of 2,048 tokens at 128,256 would be 525 MB.
_LOGITS_BYTES = 64 << 20


class Scorer(Protocol):
    """A model that can be scored, such as LayerWiseInferenceEngine."""

    def reset(self) -> None:
        """Forgets every token seen so far."""

    def forward(
        self,
        tokens: Sequence[int],
        *,
        last_only: bool = True,
        on_progress: OnProgress | None = None,
    ) -> NDArray[np.float32]:
        """Appends tokens; returns logits, float32 [vocab] (last_only) or [n_tokens, vocab]."""


@dataclass(frozen=True)
class Perplexity:
    perplexity: float
    stderr: float  # standard error of the perplexity, from the spread of -log p
    chunks: int
    tokens: int  # counted tokens, those that were predicted


def perplexity(
    model: Scorer,
    tokens: Sequence[int],
    context: int,
    *,
    bos_id: int | None = None,
    on_progress: Callable[[int, int, float | None], None] | None = None,
) -> Perplexity:
    """Scores `tokens` in chunks of `context`.

    bos_id replaces the first token of each chunk; None leaves it as it is.
    on_progress(tokens done, tokens in all, perplexity of the chunks so far) is called repeatedly;
    in the first chunk the perplexity is None.
    ValueError if the context is below 3 or the text is shorter than one chunk.
    """
    if context < MIN_CONTEXT:
        raise ValueError(f"perplexity: context is {context}; the smallest is {MIN_CONTEXT}")
    n_chunks = len(tokens) // context
    if n_chunks == 0:
        raise ValueError(
            f"perplexity: the text has {len(tokens)} tokens, less than one chunk of {context}. "
            f"Use a longer text or a smaller context."
        )
    n_fed = context - 1  # of each chunk: the last token is only predicted
    so_far: float | None = None

    def on_tokens(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(done, total, so_far)

    chunk_losses = []
    for index in range(n_chunks):
        chunk = list(tokens[index * context : (index + 1) * context])
        if bos_id is not None:
            chunk[0] = bos_id
        within = part_of(on_tokens, index * n_fed, n_fed, n_chunks * n_fed)
        chunk_losses.append(_chunk_losses(model, chunk, within))
        losses = np.concatenate(chunk_losses)
        so_far = value = _exp_mean(losses)
        on_tokens((index + 1) * n_fed, n_chunks * n_fed)
    # d exp(m) = exp(m) dm, and m, a mean of n losses, has the standard error std / sqrt(n).
    stderr = value * float(losses.std(ddof=1)) / math.sqrt(losses.size) if losses.size > 1 else 0.0
    return Perplexity(value, stderr, n_chunks, losses.size)


def _chunk_losses(
    model: Scorer, chunk: list[int], on_progress: OnProgress | None
) -> NDArray[np.float64]:
    """-log p of the tokens that positions len/2 ... len-2 predict: float64 [n_counted]."""
    first, last = len(chunk) // 2, len(chunk) - 1
    model.reset()
    vocab_size = model.forward(chunk[:first], on_progress=part_of(on_progress, 0, first, last)).size
    rows = max(1, _LOGITS_BYTES // (4 * vocab_size))
    losses = []
    for start in range(first, last, rows):
        end = min(start + rows, last)
        within = part_of(on_progress, start, end - start, last)
        logits = model.forward(chunk[start:end], last_only=False, on_progress=within)  # [n, vocab]
        losses.append(negative_log_likelihood(logits, chunk[start + 1 : end + 1]))
    return np.concatenate(losses)


def negative_log_likelihood(
    logits: NDArray[np.float32], targets: Sequence[int]
) -> NDArray[np.float64]:
    """-log softmax(logits)[target] of each row. logits: [n, vocab]; targets: n ids -> [n]."""
    shifted = logits - logits.max(axis=-1, keepdims=True)  # the largest is 0: exp cannot overflow
    log_sum = np.log(np.exp(shifted).sum(axis=-1, dtype=np.float64))
    chosen = shifted[np.arange(len(targets)), targets].astype(np.float64)
    losses: NDArray[np.float64] = log_sum - chosen
    return losses


def _exp_mean(losses: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):  # a broken model has perplexity inf, which is the answer
        return float(np.exp(losses.mean()))
