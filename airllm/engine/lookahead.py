"""Guesses the next tokens and checks several guesses in one pass of the model.

Most of a token's time goes into reading the weights, from memory or from the disk. A pass over a
few tokens reads them once, so that right guesses are nearly free. Text repeats itself: names, code,
passages that a summary or an edit takes from its source. So the guess is the text that followed the
last tokens at their previous occurrence, in the prompt or in the answer. Alternatively a draft
guesses, a smaller model with the same vocabulary, or the model's own next-token head.

The answer does not change. Each token is sampled from its logits as without guesses; a guess only
decides whether the next logits are already computed. The logits are the same bit for bit, because
numbers do not depend on how many rows are evaluated together. Speculative sampling in general
(arXiv:2211.17192) accepts a guess by the ratio of two probabilities. Here a guess is a token
without a distribution, so that sampling from the model and comparing is enough.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from airllm.engine.batches import Logits
from airllm.engine.continuation import Continuation
from airllm.engine.decoder import Decoder
from airllm.util.progress import OnProgress

__all__ = [
    "GUESSES",
    "MOST_GUESSES",
    "NEXT_GUESSES",
    "Draft",
    "Guesser",
    "Lookahead",
    "NGrams",
]

# With the token before them 64, the most that activations="auto" evaluates with 16 bits.
MOST_GUESSES = 63
# The default with a draft, or if a pass waits for the disk: even if all guesses are wrong, so few
# rows take little of the time in which the next layer is read.
GUESSES = 8
# Likewise with a next-token head, which was trained for one guess: each further one is right less
# often. With AVX-512 and Q4_K, passes of 2, 3 and 4 tokens take 1.5, 2 and 1.5 times as long as a
# pass of one: 4 are a whole tile of the matrix kernels.
NEXT_GUESSES = 3
_LONGEST, _SHORTEST = 4, 2  # tokens of the runs that NGrams looks up


class Guesser(Protocol):
    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        """Up to n tokens that may follow `tokens`, which must begin with the tokens of the last
        call."""


class NGrams:
    """Guesses from the last position of each run of 2 to 4 tokens in a text that grows."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # run -> position of the token after it
        self._n_known = 0

    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        """Empty if the last tokens are not a known run."""
        for at in range(self._n_known, len(tokens)):
            for length in range(_SHORTEST, min(_LONGEST, at) + 1):
                self._next[tuple(tokens[at - length : at])] = at
        self._n_known = len(tokens)
        for length in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            start = self._next.get(tuple(tokens[-length:]))
            if start is not None:
                # Copies the text after the run; at the end of the text, the guess repeats it.
                period = len(tokens) - start
                return [tokens[start + i % period] for i in range(n)]
        return []


class Draft:
    """Guesses the likeliest tokens of another model, as far as its context has room."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        state, guesses = self._decoder.state, list[int]()
        state.keep_shared(tokens)
        pending = list(tokens[state.length :])
        while len(guesses) < n and state.length + len(pending) <= state.capacity:
            logits = self._decoder.evaluate(np.array(pending, np.int32))
            pending = [int(np.argmax(logits))]
            guesses += pending
        return guesses


class Lookahead:
    """Guesses for one answer, and the passes that check them."""

    def __init__(
        self, decoder: Decoder, n: int, vocab_size: int, guesser: Guesser | None = None
    ) -> None:
        """n: the most guesses in a pass. guesser: NGrams unless given."""
        self.n = min(n, decoder.batch_size - 1)
        self._decoder, self._guesser = decoder, guesser or NGrams()
        # Tokens that must be evaluated again take the place of guesses, unless a pass waits for the
        # disk, whatever it evaluates.
        most = 2 * self.n if decoder.plan.guesses_pay else self.n
        rows = 1 + min(most, MOST_GUESSES, decoder.batch_size - 1)
        self._logits = np.empty((rows, vocab_size), np.float32)

    def guess(self, answer: Continuation) -> list[int] | None:
        """Guesses of the next tokens, as many as fit; None if the pending tokens are to be
        evaluated without: if they are a prompt, or there are no guesses and none were wrong."""
        if len(answer.pending) > answer.n_again + 1:
            return None
        room = min(self.n, len(self._logits) - 1 - answer.n_again, answer.room())
        guesses = self._guesser.guess(answer.history, room) if room > 0 else []
        return guesses if guesses or answer.n_again else None

    def evaluate(self, tokens: Sequence[int], on_progress: OnProgress | None = None) -> Logits:
        """Evaluate tokens after those of the sequence, see Decoder.evaluate_ahead. Returns the
        logits after each of them, float32 [n, vocab], in a buffer that the next call overwrites.
        on_progress: called with (done, total) layers."""
        ids = np.array(tokens, np.int32)
        return self._decoder.evaluate_ahead(ids, self._logits[: len(tokens)], on_progress)
