"""What the server says of itself and its models: /health, /metrics, /props, /v1/models."""

import time
from typing import Any

from airllm.server.body_fields import BodyFields
from airllm.server.errors import ApiError
from airllm.server.http_exchange import HttpExchange
from airllm.server.models import ListedModel
from airllm.server.served_model import ServedModel
from airllm.server.service import measured
from airllm.util.version import __version__

__all__ = ["health", "load", "loaded_name", "metrics", "models", "props", "unload"]

_STARTED = int(time.time())


async def health(exchange: HttpExchange) -> None:
    """200 once requests can be answered; until then the error of `check` is a 503."""
    exchange.service.models.check()
    await exchange.send_json({"status": "ok"})


async def metrics(exchange: HttpExchange) -> None:
    text = exchange.service.metrics.text(exchange.service.gauges())
    await exchange.send_text(text, b"text/plain; version=0.0.4; charset=utf-8")


async def props(exchange: HttpExchange) -> None:
    """Of the model that ?model= names. It is not loaded for that."""
    listed = await exchange.service.models.find(exchange.query("model"))
    about = {"model": listed.id, "state": listed.state, "version": __version__}
    model = listed.model
    if model is None:
        await exchange.send_json({**about, "context": listed.context, **listed.facts})
        return
    await exchange.send_json(
        {
            **about,
            "context": model.context,
            "vocab_size": model.prompts.tokenizer.vocab_size,
            "answer_format": model.format.name,
            "thinks": model.format.thinks,
            "chat_template": model.template_source,
            **model.facts,
            **model.measured(),
            **measured(model),
        }
    )


async def models(exchange: HttpExchange) -> None:
    """All models, or the one that the path names; in Anthropic's form for its clients."""
    for_anthropic = "anthropic-version" in exchange.headers
    entry = _anthropic_entry if for_anthropic else _entry
    id = exchange.parameter("id")
    if id is not None:
        listed = await exchange.service.models.find(id)
        if not exchange.service.models.are_several and id != listed.id:
            text = f"there is no model {id[:200]!r} here"
            raise ApiError(404, text, "model", "model_not_found")
        await exchange.send_json(entry(listed))
        return
    found = [entry(listed) for listed in await exchange.service.models.listed()]
    page: dict[str, Any] = {"object": "list"}
    if for_anthropic:
        ends = {"first_id": found[0]["id"], "last_id": found[-1]["id"]} if found else {}
        page = {"has_more": False, "first_id": None, "last_id": None, **ends}
    await exchange.send_json({**page, "data": found})


def _entry(listed: ListedModel) -> dict[str, Any]:
    """llama.cpp's clients read the state in `status`, and further names in `aliases`."""
    return {
        "id": listed.id,
        "object": "model",
        "created": _created(listed),
        "owned_by": "airllm",
        "max_model_len": listed.context,
        "status": {"value": listed.state},
        "aliases": list(listed.aliases),
    }


def _anthropic_entry(listed: ListedModel) -> dict[str, Any]:
    created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(_created(listed)))
    return {"type": "model", "id": listed.id, "display_name": listed.id, "created_at": created}


def _created(listed: ListedModel) -> int:
    return _STARTED if listed.modified is None else int(listed.modified)


async def load(exchange: HttpExchange) -> None:
    """llama.cpp's way to load a model; the answer comes when it is loaded."""
    await exchange.with_model(BodyFields(await exchange.json()).text("model"), loaded_name)
    await exchange.send_json({"success": True})


async def loaded_name(model: ServedModel) -> str:
    """For HttpExchange.with_model, where a model is to be loaded and no more."""
    return model.name


async def unload(exchange: HttpExchange) -> None:
    """llama.cpp's way to unload a model; it ends once nothing runs on it."""
    await exchange.service.models.unload(BodyFields(await exchange.json()).text("model"))
    await exchange.send_json({"success": True})
