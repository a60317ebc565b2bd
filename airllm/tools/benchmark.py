"""Measures a model's tokens per second: prefill ("pp512", a prompt of 512 tokens), decode ("tg128",
128 tokens one by one), decode of several sequences together ("tg128x8", which counts the tokens of
all eight), and any of them after other tokens ("tg128@2048").

As in llama-bench, tokens are random, the cache is empty before each repetition, or has the tokens
after @, a warm-up is not counted, and only the model's time counts (no tokeniser, no sampling).
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.util.progress import OnProgress, part_of


class Evaluator(Protocol):
    """A model that can be measured, such as LayerWiseInferenceEngine or Batch."""

    def reset(self) -> None:
        """Forgets every token seen so far."""

    def forward(
        self, tokens: Sequence[int], *, on_progress: OnProgress | None = None
    ) -> NDArray[np.float32]:
        """Appends tokens to the cache; returns the last one's logits, float32 [vocab]."""


class Sequences(Protocol):
    """Sequences that are evaluated together, such as batch_generation.ParallelSequences."""

    def reset(self) -> None: ...
    def forward(self, tokens: Sequence[int]) -> NDArray[np.float32]: ...


class Batch:
    """Sequences as an Evaluator; each call evaluates one token of each sequence."""

    def __init__(self, sequences: Sequences) -> None:
        self._sequences = sequences

    def reset(self) -> None:
        self._sequences.reset()

    def forward(
        self, tokens: Sequence[int], *, on_progress: OnProgress | None = None
    ) -> NDArray[np.float32]:
        return self._sequences.forward(tokens)


@dataclass(frozen=True)
class Test:
    name: str  # "pp512"
    warm_up: list[list[int]]  # token ids of each forward call
    timed: list[list[int]]
    before: list[int] = field(default_factory=list)  # in the cache, and not timed

    def after(self, depth: int, vocab_size: int) -> "Test":
        """The same test with `depth` tokens in the cache before."""
        if not depth:
            return self
        return replace(self, name=f"{self.name}@{depth}", before=_random_tokens(depth, vocab_size))


@dataclass(frozen=True)
class Result:
    test: str  # "pp512"
    tokens_per_second: float  # mean over the repetitions
    stddev: float  # of one repetition (n - 1 in the denominator); 0 when there is only one


def prefill(n_tokens: int, vocab_size: int) -> Test:
    """A prompt of n_tokens, evaluated in one call."""
    prompt = _random_tokens(n_tokens, vocab_size)
    return Test(f"pp{n_tokens}", warm_up=[prompt], timed=[prompt])


def decode(n_tokens: int, vocab_size: int) -> Test:
    """n_tokens one by one. The warm-up is one token, as it already touches every weight."""
    steps = [[token] for token in _random_tokens(n_tokens, vocab_size)]
    return Test(f"tg{n_tokens}", warm_up=steps[:1], timed=steps)


def decode_batch(n_tokens: int, n_sequences: int, vocab_size: int) -> Test:
    """n_tokens of each of n_sequences; a call has one token of each sequence. For a Batch."""
    ids = _random_tokens(n_tokens * n_sequences, vocab_size)
    steps = [ids[at : at + n_sequences] for at in range(0, len(ids), n_sequences)]
    return Test(f"tg{n_tokens}x{n_sequences}", warm_up=steps[:1], timed=steps)


def measure(
    model: Evaluator,
    test: Test,
    repetitions: int,
    *,
    on_progress: OnProgress | None = None,
    clock: Callable[[], float] = time.perf_counter,  # seconds
) -> Result:
    """Runs the warm-up once and the timed calls `repetitions` times, each from an empty cache, or
    one with the tokens before.

    on_progress(tokens done, tokens in all) counts the warm-up and the tokens before, too.
    """
    if repetitions < 1:
        raise ValueError(f"{test.name}: {repetitions} repetitions; at least 1 is needed")
    n_timed = sum(map(len, test.timed))
    total = sum(map(len, test.warm_up)) + repetitions * (n_timed + len(test.before))
    done = 0

    def run(calls: list[list[int]]) -> None:
        nonlocal done
        for tokens in calls:
            # No progress within a token: 30 calls of Python are 1% of a token of a small model.
            within = part_of(on_progress, done, len(tokens), total) if len(tokens) > 1 else None
            model.forward(tokens, on_progress=within)
            done += len(tokens)
            if on_progress is not None:
                on_progress(done, total)

    model.reset()
    run(test.warm_up)
    rates = []
    for _ in range(repetitions):
        model.reset()
        run([test.before] if test.before else [])
        start = clock()
        run(test.timed)
        rates.append(n_timed / max(clock() - start, 1e-9))
    stddev = statistics.stdev(rates) if repetitions > 1 else 0.0
    return Result(test.name, statistics.fmean(rates), stddev)


def _random_tokens(n_tokens: int, vocab_size: int) -> list[int]:
    """The same ids each time, so that two runs do the same work."""
    if n_tokens < 1:
        raise ValueError(f"a test of {n_tokens} tokens measures nothing; at least 1 is needed")
    ids: list[int] = np.random.default_rng(0).integers(vocab_size, size=n_tokens).tolist()
    return ids
