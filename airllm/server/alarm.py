"""A timeout that is set for every token, and hardly ever comes."""

import asyncio
import math
from collections.abc import Callable

__all__ = ["Alarm"]


class Alarm:
    """Calls `ring` when the seconds of the last `set` have passed without `clear`.

    asyncio.timeout makes a timer each time, and cancels it: that took a fifth of the event loop's
    time. Here the timer stays, and looks whether it is still wanted when it goes off.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ring: Callable[[], object]) -> None:
        self._loop, self._ring = loop, ring
        self._due = math.inf
        self._timer: asyncio.TimerHandle | None = None

    def set(self, seconds: float) -> None:
        self._due = self._loop.time() + seconds
        if self._timer is not None and self._timer.when() > self._due:
            self.close()
        if self._timer is None:
            self._timer = self._loop.call_at(self._due, self._look)

    def clear(self) -> None:
        self._due = math.inf

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        assert self._timer is not None
        went_off, self._timer = self._timer.when(), None
        if self._due <= went_off:
            self._due = math.inf
            self._ring()
        elif self._due < math.inf:
            self._timer = self._loop.call_at(self._due, self._look)
