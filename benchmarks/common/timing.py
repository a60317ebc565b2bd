"""Timing for a machine that is never quite idle: contenders take turns, sample by sample.

A disturbance then hits all of them alike, and two numbers are taken from the samples: the best
(disturbances only ever add time, so it is the least disturbed one) and the median.
"""

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Call = Callable[[], object]

SAMPLE_SECONDS = 2e-3  # long enough for the clock, short enough to fit between disturbances
LEAST_ROUNDS, MOST_ROUNDS = 5, 200
IDLE_TIMEOUT = 0.5  # seconds
TICKS = 12e-3  # a thread that spins on another core is charged for it at the kernel's ticks only
QUIET, PATIENCE = 1.05, 4


@dataclass(frozen=True)
class Timing:
    """Seconds that one call took, sample by sample."""

    seconds: tuple[float, ...]

    @property
    def best(self) -> float:
        return min(self.seconds)

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


class Sampler:
    """Times calls; they run in a cycle, so that each finds its data out of the caches.

    prepare: runs before each sample, not timed.
    """

    def __init__(self, calls: Sequence[Call], prepare: Call | None = None) -> None:
        self._calls = tuple(calls)
        self._prepare = prepare
        self._repeats = 1
        self.prepare()
        self._run()  # the first run pays for page faults, threads and caches
        self.seconds = self._run()
        self._repeats = max(1, round(SAMPLE_SECONDS / max(self.seconds * len(self._calls), 1e-9)))

    def prepare(self) -> None:
        if self._prepare is not None:
            self._prepare()

    def __call__(self) -> float:
        """Seconds a call."""
        self.prepare()
        if self.seconds < SAMPLE_SECONDS:  # wakes its threads and fills the caches
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
    """One sample of each in turn, again and again for `seconds` (but at least 5 rounds).

    settle: wait before each sample for the threads of the one before to sleep.
    reference: a sampler, and the seconds that it is known to take on an idle machine. Up to four
        times as long, sampling goes on until it comes near them: until there was a quiet moment.
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

    Those of OpenMP and OpenBLAS spin for 5 to 130 ms after their last work, on cores that the next
    contender needs.
    """
    end = time.perf_counter() + IDLE_TIMEOUT
    while time.perf_counter() < end:
        start, used = time.perf_counter(), time.process_time()
        time.sleep(TICKS)
        if time.process_time() - used < 0.3 * (time.perf_counter() - start):
            return


def ratio(slow: Timing, fast: Timing) -> float:
    """How many times as fast `fast` is, by the best samples."""
    return slow.best / fast.best


def median_ratio(slow: Timing, fast: Timing) -> float:
    """The same by the median of the ratios of neighbouring samples."""
    pairs = zip(slow.seconds, fast.seconds, strict=True)
    return statistics.median(a / b for a, b in pairs)
