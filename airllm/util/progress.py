"""Shows how far work is and how long it still takes: a bar on a terminal, lines in a log."""

import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from airllm.util.printable import printable

if TYPE_CHECKING:
    from tqdm import tqdm

# Long work calls this with (done, total), in a unit of its choice.
OnProgress = Callable[[int, int], None]

log = logging.getLogger("airllm")

QUIET_SECONDS = 1.0  # before a bar shows; shorter work needs no bar and no import of tqdm
LOG_SECONDS = 10.0  # between two lines of a log

# Formats for tqdm. Neither shows a rate, which is useful only for bytes: other units take many
# seconds each, or come many at once. A note takes the place of the bar.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_NOTED = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """with Progress("scoring", "chunks") as progress:
        ... progress.update(3, 14)

    Shows a bar on stderr if that is a terminal, until all is done or the `with` ends; otherwise it
    writes to the log "airllm". unit: "bytes" are shown in multiples of 1024. shown: False shows
    nothing.
    """

    def __init__(self, label: str, unit: str, *, shown: bool = True) -> None:
        self._label = printable(label)
        self._unit = unit
        self.shown = shown
        self._start = self._logged = time.monotonic()
        self._bar: tqdm[None] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._clear()

    def update(self, done: int, total: int, note: str = "") -> None:
        """Shows that `done` of `total` units are done. note: a word about the current state."""
        if not self.shown:
            return
        if not sys.stderr.isatty():
            self._log(done, total, note)
        elif done >= total:
            self._clear()
        elif time.monotonic() - self._start >= QUIET_SECONDS:
            self._draw(done, total, note)

    def before(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """Wraps `show`, which writes to the same terminal. Here it needs no wrapper, because the
        bar is gone once all is done."""
        return show

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            self._bar = self._new_bar(done, total)
        if note:
            self._bar.bar_format = _NOTED
        self._bar.set_postfix_str(printable(note), refresh=False)
        self._bar.update(done - self._bar.n)

    def _new_bar(self, done: int, total: int) -> "tqdm[None]":
        """A bar whose clock starts with this Progress, a second ago or more."""
        from tqdm import tqdm

        in_bytes = self._unit == "bytes"
        bar = tqdm(
            total=total,
            desc=self._label,
            unit="B" if in_bytes else self._unit,
            bar_format=None if in_bytes else _BAR,
            unit_scale=in_bytes,
            unit_divisor=1024 if in_bytes else 1000,
            smoothing=0,  # the time left follows from the mean since the start, as in a log
            delay=1e-9,  # do not draw before start_t is set below
            leave=False,
            **_terminal_size(sys.stderr),
            miniters=0,  # check the clock at each update: updates can be rare, or only of the note
        )
        bar.start_t -= time.monotonic() - self._start
        bar.n = done
        bar.refresh()
        return bar

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _log(self, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        if now - self._logged < LOG_SECONDS or (done == 0 and not note):
            return
        self._logged = now
        words = [f"{100 * done // total}%"]
        if done:
            words.append(f"{format_duration((now - self._start) * (total - done) / done)} left")
        if note:
            words.append(note)
        log.info("%s: %s", self._label, ", ".join(words))


def part_of(on_progress: OnProgress | None, before: int, n: int, total: int) -> OnProgress | None:
    """A callback for a part of the work. It reports the part's progress as progress of the whole.

    The part counts in its own unit. It is `n` of the whole's `total` units, and begins when
    `before` units are done.
    """
    if on_progress is None:
        return None
    return lambda done, of: on_progress(before + n * done // of, total)


def _terminal_size(terminal: TextIO) -> dict[str, int]:
    """tqdm's arguments for the terminal's size. Some terminals, as in containers, report 0 columns
    and 0 lines, and tqdm would draw nothing there."""
    try:
        sizeless = os.get_terminal_size(terminal.fileno()).columns == 0
    except OSError:
        sizeless = False
    return {"ncols": 80, "nrows": 24} if sizeless else {"dynamic_ncols": True}


def format_duration(seconds: float) -> str:
    """75 -> "1 min 15 s"."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
