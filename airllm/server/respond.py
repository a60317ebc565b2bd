"""Answers a request over HTTP: starts it, writes it, and ends it when the client has gone."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from airllm.server.answer import AnswerEvent, Broken, collect
from airllm.server.chat import ChatRequest
from airllm.server.http_exchange import HttpExchange, send_error
from airllm.server.service import Live, new_id
from airllm.server.writer import Reply, TokenTexts, Writer

__all__ = ["MakeWriter", "respond"]

MakeWriter = Callable[[ChatRequest, Reply, TokenTexts], Writer]


async def respond(exchange: HttpExchange, request: ChatRequest, make_writer: MakeWriter) -> None:
    """Answer a request. Whoever disconnects is cancelled, wherever the request is."""
    await exchange.unless_gone(_answer(exchange, request, make_writer))


async def _answer(exchange: HttpExchange, request: ChatRequest, make_writer: MakeWriter) -> None:
    service, received, id = exchange.service, time.perf_counter(), new_id()
    live = await service.start(request, id)
    try:
        prompts = [handle.prompt for handle in live.handles]
        reply = Reply(id, live.model.name, int(time.time()), prompts)
        writer = make_writer(request, reply, TokenTexts(live.model.prompts.tokenizer))
        await (_stream if request.stream else _whole)(exchange, live, writer)
    finally:
        exchange.outcome = service.end(live, exchange.path, received)


async def _stream(exchange: HttpExchange, live: Live, writer: Writer) -> None:
    """Nothing is sent before the engine has begun or the first heartbeat, so that a request that
    fails in the queue still gets the status of its error."""

    async def write(make: Callable[[], bytes]) -> None:
        begin = b""
        if not exchange.started:
            await exchange.send(_stream_start(live.id, writer.content_type))
            begin = writer.begin()
        if data := begin + make():
            await exchange.send({"type": "http.response.body", "body": data, "more_body": True})

    async for events in live.events(exchange.service.settings):
        if live.error is not None and not exchange.started:
            await send_error(exchange.send, live.error, exchange.shape)
            return
        if events:
            await write(partial(_written, writer, events))
        elif live.heard_nothing:
            await write(writer.heartbeat)
    await write(writer.end if live.error is None else partial(writer.failed, live.error))
    await exchange.send({"type": "http.response.body", "body": b""})


def _written(writer: Writer, events: Sequence[AnswerEvent]) -> bytes:
    return b"".join(writer.write(event) for event in events if not isinstance(event, Broken))


async def _whole(exchange: HttpExchange, live: Live, writer: Writer) -> None:
    events: list[AnswerEvent] = []
    async for more in live.events(exchange.service.settings):
        events += more
    if live.error is not None:
        await send_error(exchange.send, live.error, exchange.shape)
        return
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
