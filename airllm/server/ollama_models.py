"""What Ollama's clients ask about models: which there are, what they are, which are loaded."""

import hashlib
from typing import Any

from airllm.server.body_fields import BodyFields
from airllm.server.errors import ApiError
from airllm.server.http_exchange import HttpExchange
from airllm.server.models import ListedModel
from airllm.server.ollama import timestamp
from airllm.util.version import __version__

__all__ = ["ollama_ps", "ollama_show", "ollama_tags", "ollama_version"]

# Of the Ollama whose API this is. Clients look at it: Codex refuses an Ollama before 0.13.4.
_OLLAMA_VERSION = "0.13.5"
_NEVER = "0001-01-01T00:00:00Z"


async def ollama_version(exchange: HttpExchange) -> None:
    await exchange.send_json({"version": _OLLAMA_VERSION, "airllm": __version__})


async def ollama_tags(exchange: HttpExchange) -> None:
    """Ollama's clients ask only for names that are here, so that each alias is a model of its own,
    as after `ollama cp`."""
    models = await exchange.service.models.listed()
    names = [(listed, name) for listed in models for name in (listed.id, *listed.aliases)]
    found = [{**_entry(listed), "name": name, "model": name} for listed, name in names]
    await exchange.send_json({"models": [one for one in found if not one["name"].endswith("*")]})


async def ollama_ps(exchange: HttpExchange) -> None:
    models = await exchange.service.models.listed()
    await exchange.send_json(
        {
            "models": [
                {
                    **_entry(listed),
                    "expires_at": (
                        _NEVER if listed.idle_until is None else timestamp(listed.idle_until)
                    ),
                    "size_vram": 0,
                    "context_length": listed.context,
                }
                for listed in models
                if listed.state == "loaded"
            ]
        }
    )


async def ollama_show(exchange: HttpExchange) -> None:
    """A model that is not loaded is shown as far as its header says."""
    given, models = BodyFields(await exchange.json()), exchange.service.models
    name = given.maybe_text("model") or given.text("name")
    listed = await models.find(name)
    if not models.are_several and _base(name) != _base(listed.id):
        raise ApiError(404, f"model {name[:200]!r} not found", "model", "model_not_found")
    given.without_effect("verbose")
    capabilities = ["completion"]
    model = listed.model
    template = listed.facts.get("chat_template") if model is None else model.template_source
    if template is not None:
        capabilities.append("tools")
    if model is not None and model.format.thinks:
        capabilities.append("thinking")
    if model is not None and model.prompts.fill_in.parts is not None:
        capabilities.append("insert")
    family = str(listed.facts.get("family", ""))
    await exchange.send_json(
        {
            "modelfile": "",
            "parameters": "" if listed.context is None else f"num_ctx {listed.context}",
            "template": template or "",
            "details": _details(listed),
            "model_info": {
                "general.architecture": family,
                f"{family}.context_length": listed.context,
            },
            "capabilities": capabilities,
            "modified_at": timestamp(listed.modified),
        }
    )


def _base(name: str) -> str:
    return name.removesuffix(":latest")


def _entry(listed: ListedModel) -> dict[str, Any]:
    return {
        "name": listed.id,
        "model": listed.id,
        "modified_at": timestamp(listed.modified),
        "size": listed.n_bytes,
        "digest": hashlib.sha256(listed.id.encode("utf-8", "replace")).hexdigest(),
        "details": _details(listed),
    }


def _details(listed: ListedModel) -> dict[str, Any]:
    family = str(listed.facts.get("family", ""))
    return {
        "parent_model": "",
        "format": "gguf",
        "family": family,
        "families": [family],
        "parameter_size": str(listed.facts.get("parameters", "")),
        "quantization_level": str(listed.facts.get("type", "")),
    }
