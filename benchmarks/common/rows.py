"""A contest's outcome as a row of results: ratios, shares, and whether the bars are reached."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from common import limits
from common.contest import Outcome
from common.table import duration
from common.timing import Timing, median_ratio, ratio

PEERS = {"numpy": "NumPy", "torch": "PyTorch"}
WRONG = "wrong result"  # the beginning of a failure with which the benchmark itself fails


@dataclass(frozen=True)
class Ratio:
    """Our speed relative to a peer, or our share of a limit."""

    best: float  # by the best samples; it decides the verdict
    median: float  # by the median of neighbouring samples' ratios
    other_seconds: float  # the peer's best; for a limit, the time of the work at its best rate


@dataclass(frozen=True)
class Check:
    of: str
    least: float | None
    aim: float | None
    value: float | None  # None: the peer or the limit did not take part

    @property
    def passed(self) -> bool | None:
        if self.least is None:
            return True
        return None if self.value is None else self.value >= self.least

    def in_words(self, number: float) -> str:
        if self.of == "microsecond":
            return f"{1 / number:.3g} us"
        if self.of in PEERS:
            return f"{number:.3g}x {PEERS[self.of]}"
        title = limits.TITLES[self.of]  # type: ignore[index]
        return f"{100 * number:.0f}% of {title}"


@dataclass(frozen=True)
class Row:
    group: str
    op: str
    shape: str
    isa: str
    threads: int
    failure: str | None = None  # the reason for no numbers: a wrong result, an unsupported type
    seconds_best: float = 0.0
    seconds_median: float = 0.0
    gflops: float = 0.0  # a second, by the best sample, like gbytes
    gbytes: float = 0.0
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    errors: Mapping[str, float] = field(default_factory=dict)  # relative, against float64
    checks: tuple[Check, ...] = ()

    @property
    def is_wrong(self) -> bool:
        return self.failure is not None and self.failure.startswith(WRONG)

    @property
    def passed(self) -> bool | None:
        """None if nothing failed but something could not be measured."""
        if self.failure:
            return False
        results = [check.passed for check in self.checks]
        if False in results:
            return False
        return None if None in results else True

    def verdict(self) -> str:
        """The failure, "pass" or "not measured"."""
        if self.failure:
            return f"FAIL: {self.failure}"
        if self.passed is False:
            missed = [c for c in self.checks if c.passed is False and c.value is not None]
            return f"FAIL: {', '.join(c.in_words(c.value) for c in missed if c.value is not None)}"
        return "pass" if self.passed else "not measured"

    def bars(self) -> str:
        """The required values: "3x NumPy, 1.2x PyTorch"."""
        return ", ".join(c.in_words(c.least) for c in self.checks if c.least is not None)

    def limit(self) -> str:
        """ "93% of read bandwidth"; "" if the data fit into the caches."""
        for name, title in limits.TITLES.items():
            if name in self.ratios:
                return f"{100 * self.ratios[name].best:.0f}% of {title}"
        return ""

    def ratio(self, peer: str) -> str:
        return f"{self.ratios[peer].best:.2f}x" if peer in self.ratios else ""

    def cells(self) -> list[str]:
        """Op, shape, ISA, threads, median, best, NumPy, PyTorch, limit, at least, verdict."""
        times = [duration(self.seconds_median), duration(self.seconds_best)]
        return [
            *(self.op, self.shape, self.isa, str(self.threads)),
            *(["", ""] if self.failure else times),
            *(self.ratio(peer) for peer in PEERS),
            *(self.limit(), self.bars(), self.verdict()),
        ]

    def as_json(self) -> dict[str, Any]:
        values = asdict(self)
        for check, values_of_check in zip(self.checks, values["checks"], strict=True):
            values_of_check["passed"] = check.passed
        return {**values, "passed": self.passed}


def ratios_of(outcome: Outcome, isa: str) -> dict[str, Ratio]:
    ours = outcome.timings[isa]
    ratios = {
        name: Ratio(ratio(timing, ours), median_ratio(timing, ours), timing.best)
        for name, timing in outcome.timings.items()
        if name in PEERS
    }
    name, seconds = outcome.work.limit, outcome.limit_seconds
    if name is not None and seconds is not None:
        median = median_ratio(outcome.timings[name], ours)
        ratios[name] = Ratio(seconds / ours.best, median, seconds)
    return ratios


def value_of(target: str, ours: Timing, ratios: Mapping[str, Ratio]) -> float | None:
    if target == "microsecond":
        return 1e-6 / ours.best
    return ratios[target].best if target in ratios else None
