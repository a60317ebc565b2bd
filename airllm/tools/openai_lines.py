"""Lines of OpenAI's batches, as lines of files of prompts.

{"custom_id": "sky", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": ...}}
"""

from collections.abc import Mapping
from typing import Any

from airllm.util.shown import shown

__all__ = ["is_openai_line", "own_line"]

_FIELDS = {"/v1/chat/completions": "messages", "/v1/completions": "prompt"}
_LENGTHS = ("max_completion_tokens", "max_tokens")
# What changes nothing about the answer, unless it has another value than these.
_WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "stream": (False,),
    "logprobs": (False,),
    "response_format": ({"type": "text"},),
    "tool_choice": ("auto",),
    "parallel_tool_calls": (True,),
}
_NO_MATTER = frozenset(("model", "user", "metadata", "store", "service_tier"))


def is_openai_line(line: Mapping[str, Any]) -> bool:
    return "custom_id" in line or "body" in line


def own_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """The same as a line of our own, whose fields are still to be checked. ValueError names a field
    that has no meaning here."""
    if unknown := line.keys() - {"custom_id", "method", "url", "body"}:
        raise ValueError(f"has {shown(min(unknown))}, which is no field of a line of OpenAI's")
    if line.get("method", "POST") != "POST":
        raise ValueError(f"method is {shown(line['method'])}; expected 'POST'")
    url, body = line.get("url", "/v1/chat/completions"), line.get("body")
    if not isinstance(url, str) or url not in _FIELDS:
        raise ValueError(f"url is {shown(url)}; expected {' or '.join(_FIELDS)}")
    if not isinstance(body, Mapping):
        raise ValueError(f"body is {shown(body)}; expected an object")
    found = {name: value for name, value in body.items() if value is not None}
    if _FIELDS[url] not in found:
        raise ValueError(f"body has no {_FIELDS[url]!r}, which {url} takes")
    for name, values in _WITHOUT_EFFECT.items():
        if found.pop(name, values[0]) not in values:
            raise ValueError(f"body.{name} is {shown(body[name])}; this command does not know that")
    lengths = [found.pop(name) for name in _LENGTHS if name in found]
    own = {name: value for name, value in found.items() if name not in _NO_MATTER}
    if lengths:
        own["max_new_tokens"] = lengths[0]
    if (effort := own.pop("reasoning_effort", None)) is not None:
        variables = own.get("chat_template_kwargs")
        if isinstance(variables, Mapping) or variables is None:
            own["chat_template_kwargs"] = {"reasoning_effort": effort, **(variables or {})}
    if "custom_id" in line:
        own["id"] = line["custom_id"]
    return own
