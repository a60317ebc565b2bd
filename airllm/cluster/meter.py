"""Measurements of a run: the rate of its weights, the number of its tokens, and their time."""

import time

from airllm.cluster.report import Report, megabytes

_PROGRESS_SECONDS = 5.0


class Meter:
    """Counts tokens, and the seconds spent on computing, on syncs and on the disk."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._steps = self._tokens = self._read = 0
        self._seconds = self._compute = self._sync = self._disk = 0.0
        self._reported = time.monotonic()

    def step(
        self, rows: int, seconds: float, compute: float, sync: float, disk: float, read: int = 0
    ) -> None:
        self._steps += 1
        self._tokens += rows
        self._seconds += seconds
        self._compute += compute
        self._sync += sync
        self._disk += disk
        self._read += read
        now = time.monotonic()
        if now - self._reported >= 1.0:
            self._reported = now
            self._report.update(run=self.totals())

    def totals(self) -> dict[str, float]:
        return {
            "steps": self._steps,
            "tokens": self._tokens,
            "seconds": round(self._seconds, 4),
            "compute_seconds": round(self._compute, 4),
            "sync_seconds": round(self._sync, 4),
            "disk_seconds": round(self._disk, 4),
            "disk_bytes": self._read,
            "tokens_per_second": round(self._tokens / self._seconds, 2) if self._seconds else 0.0,
        }

    def finish(self) -> None:
        totals = self.totals()
        self._report.update(run=totals)
        seconds = self._seconds or 1.0
        text = (
            f"{self._tokens} tokens in {self._steps} steps, {totals['tokens_per_second']:.1f} a "
            f"second: {self._compute / seconds:.0%} compute, {self._sync / seconds:.0%} sync, "
            f"{self._disk / seconds:.0%} waiting for the disk"
        )
        if self._read:
            text += f" ({megabytes(self._read / self._steps)} a step)"
        self._report.event("tokens", text, totals)


class WeightsProgress:
    """Reports how many of the weights have come, every 5 seconds."""

    def __init__(self, total: int, report: Report) -> None:
        self._total, self._report = total, report
        self._done = 0
        self._began = self._reported = time.monotonic()

    def add(self, n: int) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._reported < _PROGRESS_SECONDS:
            return
        self._reported = now
        rate = self._done / (now - self._began)
        left = (self._total - self._done) / rate
        self._tell(f", {megabytes(rate)}/s, {left:.0f} s left", rate, left)

    def finish(self) -> None:
        seconds = max(time.monotonic() - self._began, 1e-9)
        self._tell(f" in {seconds:.1f} s", self._done / seconds, 0.0)

    def _tell(self, rest: str, rate: float, left: float) -> None:
        fields = {
            "done_bytes": self._done,
            "total_bytes": self._total,
            "bytes_per_second": round(rate),
            "seconds_left": round(left, 1),
        }
        self._report.update(weights=fields)
        text = f"weights: {megabytes(self._done)} of {megabytes(self._total)}{rest}"
        self._report.event("weights", text, fields)
