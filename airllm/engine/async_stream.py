"""Answers as streams for asyncio. Loaded when one is asked for: asyncio takes a while to import."""

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self, TypeVar

from airllm.engine.answer_stream import AnswerStream, Ended

__all__ = ["AsyncAnswerStream"]

_T = TypeVar("_T")


class _CancelledError(Exception):
    """Ends the evaluation of a prompt, from within its callback."""


class AsyncAnswerStream(Ended):
    """`AnswerStream` for asyncio: the model runs in another thread, and the event loop goes on.

        async with engine.astream("Once upon a time") as stream:
            async for piece in stream: ...
        print(stream.finish_reason, stream.usage)

    If the task is cancelled, or leaves the `async with` early, the answer ends within a token, and
    the evaluation of a prompt within a layer. When the cancellation arrives, the engine is free.
    """

    def __init__(self, start: Callable[[Callable[[], None]], AnswerStream]) -> None:
        """start: makes the stream. It is given a function to call between two layers, which raises
        once the answer is not wanted any more."""
        self._cancelled = threading.Event()
        self._turn = threading.Lock()  # of the threads that use the stream
        self._stream = start(self._check)

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise _CancelledError

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            piece = await self._in_thread(lambda: next(self._stream, None))
        except _CancelledError:  # another task has closed the stream
            raise StopAsyncIteration from None
        if piece is None:
            self.generation = self._stream.generation
            raise StopAsyncIteration
        return piece

    async def aclose(self) -> None:
        """End the answer. The engine is free afterwards."""
        if self.generation is None:
            self._cancelled.set()
            await self._in_thread(self._stream.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        """The result of `work`. If this task is cancelled meanwhile, the work is ended first."""

        def in_turn() -> _T:
            with self._turn:
                return work()

        running = asyncio.get_running_loop().run_in_executor(None, in_turn)
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            self._cancelled.set()
            while not running.done():
                with suppress(asyncio.CancelledError):  # again: it is being done
                    await asyncio.wait([running])
            running.exception()  # which is retrieved, and not logged
            self._stream.close()
            raise
