"""What Ollama's clients ask about models: which there are, what they are, which are loaded."""

import hashlib
from typing import Any

from airllm import __version__
from airllm.server.body_fields import BodyFields
from airllm.server.errors import ApiError
from airllm.server.http_exchange import HttpExchange
from airllm.server.ollama import timestamp
from airllm.server.served_model import ServedModel

__all__ = ["ollama_ps", "ollama_show", "ollama_tags", "ollama_version"]

# Of the Ollama whose API this is. Clients look at it: Codex refuses an Ollama before 0.13.4.
_OLLAMA_VERSION = "0.13.5"


async def ollama_version(exchange: HttpExchange) -> None:
    await exchange.send_json({"version": _OLLAMA_VERSION, "airllm": __version__})


async def ollama_tags(exchange: HttpExchange) -> None:
    await exchange.send_json({"models": [_entry(exchange.service.model)]})


async def ollama_ps(exchange: HttpExchange) -> None:
    model = exchange.service.model
    loaded = {"expires_at": "0001-01-01T00:00:00Z", "size_vram": 0, "context_length": model.context}
    await exchange.send_json({"models": [{**_entry(model), **loaded}]})


async def ollama_show(exchange: HttpExchange) -> None:
    given, model = BodyFields(await exchange.json()), exchange.service.model
    name = given.maybe_text("model") or given.text("name")
    if name.removesuffix(":latest") != model.name.removesuffix(":latest"):
        raise ApiError(404, f"model {name[:200]!r} not found", "model", "model_not_found")
    given.without_effect("verbose")
    capabilities = ["completion"]
    if model.template_source is not None:
        capabilities.append("tools")
    if model.format.thinks:
        capabilities.append("thinking")
    family = str(model.facts.get("family", ""))
    await exchange.send_json(
        {
            "modelfile": "",
            "parameters": f"num_ctx {model.context}",
            "template": model.template_source or "",
            "details": _details(model),
            "model_info": {
                "general.architecture": family,
                f"{family}.context_length": model.context,
            },
            "capabilities": capabilities,
            "modified_at": timestamp(),
        }
    )


def _entry(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": timestamp(),
        "size": int(model.facts.get("bytes", 0)),
        "digest": hashlib.sha256(model.name.encode()).hexdigest(),
        "details": _details(model),
    }


def _details(model: ServedModel) -> dict[str, Any]:
    family = str(model.facts.get("family", ""))
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": str(model.facts.get("parameters", "")),
        "quantization_level": str(model.facts.get("type", "")),
    }
