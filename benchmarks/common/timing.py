"""Timing for a machine that is never quite idle: contenders take turns, sample by sample.

A disturbance then affects all contenders alike. Results are the best sample and the median. The
best sample is the least disturbed one, because disturbances only add time.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3  # long enough for the clock, short enough to avoid disturbances
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
IDLE_TIMEOUT = 0.5  # seconds
TICKS = 12e-3  # seconds; the kernel counts the time of a thread that spins only at its ticks
QUIET, PATIENCE = 1.05, 4


@dataclass(frozen=True)
class Timing:
    """The seconds of one call in each sample."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Sampler:
    """Times calls. They run in a cycle, so that no call finds its data in the caches.

    prepare: runs before each sample and is not timed.
    """

    def __init__(self, calls: Sequence[Call], prepare: Call | None = None) -> None:
        self._calls = tuple(calls)
        self._prepare = prepare
        self._repeats = 1
        self.prepare()
        self._run()  # the first run has page faults and starts threads
        self.seconds = self._run()
        self._repeats = max(1, round(SAMPLE_SECONDS / max(self.seconds * len(self._calls), 1e-9)))

    def prepare(self) -> None:
        if self._prepare is not None:
            self._prepare()

    def __call__(self) -> float:
        """Takes a sample: seconds a call."""
        self.prepare()
        if self.seconds < SAMPLE_SECONDS:  # wake the threads, fill the caches
            self._calls[-1]()
        return self._run()

    def _run(self) -> float:
        calls, repeats = self._calls, range(self._repeats)
        start = time.perf_counter()
        for _ in repeats:
            for call in calls:
                call()
        return (time.perf_counter() - start) / (len(calls) * len(repeats))


def interleave(
    samplers: Mapping[str, Callable[[], float]],
    seconds: float,
    *,
    settle: bool,
    reference: tuple[str, float] | None = None,
) -> dict[str, Timing]:
    """Rounds with a sample of each sampler, for `seconds`: at least 5 rounds, at most 200.

    settle: wait before each sample until the threads of the previous one sleep.
    reference: the name of a sampler, and its seconds on an idle machine. Sampling goes on, for up
        to 4 * seconds, until a sample comes within 5% of that: until there was a quiet moment.
    """
    taken: dict[str, list[float]] = {name: [] for name in samplers}
    collecting = gc.isenabled()
    gc.disable()
    try:
        start = time.perf_counter()
        for round_number in range(MOST_ROUNDS):
            patience = PATIENCE if reference and not _was_quiet(taken, *reference) else 1
            spent = time.perf_counter() - start
            if round_number >= LEAST_ROUNDS and spent > patience * seconds:
                break
            for name, sample in samplers.items():
                if settle:
                    wait_until_idle()
                taken[name].append(sample())
    finally:
        if collecting:
            gc.enable()
    return {name: Timing(tuple(samples)) for name, samples in taken.items()}


def _was_quiet(taken: Mapping[str, list[float]], name: str, seconds: float) -> bool:
    return min(taken[name], default=math.inf) <= QUIET * seconds


def wait_until_idle() -> None:
    """Wait until this process's other threads sleep.

    Threads of OpenMP and OpenBLAS spin for 5 to 130 ms after their work, on cores that the next
    contender needs.
    """
    end = time.perf_counter() + IDLE_TIMEOUT
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(TICKS)
        if time.process_time() - used < 0.3 * (time.perf_counter() - start):
            return


def ratio(slow: Timing, fast: Timing) -> float:
    """The speed of `fast` relative to `slow`, by the best samples."""
    return slow.best / fast.best


def median_ratio(slow: Timing, fast: Timing) -> float:
    """The same, by the median of the ratios of samples of the same round."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)
