"""Who may use the server: hosts, origins and keys, checked before anything else is read.

A page of another origin in the user's browser could reach a server on loopback, too. So the name by
which the server is addressed must be its own (a page could give its own name the address
127.0.0.1), and a foreign origin must be one that was allowed.
"""

import hashlib
import hmac
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from airllm.server.chat_page import PAGE_PATHS
from airllm.server.errors import ApiError
from airllm.server.http_exchange import ErrorShape, send_bytes, send_error
from airllm.server.settings import ServerSettings

__all__ = ["AccessGate"]

_WITHOUT_KEY = frozenset(("/health", *PAGE_PATHS))  # no secrets there
_METHODS = b"GET, POST, OPTIONS"


class AccessGate:
    """ASGI middleware."""

    def __init__(
        self,
        app: ASGIApp,
        settings: ServerSettings,
        shape_of: Callable[[str], ErrorShape],
    ) -> None:
        """shape_of: how errors look below a path."""
        self._app, self._settings, self._shape_of = app, settings, shape_of
        self._keys = [_digest(key) for key in settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        try:
            self._check_host(headers.get("host", ""))
            allowed = self._check_origin(headers, origin)
        except ApiError as error:
            await send_error(send, error, self._shape_of(scope["path"]))
            return
        sender = _with_origin(send, origin or "") if allowed else send
        is_preflight = "access-control-request-method" in headers
        if allowed and scope["method"] == "OPTIONS" and is_preflight:
            wanted = headers.get("access-control-request-headers", "authorization, content-type")
            more = [
                (b"access-control-allow-methods", _METHODS),
                (b"access-control-allow-headers", wanted.encode("latin-1")),
                (b"access-control-max-age", b"600"),
            ]
            await send_bytes(sender, 204, b"", b"text/plain", more)
            return
        try:
            if scope["path"] not in _WITHOUT_KEY:
                self._check_key(headers)
        except ApiError as error:
            await send_error(sender, error, self._shape_of(scope["path"]))
            return
        await self._app(scope, receive, sender)

    def _check_host(self, host: str) -> None:
        names = self._settings.hosts
        if names is not None and _host_name(host) not in names:
            raise ApiError(
                403,
                f"this server does not go by the name {host[:80]!r}; `airllm serve --allowed-host`"
                " names others",
                code="host",
            )

    def _check_origin(self, headers: Headers, origin: str | None) -> bool:
        """Whether the answer tells the browser that a foreign page may read it. ApiError for a page
        that may not even ask."""
        origins = self._settings.origins
        if origin is None:
            if headers.get("sec-fetch-site") == "cross-site" and not origins:
                raise ApiError(
                    403, "a page of another origin may not use this server", code="origin"
                )
            return False
        if urlsplit(origin).netloc == headers.get("host") and origin != "null":
            return False  # the server's own page
        if "*" in origins or origin in origins:
            return True
        raise ApiError(
            403,
            f"a page of the origin {origin[:80]!r} may not use this server; "
            "`airllm serve --cors-origin` allows it",
            code="origin",
        )

    def _check_key(self, headers: Headers) -> None:
        if not self._keys:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        digest = _digest(given)
        # All keys are compared, each in constant time.
        if not sum(hmac.compare_digest(digest, own) for own in self._keys):
            wanted = "an API key is needed: Authorization: Bearer KEY"
            text = "the API key is wrong" if given else wanted
            raise ApiError(401, text, code="invalid_api_key")


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """ "[::1]:8080" -> "::1" """
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.rpartition(":")[0].lower() if host.count(":") == 1 else host.lower()


def _with_origin(send: Send, origin: str) -> Send:
    async def sender(message: Any) -> None:
        if message["type"] == "http.response.start":
            more = [
                (b"access-control-allow-origin", origin.encode("latin-1")),
                (b"vary", b"Origin"),
            ]
            message = {**message, "headers": [*message.get("headers", ()), *more]}
        await send(message)

    return sender
