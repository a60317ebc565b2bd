"""Progress while a token takes seconds: a line on a terminal, lines in a log.

airllm: token 3: layer 5/16, 1.10 GB/s, 93% waiting for disk, 1.92 s/token, at most 40 s left

If guesses are right, a pass gives several tokens: "1.92 s/token (2.1 a pass)".
"""

import logging
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

from airllm.cli import console
from airllm.util.progress import LOG_SECONDS, format_duration

REDRAW_SECONDS = 0.1

# The line is drawn below the cursor, which stays where the answer is being written. Index and
# reverse index make sure that there is a line below. All terminals of today know these sequences of
# ECMA-48.
_BELOW = "\x1bD\x1bM\x1b7\x1b[B\r\x1b[K"
_BACK = "\x1b8"

log = logging.getLogger("airllm")


class StreamLine:
    """Shows the progress of a pass through a streamed model; `update` takes (layers done, layers).

    stats: see LayerWiseInferenceEngine.stream_stats. position: returns the number of evaluated
    tokens, to count the tokens of a pass; None: each pass gives one. max_tokens: of the answer, for
    the time left. packers: the number of threads that pack what was read.
    """

    def __init__(
        self,
        stats: Callable[[], dict[str, Any] | None],
        *,
        position: Callable[[], int] | None = None,
        max_tokens: int | None = None,
        packers: int = 1,
        shown: bool = True,
    ) -> None:
        self._stats, self._max_tokens, self._shown = stats, max_tokens, shown
        self._packers = packers
        self._position = position
        self._passes = self._tokens = 0  # finished ones; the first pass is the prompt's
        self._before = 0  # position at the beginning of the pass
        self._layer = 0
        self._answer_start = 0.0  # when the prompt's pass ended
        self._drawn_at: float | None = None
        # (time, statistics) when the last pass began and when this one began. The line shows the
        # speed of these two passes.
        self._logged, now = time.monotonic(), (time.monotonic(), stats() or {})
        self._begun, self._last = [now, now], now

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.hide()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if done <= self._layer:  # a new pass, which began when the last one ended
            self._passes += 1
            self._tokens += self._tokens_of_pass()
            self._begun = [self._begun[1], self._last]
            if self._passes == 1:
                self._answer_start = self._last[0]
        self._last = now, self._stats() or {}
        if self._position is not None:
            self._before = self._position()
        self._layer = done
        if not self._shown:
            return
        if not sys.stderr.isatty():
            if now - self._logged >= LOG_SECONDS:
                self._logged = now
                log.info("%s", self.text(done, total))
        elif self._drawn_at is None or now - self._drawn_at >= REDRAW_SECONDS:
            self._drawn_at = now
            width = (console.width() or 80) - 1
            sys.stderr.write(f"{_BELOW}{self.text(done, total)[:width]}{_BACK}")
            sys.stderr.flush()

    def _tokens_of_pass(self) -> int:
        """Tokens that the last pass gave. The prompt's pass gives one, for any length."""
        if self._position is None or self._passes == 1:
            return 1
        return max(self._position() - self._before, 1)

    def hide(self) -> None:
        """Removes the line; to be called before other output."""
        if self._drawn_at is not None:
            self._drawn_at = None
            sys.stderr.write(_BELOW + _BACK)
            sys.stderr.flush()

    def before(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """`show` for output to the same terminal; it removes the line first."""

        def shown(piece: str) -> None:
            self.hide()
            show(piece)

        return shown

    def text(self, done: int, total: int) -> str:
        what = "reading the prompt" if self._passes == 0 else f"token {self._tokens + 1}"
        return f"{what}: {self.place(done, total)}, {self._time(done, total)}"

    def place(self, done: int, total: int) -> str:
        """Layer, GB/s, and the share of the time that is spent waiting for weights, and why."""
        (now, stats), (begun, before) = self._last, self._begun[0]
        seconds = max(now - begun, 1e-9)

        def since(name: str) -> float:
            return float(stats.get(name, 0)) - float(before.get(name, 0))

        waited = since("waited_for_disk_seconds")  # for weights that were neither read nor packed
        # Where the page cache serves the reads, the threads are busy with packing what comes.
        if since("pack_seconds") > self._packers * waited / 2:
            what = "packing"
        else:  # reads that are not direct may as well come from the page cache
            what = "disk" if stats.get("direct", True) else "reads"
        return (
            f"layer {done}/{total}, {since('bytes_read') / seconds / 1e9:.2f} GB/s, "
            f"{100 * min(waited / seconds, 1.0):.0f}% waiting for {what}"
        )

    def _time(self, done: int, total: int) -> str:
        now = self._last[0]
        if self._passes == 0:  # the prompt, which ends with the first token
            left = (now - self._begun[1][0]) * (total - done) / max(done, 1)
            return f"{format_duration(left)} left"
        passes = self._passes - 1 + done / total  # since the first token
        a_pass = (self._tokens - 1) / (self._passes - 1) if self._passes > 1 else 1.0
        tokens = passes * a_pass
        each = (now - self._answer_start) / tokens
        speed = f"{each:.2f} s/token"
        if a_pass > 1:
            speed += f" ({a_pass:.1f} a pass)"
        if self._max_tokens is None:
            return speed
        left = each * max(self._max_tokens - 1 - tokens, 0)
        return f"{speed}, at most {format_duration(left)} left"
