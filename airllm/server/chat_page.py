"""The chat page: files of this package, which load nothing from elsewhere."""

from collections.abc import Awaitable, Callable
from importlib.resources import files

from airllm.server.http_exchange import HttpExchange, send_bytes

__all__ = ["PAGE_PATHS", "page_file"]

_TYPES = {
    "index.html": b"text/html; charset=utf-8",
    "page.css": b"text/css; charset=utf-8",
    **{
        f"{name}.js": b"text/javascript; charset=utf-8"
        for name in ("api", "conversations", "machine", "markdown", "models", "page")
    },
}
# Nothing inline, nothing from another origin, in no other page's frame: even if text of a model
# became markup, it could load, send and run nothing.
_POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = (
    (b"content-security-policy", _POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)

# The file at each path. None of them has a secret: they are given without a key.
PAGE_PATHS = {"/": "index.html"} | {
    f"/page/{name}": name for name in _TYPES if name != "index.html"
}


def page_file(name: str) -> Callable[[HttpExchange], Awaitable[None]]:
    """The handler of a file's path."""
    body = (files("airllm.server") / "page" / name).read_bytes()

    async def handler(exchange: HttpExchange) -> None:
        await send_bytes(exchange.send, 200, body, _TYPES[name], _HEADERS)

    return handler
