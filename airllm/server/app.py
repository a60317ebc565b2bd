"""The paths of the server, each with the protocol that it speaks."""

import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from airllm.server import (
    anthropic_messages,
    ollama,
    openai_chat,
    openai_completions,
    openai_responses,
)
from airllm.server.access import AccessGate
from airllm.server.body_fields import BodyFields
from airllm.server.chat import ChatRequest
from airllm.server.chat_page import PAGE_PATHS, page_file
from airllm.server.embeddings import ollama_embed, ollama_embeddings, openai_embeddings
from airllm.server.errors import ApiError
from airllm.server.http_exchange import ErrorShape, GoneError, HttpExchange, send_error
from airllm.server.ollama_models import ollama_ps, ollama_show, ollama_tags, ollama_version
from airllm.server.respond import MakeWriter, respond
from airllm.server.service import Service, error_of
from airllm.server.state_api import (
    health,
    load,
    loaded_name,
    metrics,
    models,
    props,
    unload,
)
from airllm.server.tokens_api import detokenize, tokenize

__all__ = ["make_app"]

_log = logging.getLogger("airllm")

Handler = Callable[[HttpExchange], Awaitable[None]]


@dataclass(frozen=True)
class _Protocol:
    """How a path reads requests and writes answers. read: takes the body and the server's variables
    of the chat template."""

    read: Callable[[Any, Mapping[str, object]], ChatRequest]
    writer: MakeWriter

    async def __call__(self, exchange: HttpExchange) -> None:
        request = self.read(await exchange.json(), exchange.service.settings.variables)
        await respond(exchange, request, self.writer)


async def _messages(exchange: HttpExchange) -> None:
    settings = exchange.service.settings
    request = anthropic_messages.read_message_request(
        await exchange.json(), settings.variables, keeps_headers=settings.keeps_agent_headers
    )
    await respond(exchange, request, anthropic_messages.MessageWriter)


async def _count_tokens(exchange: HttpExchange) -> None:
    settings = exchange.service.settings
    request = anthropic_messages.read_message_request(
        await exchange.json(),
        settings.variables,
        keeps_headers=settings.keeps_agent_headers,
        counts=True,
    )

    read = partial(exchange.service.read, request)
    (prompt,) = await exchange.with_model(request.model, read)
    await exchange.send_json({"input_tokens": len(prompt.tokens)})


async def _responses(exchange: HttpExchange) -> None:
    service = exchange.service
    request = openai_responses.read_response(
        await exchange.json(), service.settings.variables, service.remembered
    )
    writer = partial(openai_responses.ResponseWriter, remembered=service.remembered)
    await respond(exchange, request, writer)


async def _stored_response(exchange: HttpExchange) -> None:
    id = exchange.parameter("id") or ""
    await exchange.send_json(exchange.service.remembered.response(id))


async def _forget_response(exchange: HttpExchange) -> None:
    id = exchange.parameter("id") or ""
    exchange.service.remembered.forget(id)
    await exchange.send_json({"id": id, "object": "response", "deleted": True})


async def _ollama(exchange: HttpExchange, protocol: _Protocol) -> None:
    """An empty request only asks for the model to be loaded, or with keep_alive 0 unloaded."""
    body = await exchange.json()
    if ollama.is_load_request(body):
        name, reason = await _load(exchange, BodyFields(body))
        is_chat = "chat" in exchange.path
        await exchange.send_json(ollama.loaded_body(name, is_chat=is_chat, reason=reason))
        return
    request = protocol.read(body, exchange.service.settings.variables)
    await respond(exchange, request, protocol.writer)


async def _load(exchange: HttpExchange, given: BodyFields) -> tuple[str, str]:
    """Returns the model's name, and Ollama's word for what was done."""
    models = exchange.service.models
    name, keep_alive = given.text("model", ""), ollama.read_keep_alive(given)
    if keep_alive == 0 and models.are_several:
        return await exchange.unless_gone(models.unload(name)), "unload"
    return await exchange.with_model(name, loaded_name, keep_alive), "load"


_CHAT = _Protocol(openai_chat.read_chat, openai_chat.ChatWriter)
_COMPLETIONS = _Protocol(openai_completions.read_completion, openai_completions.CompletionWriter)
_OLLAMA_CHAT = partial(
    _ollama, protocol=_Protocol(ollama.read_ollama_chat, ollama.OllamaChatWriter)
)
_OLLAMA_TEXT = partial(
    _ollama, protocol=_Protocol(ollama.read_ollama_text, ollama.OllamaTextWriter)
)

ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/chat/completions", _CHAT),
    ("POST", "/v1/completions", _COMPLETIONS),
    ("POST", "/v1/embeddings", openai_embeddings),
    ("POST", "/v1/responses", _responses),
    ("GET", "/v1/responses/{id}", _stored_response),
    ("DELETE", "/v1/responses/{id}", _forget_response),
    ("GET", "/v1/models", models),
    ("GET", "/v1/models/{id:path}", models),
    ("GET", "/models", models),
    ("POST", "/models/load", load),
    ("POST", "/models/unload", unload),
    ("POST", "/v1/messages", _messages),
    ("POST", "/v1/messages/count_tokens", _count_tokens),
    ("POST", "/api/chat", _OLLAMA_CHAT),
    ("POST", "/api/generate", _OLLAMA_TEXT),
    ("POST", "/api/embed", ollama_embed),
    ("POST", "/api/embeddings", ollama_embeddings),
    ("GET", "/api/tags", ollama_tags),
    ("GET", "/api/ps", ollama_ps),
    ("POST", "/api/show", ollama_show),
    ("GET", "/api/version", ollama_version),
    ("POST", "/tokenize", tokenize),
    ("POST", "/detokenize", detokenize),
    ("GET", "/health", health),
    ("GET", "/metrics", metrics),
    ("GET", "/props", props),
    *(("GET", path, page_file(name)) for path, name in PAGE_PATHS.items()),
)


def make_app(service: Service) -> ASGIApp:
    """The server as an ASGI application."""
    by_path: dict[str, dict[str, Handler]] = {}
    for method, path, handler in ROUTES:
        by_path.setdefault(path, {})[method] = handler
    by_path["/{path:path}"] = {}  # all others
    app = Starlette(
        routes=[
            Route(path, _Endpoint(service, path, handlers)) for path, handlers in by_path.items()
        ]
    )
    return AccessGate(app, service.settings, shape_of)


def shape_of(path: str) -> ErrorShape:
    """How errors look at a path."""
    if path.startswith("/api/"):
        return ollama.error_body
    if path.startswith("/v1/messages"):
        return anthropic_messages.error_body
    return openai_chat.error_body


class _Endpoint:
    """The handlers of a path by their methods, whose errors become answers."""

    def __init__(self, service: Service, path: str, handlers: Mapping[str, Handler]) -> None:
        self._service, self._path, self._handlers = service, path, handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = HttpExchange(self._service, scope, receive, send, shape_of(scope["path"]))
        try:
            await self._handler(exchange)(exchange)
        except GoneError:
            exchange.outcome = "cancelled"
        except Exception as error:
            told = error_of(error)
            exchange.outcome = f"error {told.status}"
            _log.info("%s: %s, %s", self._path, exchange.outcome, told.code or told.param or "")
            if not exchange.started:
                await send_error(send, told, exchange.shape)
        finally:
            self._service.metrics.request(self._path, exchange.outcome)

    def _handler(self, exchange: HttpExchange) -> Handler:
        if exchange.headers.get("upgrade", "").lower() == "websocket":
            # Codex tries this first. After 426 it goes on with HTTP at once, after other errors
            # only when it has tried six times more.
            text = "this server speaks HTTP, and no WebSockets"
            raise ApiError(426, text, code="no_websockets")
        if not self._handlers:
            text = f"there is no {exchange.path[:200]!r} here; docs/pages/server.md lists what is"
            raise ApiError(404, text, code="no_such_path")
        method = exchange.scope["method"]
        if method == "HEAD" and "GET" in self._handlers:
            method = "GET"
        if method not in self._handlers:
            text = f"{exchange.path} takes {' or '.join(self._handlers)}, not {method[:20]}"
            raise ApiError(405, text, code="method_not_allowed")
        return self._handlers[method]
