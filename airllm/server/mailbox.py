"""Hands the engine's events to a coroutine, without making either wait for the other."""

import asyncio
import threading
from collections import deque

from airllm.engine.requests import Event, Handle, PromptProgress
from airllm.server.alarm import Alarm
from airllm.util.errors import AirllmError

__all__ = ["Doorbell", "Mailbox", "SlowReaderError"]

# Events that a client has not read yet. An answer has at most one for each token; at 100 tokens a
# second, a client that stands still fills this in 5 minutes.
MOST_EVENTS = 32_768


class SlowReaderError(AirllmError):
    """A client reads more slowly than its answer is written, and the rest no longer fits."""


class Doorbell:
    """Wakes the event loop for the engine's thread, once for the mailboxes of all answers that a
    pass of the engine has given a token.

    It rings when all of them have theirs. A bell for the first one let the event loop take Python's
    lock between two tokens: telling 32 answers took 2.2 ms, and now takes 1.1.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._rung: deque[Mailbox] = deque()
        self._is_ringing = False

    def note(self, mailbox: "Mailbox") -> None:
        """For the engine's thread: the mailbox has something now, and waits for `ring`."""
        self._rung.append(mailbox)

    def ring(self) -> None:
        """For the engine's thread: the Scheduler's after_events."""
        if self._rung and not self._is_ringing:
            self._is_ringing = True
            self.loop.call_soon_threadsafe(self._answer)

    def _answer(self) -> None:
        self._is_ringing = False  # before the mailboxes are looked at: what comes now rings again
        while self._rung:
            self._rung.popleft().wake()


class Mailbox:
    """The events of one or several requests. `put` is for the engine's thread, the rest for the
    event loop's."""

    def __init__(self, doorbell: Doorbell, most: int = MOST_EVENTS) -> None:
        self.doorbell, self._most = doorbell, most
        self._lock = threading.Lock()
        self._events: list[tuple[Handle, Event]] = []
        self._full = False
        self._waiter: asyncio.Future[bool] | None = None  # of `take`: whether it was woken
        self._alarm = Alarm(doorbell.loop, lambda: self._end_wait(False))

    def put(self, handle: Handle, event: Event) -> None:
        """The engine's on_event, which `doorbell.ring` follows. SlowReaderError, which ends the
        request, if there is no room; another event after that, which tells of the end, finds
        room."""
        with self._lock:
            last = self._events[-1] if self._events else None
            if last is not None and last[0] is handle and _is_mere_progress(event, last[1]):
                self._events[-1] = handle, event
                return
            if len(self._events) >= self._most and not self._full:
                self._full = True
                raise SlowReaderError(f"the client has not read the last {self._most} events")
            self._events.append((handle, event))
            was_empty = last is None
        if was_empty:
            self.doorbell.note(self)

    async def take(self, timeout: float) -> list[tuple[Handle, Event]]:
        """All events that are there, each with its request, or the next one; none after `timeout`
        seconds."""
        self._alarm.set(timeout)
        try:
            woken = True
            while woken and not self._events:
                self._waiter = self.doorbell.loop.create_future()
                woken = await self._waiter
        finally:
            self._waiter = None
        with self._lock:
            events, self._events = self._events, []
        return events

    def wake(self) -> None:
        self._end_wait(True)

    def close(self) -> None:
        """Nobody takes any more."""
        self._alarm.close()

    def _end_wait(self, woken: bool) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(woken)


def _is_mere_progress(event: Event, last: Event) -> bool:
    """Whether the event says all that the last one said."""
    both = isinstance(event, PromptProgress) and isinstance(last, PromptProgress)
    return both and not last.logprobs  # type: ignore[union-attr]
