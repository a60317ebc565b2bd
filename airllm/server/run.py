"""Listens, answers, and ends in order: a first SIGTERM drains, a second one ends at once."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from airllm.server.app import make_app
from airllm.server.models import ListedModel, Models
from airllm.server.service import Service
from airllm.server.settings import ServerSettings

__all__ = ["Server", "listen"]

_log = logging.getLogger("airllm")

OnReady = Callable[[Sequence[ListedModel]], object]
HEADER_SECONDS = 30.0
_BACKLOG = 512


def listen(settings: ServerSettings) -> socket.socket:
    """A socket that listens. OSError, which names the address, if that cannot be."""
    where = f"{settings.host}:{settings.port}"
    try:
        found = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        family, kind, protocol, _, address = found[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(_BACKLOG)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        way_out = "; is a server running already? --port takes another port" if taken else ""
        raise OSError(error.errno, f"{error.strerror}{way_out}", where) from None
    return listener


class Server:
    """Serves models. It listens before they are loaded."""

    def __init__(self, models: Models, settings: ServerSettings, listener: socket.socket) -> None:
        self._models, self._settings, self._listener = models, settings, listener
        self._server: uvicorn.Server | None = None
        self._n_signals = 0

    def run(self, on_ready: OnReady = lambda models: None) -> None:
        """Serve until SIGTERM or Ctrl-C. on_ready: called when requests can be answered. Raises
        the error if one ended the server."""
        asyncio.run(self._run(on_ready))
        if self._models.error is not None:
            raise self._models.error

    async def _run(self, on_ready: OnReady) -> None:
        logging.getLogger("uvicorn.error").addFilter(_is_news)
        settings = self._settings
        service = Service(self._models, settings)
        config = uvicorn.Config(
            make_app(service),
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.max_connections + 1,  # refuses when there are so many
            backlog=_BACKLOG,
            timeout_keep_alive=75,
            h11_max_incomplete_event_size=64 << 10,
        )
        self._server = server = _Uvicorn(config)
        loop = asyncio.get_running_loop()
        with _signals(lambda number: loop.call_soon_threadsafe(self._signal, number)):
            self._models.start(self._models_ended)
            announcing = asyncio.create_task(self._announce(on_ready))
            try:
                await server.serve(sockets=[self._listener])
            finally:
                announcing.cancel()
                await self._models.close()

    async def _announce(self, on_ready: OnReady) -> None:
        with contextlib.suppress(BaseException):  # `run` raises the models' error
            on_ready(await self._models.ready())

    def stop(self) -> None:
        """End as after a signal; for any thread."""
        if self._server is not None:
            self._server.should_exit = True

    def _signal(self, number: int) -> None:
        self._n_signals += 1
        assert self._server is not None
        if self._n_signals == 1:
            _log.info("ending, after the requests that run; another signal ends at once")
            self._server.should_exit = True
        else:
            self._server.force_exit = True

    def _models_ended(self) -> None:
        """After an error of the engine, no request gets an answer: nothing is to be waited for."""
        if self._server is not None:
            self._server.force_exit = self._models.error is not None or self._server.force_exit
            self._server.should_exit = True


def _is_news(record: logging.LogRecord) -> bool:
    """Whether a record of uvicorn's tells of something that was not wanted. After a second signal,
    it would show a traceback for each request that is cancelled."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


class _Uvicorn(uvicorn.Server):
    """Leaves signals to Server."""

    def capture_signals(self) -> Any:
        return contextlib.nullcontext()


class _Protocol(H11Protocol):
    """Closes connections whose request does not come: uvicorn waits for the first forever."""

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._patience = self.loop.call_later(HEADER_SECONDS, self._lose_patience)

    def connection_lost(self, exc: Exception | None) -> None:
        self._patience.cancel()
        super().connection_lost(exc)

    def _should_upgrade(self) -> bool:
        """The application refuses WebSockets; uvicorn would advise to install a library."""
        return False

    def _lose_patience(self) -> None:
        if self.cycle is None:
            self.transport.close()


class _signals:  # noqa: N801 (a context manager)
    """Calls back for SIGTERM and SIGINT inside the `with`; only the main thread can."""

    def __init__(self, on_signal: Callable[[int], object]) -> None:
        self._on_signal = on_signal
        self._before: dict[int, Any] = {}

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._before[number] = signal.signal(number, lambda n, _: self._on_signal(n))

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
