"""One request over HTTP and its answer, as handlers see it."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.datastructures import Headers, QueryParams
from starlette.types import Receive, Scope, Send

from airllm.server.alarm import Alarm
from airllm.server.errors import ApiError
from airllm.server.wire import as_json
from airllm.util.errors import AirllmError

if TYPE_CHECKING:
    from airllm.server.served_model import ServedModel
    from airllm.server.service import Service

__all__ = ["ErrorShape", "GoneError", "HttpExchange", "send_bytes", "send_error", "within"]

# A client that takes nothing for so long has gone, or might as well have.
STALL_SECONDS = 120.0

_Result = TypeVar("_Result")
ErrorShape = Callable[[ApiError], dict[str, Any]]
_Header = tuple[bytes, bytes]


class GoneError(AirllmError):
    """The client has gone."""


@dataclass
class HttpExchange:
    """shape: how the protocol of this path writes errors. started: whether the answer has begun.
    outcome: what became of it, for metrics.
    """

    service: "Service"
    scope: Scope
    receive: Receive
    sender: Send
    shape: ErrorShape
    started: bool = False
    outcome: str = "ok"
    _stalled: Alarm | None = field(default=None, init=False)  # inside `unless_gone`

    @property
    def path(self) -> str:
        path: str = self.scope["path"]
        return path

    @property
    def headers(self) -> Headers:
        return Headers(scope=self.scope)

    def parameter(self, name: str) -> str | None:
        """A part of the path."""
        value = self.scope.get("path_params", {}).get(name)
        return None if value is None else str(value)

    def query(self, name: str) -> str:
        """A value after the path's "?"; "" if it is missing."""
        return QueryParams(self.scope.get("query_string", b"")).get(name, "")

    async def send(self, message: Mapping[str, Any]) -> None:
        """Waits until the client has taken what was sent before. GoneError if it does not."""
        self.started = True
        sending = self.sender(dict(message))
        if self._stalled is None:
            await within(STALL_SECONDS, sending)
            return
        self._stalled.set(STALL_SECONDS)
        await sending
        self._stalled.clear()

    async def body(self) -> bytes:
        """ApiError if the body is too long, or takes too long to come."""
        settings = self.service.settings
        pieces, size = [], 0
        try:
            async with asyncio.timeout(settings.body_seconds):
                while True:
                    message = await self.receive()
                    if message["type"] == "http.disconnect":
                        raise GoneError
                    piece = message.get("body", b"")
                    size += len(piece)
                    if size > settings.max_body:
                        text = f"the body has more than {settings.max_body:,} bytes"
                        raise ApiError(413, text, code="body_too_large")
                    pieces.append(piece)
                    if not message.get("more_body", False):
                        return b"".join(pieces)
        except TimeoutError:
            text = f"the body did not come within {settings.body_seconds:g} s"
            raise ApiError(408, text, code="body_timeout") from None

    async def json(self) -> Any:
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding != "identity":
            text = f"the body is compressed ({encoding[:40]!r}); this server reads plain JSON"
            raise ApiError(415, text, code="content_encoding")
        raw = await self.body()
        try:
            return json.loads(raw, parse_constant=_no_constant)
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}", code="invalid_json") from None

    async def unless_gone(self, work: Coroutine[Any, Any, _Result]) -> _Result:
        """The result of work, which is cancelled when the client disconnects, or does not take what
        is sent: GoneError. The body must have been read. Work has ended when this returns."""
        working = asyncio.create_task(work)
        self._stalled = stalled = Alarm(asyncio.get_running_loop(), working.cancel)
        leaving = asyncio.create_task(self._disconnected())
        try:
            await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._stalled = None
            stalled.close()
            for task in (working, leaving):
                task.cancel()
            await asyncio.gather(working, leaving, return_exceptions=True)
        if working.cancelled():
            raise GoneError
        return working.result()

    async def with_model(
        self,
        name: str,
        work: Callable[["ServedModel"], Awaitable[_Result]],
        keep_alive: float | None = None,
    ) -> _Result:
        """The result of work with a model, which is in use for so long; see Models.use. The work
        ends when the client goes, see unless_gone."""

        async def using() -> _Result:
            async with self.service.models.use(name, keep_alive) as engine:
                return await work(engine.model)

        return await self.unless_gone(using())

    async def _disconnected(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass

    async def send_json(self, body: Any, headers: Sequence[_Header] = ()) -> None:
        await send_bytes(self.send, 200, as_json(body), b"application/json", headers)

    async def send_text(self, text: str, content_type: bytes = b"text/plain") -> None:
        await send_bytes(self.send, 200, text.encode(), content_type)


async def within(seconds: float, sending: Awaitable[None]) -> None:
    try:
        async with asyncio.timeout(seconds):
            await sending
    except TimeoutError:
        raise GoneError from None


async def send_bytes(
    send: Send,
    status: int,
    body: bytes,
    content_type: bytes,
    headers: Sequence[_Header] = (),
) -> None:
    own = [(b"content-type", content_type), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})


async def send_error(send: Send, error: ApiError, shape: ErrorShape) -> None:
    headers: list[_Header] = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status in (408, 413, 415):  # the rest of the body has not been read
        headers.append((b"connection", b"close"))
    if error.status == 501:
        headers.append((b"x-should-retry", b"false"))  # OpenAI's and Anthropic's libraries would
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    await send_bytes(send, error.status, as_json(shape(error)), b"application/json", headers)


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
