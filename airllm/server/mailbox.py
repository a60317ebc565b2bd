"""Hands the engine's events to a coroutine, without making either wait for the other."""

import asyncio
import threading

from airllm.engine.requests import Event, Handle, PromptProgress
from airllm.util.errors import AirllmError

__all__ = ["Mailbox", "SlowReaderError"]

# Events that a client has not read yet. An answer has at most one for each token; at 100 tokens a
# second, a client that stands still fills this in 5 minutes.
MOST_EVENTS = 32_768


class SlowReaderError(AirllmError):
    """A client reads more slowly than its answer is written, and the rest no longer fits."""


class Mailbox:
    """The events of one or several requests. `put` is for the engine's thread, `take` for the event
    loop's."""

    def __init__(self, loop: asyncio.AbstractEventLoop, most: int = MOST_EVENTS) -> None:
        self._loop, self._most = loop, most
        self._lock = threading.Lock()
        self._events: list[tuple[Handle, Event]] = []
        self._full = False
        self._there = asyncio.Event()

    def put(self, handle: Handle, event: Event) -> None:
        """The engine's on_event. SlowReaderError, which ends the request, if there is no room;
        another event after that, which tells of the end, finds room."""
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
            self._loop.call_soon_threadsafe(self._there.set)

    async def take(self, timeout: float) -> list[tuple[Handle, Event]]:
        """All events that are there, each with its request, or the next one; none after `timeout`
        seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._there.wait()
        except TimeoutError:
            return []
        with self._lock:
            events, self._events = self._events, []
            self._there.clear()
        return events


def _is_mere_progress(event: Event, last: Event) -> bool:
    """Whether the event says all that the last one said."""
    both = isinstance(event, PromptProgress) and isinstance(last, PromptProgress)
    return both and not last.logprobs  # type: ignore[union-attr]
