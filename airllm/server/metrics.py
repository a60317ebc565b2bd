"""Counts what the server does, for /metrics in Prometheus's text format."""

import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

__all__ = ["Gauge", "Metrics"]

# Upper bounds of the histogram of seconds.
_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True)
class Gauge:
    """What is measured now. model: its name, where there are several."""

    name: str
    value: float
    model: str = ""


@dataclass
class _Histogram:
    buckets: list[int] = field(default_factory=lambda: [0] * (len(_SECONDS) + 1))
    total: float = 0.0

    def add(self, value: float) -> None:
        self.buckets[sum(value > bound for bound in _SECONDS)] += 1
        self.total += value

    def lines(self, name: str) -> list[str]:
        lines, below = [f"# TYPE {name} histogram"], 0
        for bound, n in zip((*map(str, _SECONDS), "+Inf"), self.buckets, strict=True):
            below += n
            lines.append(f'{name}_bucket{{le="{bound}"}} {below}')
        return [*lines, f"{name}_sum {self.total:.6f}", f"{name}_count {below}"]


class Metrics:
    """Counters of requests and tokens; for any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, str]] = Counter()
        self._tokens: Counter[tuple[str, str]] = Counter()  # by kind and model
        self._first_token, self._queue = _Histogram(), _Histogram()

    def request(self, endpoint: str, outcome: str) -> None:
        """outcome: a finish reason, "cancelled", or the status of an error."""
        with self._lock:
            self._requests[endpoint, outcome] += 1

    def answer(self, prompt: int, reused: int, answer: int, model: str = "") -> None:
        """Tokens of a request that was evaluated. model: its name, where there are several."""
        with self._lock:
            for kind, n in (("prompt", prompt), ("reused", reused), ("answer", answer)):
                self._tokens[kind, model] += n

    def waited(self, queue: float | None, first_token: float | None) -> None:
        """Seconds in the queue, and to the first token."""
        with self._lock:
            if queue is not None:
                self._queue.add(queue)
            if first_token is not None:
                self._first_token.add(first_token)

    def text(self, gauges: Iterable[Gauge]) -> str:
        """All metrics."""
        with self._lock:
            lines = ["# TYPE airllm_requests_total counter"]
            lines += [
                f'airllm_requests_total{{endpoint="{endpoint}",outcome="{outcome}"}} {n}'
                for (endpoint, outcome), n in sorted(self._requests.items())
            ]
            models = sorted({model for _, model in self._tokens}) or [""]
            for kind in ("prompt", "reused", "answer"):
                full = f"airllm_{kind}_tokens_total"
                lines.append(f"# TYPE {full} counter")
                lines += [f"{full}{_label(one)} {self._tokens[kind, one]}" for one in models]
            lines += self._queue.lines("airllm_queue_seconds")
            lines += self._first_token.lines("airllm_first_token_seconds")
        by_name: dict[str, list[Gauge]] = {}
        for gauge in gauges:
            by_name.setdefault(gauge.name, []).append(gauge)
        for name, found in by_name.items():
            lines.append(f"# TYPE airllm_{name} gauge")
            lines += [f"airllm_{name}{_label(one.model)} {one.value:g}" for one in found]
        return "\n".join(lines) + "\n"


def _label(model: str) -> str:
    escaped = model.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{{model="{escaped}"}}' if model else ""
