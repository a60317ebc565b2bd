"""Tells a model about tools: by the variables of its chat template, or in words if that has none.

The words are those of Hermes's models, which many others have learnt from, too. Calls and results
in a conversation become text, because such a template would leave them out.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.text.answer.formats import AnswerFormat
from airllm.text.answer.parts import Tool

__all__ = ["tool_variables", "with_told_tools"]


def tool_variables(form: AnswerFormat, tools: Sequence[Tool]) -> dict[str, object]:
    """The variables of a template that shows tools, as the templates of its format read them."""
    listed = [tool.as_json() for tool in tools]
    match form.name:
        case "firefunction":  # these two must always be there
            return {"functions": json.dumps(listed), "datetime": time.strftime("%Y-%m-%d")}
        case "command-r":
            return {"tools": [_described(tool.as_json()) for tool in tools]}
    return {"tools": listed} if listed else {}


def _described(tool: Mapping[str, Any]) -> dict[str, Any]:
    """Command R's template fails on a parameter without a description, and on an object that says
    nothing of its values."""
    function = tool["function"]
    schema = function["parameters"]
    properties = schema.get("properties")
    if not isinstance(properties, Mapping):
        return dict(tool)
    described = {
        name: {"description": "", "additionalProperties": {}, **one}
        for name, one in properties.items()
        if isinstance(one, Mapping)
    }
    return {**tool, "function": {**function, "parameters": {**schema, "properties": described}}}


_INSTRUCTIONS = """\
You may call functions to answer. Their signatures are within <tools></tools>:
<tools>
{tools}
</tools>
For each call, write a JSON object with the function's name and arguments within tags:
<tool_call>
{{"name": "the name", "arguments": {{"an argument": "its value"}}}}
</tool_call>"""


def with_told_tools(
    messages: Sequence[Mapping[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """The messages in plain roles and texts; the tools are in the system message."""
    told = [_plain(message) for message in messages]
    if not tools:
        return told
    listed = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in tools)
    text = _INSTRUCTIONS.format(tools=listed)
    if told and told[0]["role"] == "system":
        return [{**told[0], "content": f"{told[0]['content']}\n\n{text}".lstrip()}, *told[1:]]
    return [{"role": "system", "content": text}, *told]


def _plain(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    if message["role"] == "tool":
        return {"role": "user", "content": f"<tool_response>\n{content}\n</tool_response>"}
    if not message.get("tool_calls"):
        return dict(message)
    calls = [
        json.dumps(
            {"name": call["function"]["name"], "arguments": call["function"]["arguments"]},
            ensure_ascii=False,
        )
        for call in message["tool_calls"]
    ]
    written = [f"<tool_call>\n{call}\n</tool_call>" for call in calls]
    return {
        "role": message["role"],
        "content": "\n".join([*([content] if content else []), *written]),
    }
