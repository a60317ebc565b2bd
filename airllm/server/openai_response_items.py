"""What requests of the Responses API hold: tools, and items of a conversation.

A model knows functions only. So a tool of a namespace becomes a function with both names in one,
and a custom tool, which takes any text, a function with the text as its argument.
"""

import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from airllm.server.body_fields import BodyFields
from airllm.server.errors import unsupported
from airllm.server.openai_messages import called, checked_tools, read_content, read_tool
from airllm.text.answer import Tool

__all__ = ["ResponseTool", "plain_tool", "read_items", "read_response_tools"]

_log = logging.getLogger("airllm")
_ignored: set[str] = set()  # kinds of tools that were logged
_MOST_LOGGED = 100

_CUSTOM = {
    "type": "object",
    "properties": {"input": {"type": "string"}},
    "required": ["input"],
    "additionalProperties": False,
}


@dataclass(frozen=True)
class ResponseTool:
    """A tool and what the API calls it. tool: as the model knows it."""

    tool: Tool
    name: str
    namespace: str | None
    is_custom: bool

    def item(self, call_id: str, arguments: str) -> dict[str, Any]:
        """The item of a call of this tool, without its id and status."""
        named = {"call_id": call_id, "name": self.name}
        if self.namespace is not None:
            named["namespace"] = self.namespace
        if not self.is_custom:
            return {"type": "function_call", **named, "arguments": arguments}
        return {"type": "custom_tool_call", **named, "input": _input(arguments)}


def plain_tool(name: str) -> ResponseTool:
    """A function."""
    return ResponseTool(Tool(name), name, None, False)


def _input(arguments: str) -> str:
    """The text for a custom tool; what a model has written wrongly, as it is."""
    try:
        value = json.loads(arguments or "{}")
        text = value["input"]
    except (ValueError, RecursionError, TypeError, KeyError):
        return arguments
    return text if isinstance(text, str) else arguments


def _function_name(namespace: str | None, name: str) -> str:
    """The function's name for the model. OpenAI calls the namespace of plain tools "functions"."""
    if namespace is None or namespace == "functions":
        return name
    return f"{namespace.removesuffix('__')}__{name}"


def read_response_tools(given: BodyFields) -> list[ResponseTool]:
    """The tools of `tools`, and of `additional_tools` in the input."""
    found = list(_tools(given, "tools"))
    if isinstance(given.raw("input"), list):
        for path, item in given.items("input"):
            part = BodyFields(item, path)
            if part.raw("type") == "additional_tools":
                found += _tools(part, "tools")
    checked_tools([one.tool for one in found])
    return found


def _tools(given: BodyFields, field: str, namespace: str | None = None) -> Iterator[ResponseTool]:
    """Tools that OpenAI runs itself are left out, because agents always send some."""
    for path, item in given.items(field):
        tool = BodyFields(item, path)
        kind = tool.text("type")
        if kind == "namespace" and namespace is None:
            yield from _tools(tool, "tools", tool.text("name"))
        elif kind in ("function", "custom"):
            read = read_tool(tool) if kind == "function" else _custom(tool)
            shown = replace(read, name=_function_name(namespace, read.name))
            yield ResponseTool(shown, read.name, namespace, kind == "custom")
        elif kind not in _ignored:
            if len(_ignored) < _MOST_LOGGED:
                _ignored.add(kind)
            _log.warning("responses: %s is of the type %.40r; such tools are ignored", path, kind)


def _custom(given: BodyFields) -> Tool:
    """The grammar of its text, if it has one, is told in the description."""
    read, form = read_tool(given), given.fields("format")
    described = read.description
    if form.text("type", "text") == "grammar":
        grammar = f"({form.text('syntax')}):\n{form.text('definition')}"
        described = f"{described}\n\nThe input must match this grammar {grammar}"
    return Tool(read.name, described, _CUSTOM)


def read_items(given: BodyFields) -> list[dict[str, Any]]:
    """The messages of `input`: a text, or items."""
    value = given.raw("input")
    if isinstance(value, str):
        return [{"role": "user", "content": value}]
    reader = _ItemReader()
    for path, item in given.items("input", required=True):
        reader.read(BodyFields(item, path))
    return reader.messages


class _ItemReader:
    """Joins items to messages: a thought and calls belong to the assistant's text around them."""

    def __init__(self) -> None:
        self.messages: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}  # of the functions by the ids of their calls
        self._thought = ""

    def read(self, part: BodyFields) -> None:
        match part.text("type", "message"):
            case "message":
                role = part.choice("role", ("system", "developer", "user", "assistant"))
                content = read_content(part)
                if role == "assistant":
                    self._begin(content)
                else:
                    role = "system" if role == "developer" else role
                    self.messages.append({"role": role, "content": content})
            case "function_call":
                self._call(part, part.text("arguments"))
            case "custom_tool_call":
                self._call(part, json.dumps({"input": part.text("input")}))
            case "function_call_output" | "custom_tool_call_output":
                id = part.text("call_id")
                content = read_content(
                    BodyFields({"content": part.raw("output")}, part.path), of_tool=True
                )
                result = {"role": "tool", "tool_call_id": id, "content": content}
                if id in self._names:
                    result["name"] = self._names[id]
                self.messages.append(result)
            case "reasoning":
                self._thought = "".join(
                    BodyFields(one, where).text("text") for where, one in part.items("content")
                )
            case "additional_tools":  # see read_response_tools
                pass
            case kind:
                raise unsupported(f"{part.path}.type", f"this server does not know {kind[:40]!r}")

    def _begin(self, content: str) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if self._thought:
            message["reasoning_content"], self._thought = self._thought, ""
        self.messages.append(message)
        return message

    def _call(self, part: BodyFields, arguments: str) -> None:
        id, name = part.text("call_id"), part.text("name")
        name = self._names[id] = _function_name(part.maybe_text("namespace"), name)
        last = self.messages[-1] if self.messages else {}
        if last.get("role") != "assistant":
            last = self._begin("")
        last.setdefault("tool_calls", []).append(called(id, name, arguments))
