"""Tells somebody who waits that nothing comes."""

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["Waiting"]

PATIENCE_SECONDS = 3.0  # of a person who sees nothing happen
TELL_SECONDS = 1.0  # between two calls after that


class Waiting:
    """with Waiting(tell) as waiting:
        for block in blocks: waiting.heard()

    tell: called in another thread with the whole seconds for which nothing has come, from
    PATIENCE_SECONDS on; never after the `with`. once: it is not called again.
    """

    def __init__(self, tell: Callable[[int], None], *, once: bool = False) -> None:
        self._tell, self._once = tell, once
        self._ended = threading.Event()
        self._telling = threading.Lock()
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def heard(self) -> None:
        """Something has come."""
        self._heard = time.monotonic()

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        with self._telling:
            pass  # nothing is told from here on

    def _watch(self) -> None:
        while not self._ended.wait(TELL_SECONDS):
            seconds = time.monotonic() - self._heard
            with self._telling:
                if seconds >= PATIENCE_SECONDS and not self._ended.is_set():
                    self._tell(int(seconds))
                    if self._once:
                        return
