"""How far something is and how long it still takes: a bar on a terminal, lines in a log."""

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

# What long work calls as it goes on: (done, total), in whatever unit it counts.
OnProgress = Callable[[int, int], None]

log = logging.getLogger("airllm")

QUIET_SECONDS = 1.0  # before a bar shows: what is quick needs none, nor tqdm's import
LOG_SECONDS = 10.0  # between two lines of a log

# Of tqdm's. A rate is for bytes: of other things there is one in many seconds, or many at once. A
# note needs the bar's place.
_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
_NOTED = "{desc}: {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


class Progress:
    """with Progress("scoring", "chunks") as progress:
        ... progress.update(3, 14)

    On stderr if that is a terminal, until all is done or the `with` ends; otherwise in the log
    "airllm". unit "bytes" is shown in multiples of 1024. shown=False shows nothing.
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
        """`done` of `total` units are done; `note` is a word about them."""
        if not self.shown:
            return
        if not sys.stderr.isatty():
            self._log(done, total, note)
        elif done >= total:
            self._clear()
        elif time.monotonic() - self._start >= QUIET_SECONDS:
            self._draw(done, total, note)

    def before(self, show: Callable[[str], None]) -> Callable[[str], None]:
        """`show`, for what is written to the same terminal meanwhile; nothing is in its way here:
        the bar went when all was done."""
        return show

    def _draw(self, done: int, total: int, note: str) -> None:
        if self._bar is None:
            self._bar = self._new_bar(done, total)
        if note:
            self._bar.bar_format = _NOTED
        self._bar.set_postfix_str(printable(note), refresh=False)
        self._bar.update(done - self._bar.n)

    def _new_bar(self, done: int, total: int) -> "tqdm[None]":
        """A bar that counts from the start of this Progress, which was a second ago or more."""
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
            delay=1e-9,  # not drawn before its start is right
            leave=False,
            **_shape(sys.stderr),
            miniters=0,  # look at the clock at each update, be it only of the note: some are rare
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
    """For a part of the work: its progress, in a unit of its own, as progress of the whole.

    The part is `n` of the whole's `total` units, `before` of which are done when it begins.
    """
    if on_progress is None:
        return None
    return lambda done, of: on_progress(before + n * done // of, total)


def _shape(terminal: TextIO) -> dict[str, int]:
    """How wide tqdm draws. Some terminals, in containers say, claim to have no columns and no
    lines; there it would draw nothing."""
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
