"""Tells the events of requests to those who submitted them."""

import logging
from collections.abc import Iterable

from airllm.engine.requests import AfterEvents, Event, Failed, Handle
from airllm.engine.running import RunningRequest

__all__ = ["Teller"]

_log = logging.getLogger("airllm")


class Teller:
    """For the engine's thread. An error, of a request or of its callbacks, ends the request and no
    other."""

    def __init__(self) -> None:
        self._to_call: set[AfterEvents] = set()  # since there were events of their requests

    def tell(self, job: RunningRequest, events: Iterable[Event]) -> None:
        """The request has ended if no choice of it is left after the events."""
        handle = job.handle
        with handle.telling():
            try:
                for event in events:
                    if not handle.tell(event):
                        return
                    self._note(handle)
                if job.begun and not job.choices:
                    handle.end("finished")
            except Exception as error:
                self.fail(handle, error)

    def fail(self, handle: Handle, error: Exception) -> None:
        self._note(handle)
        try:
            handle.tell(Failed(error))
        except Exception:
            _log.exception("the callback of request %d raised an error", handle.number)
        handle.end("failed")

    def call_after_events(self) -> None:
        """There will be no other event for a while."""
        while self._to_call:
            call = self._to_call.pop()
            try:
                call()
            except Exception:
                _log.exception("what is called after events raised an error")

    def _note(self, handle: Handle) -> None:
        if handle.after_events is not None:
            self._to_call.add(handle.after_events)
