"""Guessing the next tokens, and checking several guesses in one pass of the model.

A token's time is mostly the reading of the weights, from memory or from the disk. A pass over a few
tokens reads them once, so that guesses that prove right are nearly free. Text repeats: names, code,
what a summary or an edit takes from its source. So the guess is what followed the last tokens when
they stood together before, in the prompt or in the answer. Or it is what a smaller model with the
same vocabulary says, a draft.

The answer does not change. Each token is chosen from its logits, by the same sampler, as without
guesses; a guess only decides whether the next logits are there already. They are the same bit for
bit, as numbers do not depend on how many rows are evaluated together. A guess is one token and no
distribution, so drawing from the model's distribution and comparing is all that speculative
sampling asks for (the general case, arXiv:2211.17192, accepts by the ratio of two).
"""

import copy
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from airllm.engine.continuation import Continuation
from airllm.engine.decoder import Decoder, Logits
from airllm.state.kv_cache import KVCache
from airllm.util.progress import OnProgress

__all__ = ["GUESSES", "MOST_GUESSES", "Draft", "Lookahead", "NGrams"]

# With the token before them, as many as "auto" evaluates with 16-bit activations: see graph.py.
MOST_GUESSES = 63
# Unless told otherwise, where a pass waits for the disk: even if all are wrong, so few more rows
# take little of the time in which the next layer is read.
GUESSES = 8
_LONGEST, _SHORTEST = 4, 2  # tokens that must have stood together before


class Guesser(Protocol):
    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        """Up to n tokens that may follow `tokens`, which begin with those of the last call."""


class NGrams:
    """Where each run of 2 to 4 tokens stood last, in a text that grows."""

    def __init__(self) -> None:
        self._next: dict[tuple[int, ...], int] = {}  # run -> position of what followed
        self._n_known = 0

    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        """None where the last ones have never stood together before."""
        for at in range(self._n_known, len(tokens)):
            for length in range(_SHORTEST, min(_LONGEST, at) + 1):
                self._next[tuple(tokens[at - length : at])] = at
        self._n_known = len(tokens)
        for length in range(min(_LONGEST, len(tokens)), _SHORTEST - 1, -1):
            start = self._next.get(tuple(tokens[-length:]))
            if start is not None:
                # Where the text repeats itself, what follows goes on into the guess.
                period = len(tokens) - start
                return [tokens[start + i % period] for i in range(n)]
        return []


class Draft:
    """Another model's likeliest tokens, as far as its context goes."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder

    def guess(self, tokens: Sequence[int], n: int) -> list[int]:
        cache, guesses = self._decoder.cache, list[int]()
        cache.keep_shared(tokens)
        pending = list(tokens[cache.length :])
        while len(guesses) < n and cache.length + len(pending) <= cache.capacity:
            logits = self._decoder.evaluate(np.array(pending, np.int32))
            pending = [int(np.argmax(logits))]
            guesses += pending
        return guesses


class Lookahead:
    """Guesses for one answer, and the passes that check them."""

    def __init__(
        self, decoder: Decoder, n: int, vocab_size: int, guesser: Guesser | None = None
    ) -> None:
        """n: guesses in a pass, at most. guesser: NGrams unless given."""
        self.n = min(n, decoder.batch_size - 1)
        self._decoder, self._guesser = decoder, guesser or NGrams()
        # The cache's memory as that of several sequences, each a token longer than the one before:
        # a pass appends a token to each, and then each attends to its own beginning.
        self._views = [copy.copy(decoder.cache) for _ in range(self.n + 1)]
        self._logits = np.empty((self.n + 1, vocab_size), np.float32)

    def guess(self, answer: Continuation) -> list[int]:
        """What may follow, as far as there is room for it; nothing while a prompt is pending."""
        room = min(self.n, answer.room())
        if len(answer.pending) > 1 or room < 1:
            return []
        return self._guesser.guess(answer.history, room)

    def evaluate(self, tokens: Sequence[int], on_progress: OnProgress | None = None) -> Logits:
        """The logits after each of some tokens that follow the cache's: float32 [n, vocab], in a
        buffer that the next call overwrites. on_progress: called with (done, total) layers.

        The cache's `tokens` stay as they are: whoever accepts one appends it.
        """
        cache: KVCache = self._decoder.cache
        views = self._views[: len(tokens)]
        for count, view in enumerate(views):
            view.tokens = [*cache.tokens, *tokens[:count]]
        ids = np.array(tokens, np.int32)
        return self._decoder.evaluate_batch(ids, views, self._logits[: len(tokens)], on_progress)
