"""What the server says of itself: /health, /metrics, /props and /v1/models."""

import time
from typing import Any

from airllm import __version__
from airllm.server.errors import ApiError
from airllm.server.http_exchange import HttpExchange

__all__ = ["health", "metrics", "models", "props"]

_STARTED = int(time.time())


async def health(exchange: HttpExchange) -> None:
    """200 once the model is there; the error of `model` until then is a 503."""
    _ = exchange.service.model
    await exchange.send_json({"status": "ok"})


async def metrics(exchange: HttpExchange) -> None:
    text = exchange.service.metrics.text(exchange.service.gauges())
    await exchange.send_text(text, b"text/plain; version=0.0.4; charset=utf-8")


async def props(exchange: HttpExchange) -> None:
    model = exchange.service.model
    await exchange.send_json(
        {
            "model": model.name,
            "context": model.context,
            "vocab_size": model.prompts.tokenizer.vocab_size,
            "answer_format": model.format.name,
            "thinks": model.format.thinks,
            "chat_template": model.template_source,
            **model.facts,
            **model.measured(),
            "version": __version__,
            **exchange.service.gauges(),
        }
    )


async def models(exchange: HttpExchange) -> None:
    """All models, or the one that the path names; in Anthropic's form for its clients."""
    model = exchange.service.model
    id = exchange.parameter("id")
    if id is not None and id != model.name:
        raise ApiError(404, f"there is no model {id[:200]!r} here", "model", "model_not_found")
    if "anthropic-version" in exchange.headers:
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_STARTED))
        entry: dict[str, Any] = {
            "type": "model",
            "id": model.name,
            "display_name": model.name,
            "created_at": created,
        }
        page = {"has_more": False, "first_id": model.name, "last_id": model.name}
    else:
        entry = {
            "id": model.name,
            "object": "model",
            "created": _STARTED,
            "owned_by": "airllm",
            "max_model_len": model.context,
        }
        page = {"object": "list"}
    await exchange.send_json(entry if id is not None else {**page, "data": [entry]})
