"""Answers a request over HTTP: starts it, writes it, and ends it when the client has gone."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

from airllm.server.answer import AnswerEvent, collect
from airllm.server.chat import ChatRequest
from airllm.server.http_exchange import HttpExchange, send_error
from airllm.server.service import Live, error_of, new_id
from airllm.server.wire import HEARTBEAT
from airllm.server.writer import Reply, TokenTexts, Writer

__all__ = ["MakeWriter", "respond"]

MakeWriter = Callable[[ChatRequest, Reply, TokenTexts], Writer]


async def respond(exchange: HttpExchange, request: ChatRequest, make_writer: MakeWriter) -> None:
    """Answer a request. Whoever disconnects is cancelled, wherever the request is."""
    await exchange.unless_gone(_answer(exchange, request, make_writer))


async def _answer(exchange: HttpExchange, request: ChatRequest, make_writer: MakeWriter) -> None:
    service, received, id = exchange.service, time.perf_counter(), new_id()
    async with AsyncExitStack() as stack:
        reply = Reply(id, request.model, int(time.time()))
        stream = _Stream(exchange, id, make_writer(request, reply, TokenTexts(_NoTokens())))
        try:
            async with stream.heartbeats() if request.stream else AsyncExitStack():
                use = service.models.use(request.model, request.keep_alive)
                engine = await stack.enter_async_context(use)
            live = await service.start(request, id, engine)
        except Exception as error:
            if not exchange.started:
                raise
            told = error_of(error)
            exchange.outcome = f"error {told.status}"
            await stream.write(partial(stream.writer.failed, told))
            await stream.end()
            return
        try:
            reply = Reply(id, live.model.name, reply.created, [one.prompt for one in live.handles])
            writer = make_writer(request, reply, TokenTexts(live.model.prompts.tokenizer))
            if request.stream:
                stream.writer = writer
                await _stream(stream, live)
            else:
                await _whole(exchange, live, writer)
        finally:
            exchange.outcome = service.end(live, exchange.path, received)


class _NoTokens:
    """Of a model that is not loaded yet."""

    def token_bytes(self, id: int) -> bytes:
        return b""

    def decode(self, tokens: Iterable[int]) -> str:
        return ""


class _Stream:
    """The bytes of an answer as they come: first the status, then what the writer makes of the
    events."""

    def __init__(self, exchange: HttpExchange, id: str, writer: Writer) -> None:
        self.exchange, self.id, self.writer = exchange, id, writer
        self._has_begun = False

    async def write(self, make: Callable[[], bytes]) -> None:
        begin = b"" if self._has_begun else self.writer.begin()
        self._has_begun = True
        await self._send(begin + make())

    async def end(self) -> None:
        await self.exchange.send({"type": "http.response.body", "body": b""})

    @asynccontextmanager
    async def heartbeats(self) -> AsyncIterator[None]:
        """While a model is loaded, comments say that the server is there. A protocol without
        comments gets the status at least."""
        comment = HEARTBEAT if self.writer.content_type == "text/event-stream" else b""

        async def beat() -> None:
            while True:
                await asyncio.sleep(self.exchange.service.settings.heartbeat_seconds)
                await self._send(comment)

        beating = asyncio.create_task(beat())
        try:
            yield
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)

    async def _send(self, data: bytes) -> None:
        if not self.exchange.started:
            await self.exchange.send(_stream_start(self.id, self.writer.content_type))
        if data:
            message = {"type": "http.response.body", "body": data, "more_body": True}
            await self.exchange.send(message)


async def _stream(stream: _Stream, live: Live) -> None:
    """Nothing is sent before the engine has begun or the first heartbeat, so that a request that
    fails in the queue still gets the status of its error."""
    exchange, writer = stream.exchange, stream.writer
    async for events in live.events(exchange.service.settings):
        if live.error is not None and not exchange.started:
            await send_error(exchange.send, live.error, exchange.shape)
            return
        if events:
            await stream.write(partial(_written, writer, events))
        elif live.heard_nothing:
            await stream.write(writer.heartbeat)
    await stream.write(writer.end if live.error is None else partial(writer.failed, live.error))
    await stream.end()


def _written(writer: Writer, events: Sequence[AnswerEvent]) -> bytes:
    return b"".join(map(writer.write, events))


async def _whole(exchange: HttpExchange, live: Live, writer: Writer) -> None:
    events: list[AnswerEvent] = []
    async for more in live.events(exchange.service.settings):
        events += more
    body = writer.whole(collect(events, live.request.n_choices, live.request.n))
    await exchange.send_json(body, [(b"x-request-id", live.id.encode())])


def _stream_start(id: str, content_type: str) -> dict[str, Any]:
    headers = [
        (b"content-type", content_type.encode()),
        (b"cache-control", b"no-cache"),
        (b"x-accel-buffering", b"no"),  # nginx would hold a stream back
        (b"x-request-id", id.encode()),
    ]
    return {"type": "http.response.start", "status": 200, "headers": headers}
