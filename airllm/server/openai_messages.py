"""OpenAI's messages and tools, read into the form that chat templates expect."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.server.body_fields import BodyFields
from airllm.server.chat import OutputForm, ToolChoice
from airllm.server.errors import ApiError, bad, unsupported
from airllm.text.answer import Tool
from airllm.text.answer.json_calls import is_name

__all__ = ["read_effort", "read_messages", "read_response_format", "read_tool", "read_tool_choice"]

_ROLES = ("system", "developer", "user", "assistant", "tool")
MOST_MESSAGES = 10_000
MOST_TOOLS = 512
UNSEEN_IMAGE = "[a picture, which this model cannot see]"


def read_messages(given: BodyFields, field: str = "messages") -> list[dict[str, Any]]:
    """The messages, contents as texts. Results of tools get the names of the tools."""
    messages: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of the functions by the ids of their calls
    for path, item in given.items(field, required=True):
        if len(messages) == MOST_MESSAGES:
            raise bad(field, f"{field} has more than {MOST_MESSAGES:,} messages")
        message = _message(BodyFields(item, path), names)
        for call in message.get("tool_calls", ()):
            names[call["id"]] = call["function"]["name"]
        messages.append(message)
    if not messages:
        raise bad(field, f"{field} is empty; expected at least one message")
    return messages


def _message(given: BodyFields, names: Mapping[str, str]) -> dict[str, Any]:
    role = given.choice("role", _ROLES)
    message: dict[str, Any] = {"role": "system" if role == "developer" else role}
    has_calls = role == "assistant" and given.has("tool_calls")
    message["content"] = read_content(given, optional=role == "assistant", of_tool=role == "tool")
    if given.has("name"):
        message["name"] = given.text("name")
    if role == "assistant":
        for name in ("reasoning_content", "reasoning"):
            if given.has(name) and isinstance(given.raw(name), str):
                message["reasoning_content"] = given.text(name)
        if has_calls:
            message["tool_calls"] = [
                _call(BodyFields(item, path)) for path, item in given.items("tool_calls")
            ]
        given.refuse("function_call", "it is the old form of tool_calls")
        given.refuse("audio", "this server reads text only")
        given.without_effect("refusal", "annotations")
    elif role == "tool":
        id = given.text("tool_call_id")
        message["tool_call_id"] = id
        if id in names:
            message.setdefault("name", names[id])
    given.log_unknown("messages")
    return message


def read_content(given: BodyFields, *, optional: bool = False, of_tool: bool = False) -> str:
    """A content as a text. Only texts can be read; the error for anything else names it.

    of_tool: it is the result of a tool. There the model is told of a picture that it cannot see:
    an error would end the agent's session, which sends the same picture again each time.
    """
    value = given.raw("content")
    if value is None and optional:
        return ""
    if isinstance(value, str):
        return value
    texts = []
    for path, item in given.items("content", required=True):
        part = BodyFields(item, path)
        kind = part.text("type")
        if kind in ("text", "input_text", "output_text"):
            texts.append(part.text("text"))
        elif kind == "refusal":
            texts.append(part.text("refusal"))
        elif of_tool and kind in ("image_url", "input_image", "image"):
            texts.append(UNSEEN_IMAGE)
        else:
            raise unsupported(f"{path}.type", f"this server reads text, and not {kind[:40]!r}")
    return "".join(texts)


def _call(given: BodyFields) -> dict[str, Any]:
    given.choice("type", ("function",), "function")
    function = given.fields("function")
    return called(given.text("id", ""), function.text("name"), function.text("arguments", "{}"))


def called(id: str, name: str, arguments: str) -> dict[str, Any]:
    """A call in a message. Templates expect the arguments as an object."""
    try:
        value = json.loads(arguments or "{}")
    except (ValueError, RecursionError):
        value = arguments
    function = {"name": name, "arguments": value if isinstance(value, dict) else arguments}
    return {"id": id, "type": "function", "function": function}


def read_tools(given: BodyFields) -> list[Tool]:
    """The `tools` of chat completions."""
    tools = []
    for path, item in given.items("tools"):
        tool = BodyFields(item, path)
        kind = tool.text("type", "function")
        if kind != "function":
            raise unsupported(f"{path}.type", f"this server knows functions, and not {kind[:40]!r}")
        tools.append(read_tool(tool.fields("function")))
    return checked_tools(tools)


def read_tool(given: BodyFields) -> Tool:
    name = given.text("name")
    if not is_name(name):
        raise given.wrong("name", "letters, digits, and _ - . : /, at most 256")
    description, parameters = given.text("description", ""), given.mapping("parameters")
    return Tool(name, description, parameters, given.flag("strict"))


def checked_tools(tools: list[Tool]) -> list[Tool]:
    names = [tool.name for tool in tools]
    if len(tools) > MOST_TOOLS:
        raise bad("tools", f"tools has {len(tools)}; at most {MOST_TOOLS}")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise bad("tools", f"tools has two functions of the name {twice!r}")
    return tools


def read_tool_choice(given: BodyFields, tools: Sequence[Tool]) -> ToolChoice:
    """ "auto", "none", "required", or a function by its name."""
    value = given.raw("tool_choice")
    if value is None or value == "auto":
        return ToolChoice("auto")
    if value == "none":
        return ToolChoice("none")
    if not tools:
        raise bad("tool_choice", "tool_choice asks for a call, and there are no tools")
    if value in ("required", "any"):
        return ToolChoice("required")
    if isinstance(value, str):
        raise given.wrong("tool_choice", "'auto', 'none', 'required' or a function")
    choice = BodyFields(value, "tool_choice")
    choice.choice("type", ("function",))
    name = (choice.fields("function") if choice.has("function") else choice).text("name")
    if name not in {tool.name for tool in tools}:
        raise bad("tool_choice", f"tool_choice names {name!r}, which is none of the tools")
    return ToolChoice("named", name)


def read_response_format(given: BodyFields, field: str = "response_format") -> OutputForm | None:
    if not given.has(field):
        return None
    form = given.fields(field)
    kind = form.choice("type", ("text", "json_object", "json_schema"))
    if kind == "text":
        return None
    if kind == "json_object":
        if form.has("schema"):  # llama.cpp's way
            return schema_form(form.mapping("schema"), f"{field}.schema")
        return OutputForm("json", param=field)
    # The Responses API has no object in between.
    inner = form.fields("json_schema") if form.has("json_schema") else form
    inner.without_effect("name", "description", "strict")
    if not inner.has("schema"):
        raise inner.wrong("schema", "a JSON schema")
    return schema_form(inner.mapping("schema"), inner.name("schema"))


def schema_form(schema: Mapping[str, Any], param: str) -> OutputForm:
    return OutputForm("json_schema", json.dumps(schema), param)


def read_effort(effort: str | None, variables: dict[str, object]) -> dict[str, object]:
    """Template variables with an effort of thinking. "none" turns thinking off."""
    if effort is None:
        return variables
    if effort not in ("none", "minimal", "low", "medium", "high", "xhigh", "max"):
        text = "reasoning_effort is not one of none, minimal, low, medium, high, xhigh and max"
        raise ApiError(400, text, "reasoning_effort")
    if effort == "none":
        return {"enable_thinking": False, "thinking": False, **variables}
    return {"enable_thinking": True, "thinking": True, "reasoning_effort": effort, **variables}
