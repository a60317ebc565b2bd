"""Tells a model about tools: by the variables of its chat template, or in words if that has none.

The words are those of Hermes's models, which many others have learnt from, too. Calls and results
in a conversation become text, because such a template would leave them out. DeepSeek V3.1 has a
template for calls and results, and words of its own for tools.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from airllm.text.answer.formats import AnswerFormat
from airllm.text.answer.parts import Tool
from airllm.text.control_guard import Guarded

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


# As the model's card writes it. The marks are control tokens.
_DEEPSEEK_TOOL = """\
### {name}
Description: {description}

Parameters: {parameters}

"""
_DEEPSEEK_INSTRUCTIONS = """\
IMPORTANT: ALWAYS adhere to this exact format for tool use:
<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>tool_call_name<｜tool▁sep｜>tool_call_arguments\
<｜tool▁call▁end｜>{{additional_tool_calls}}<｜tool▁calls▁end｜>

Where:
- `tool_call_name` must be an exact match to one of the available tools
- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema
- For multiple tool calls, chain them directly without separators or spaces"""


def with_told_tools(
    form: AnswerFormat,
    messages: Sequence[Mapping[str, Any]],
    tools: Sequence[Tool],
    guard: Callable[[str], str],
) -> list[Mapping[str, Any]]:
    """The messages with the tools in the system message; those with calls and results as the
    template shows them. guard: see ChatTemplate.render."""
    told = [message if form.shows_calls else _plain(message) for message in messages]
    if not tools:
        return told
    has_system = bool(told) and told[0]["role"] == "system"
    system = f"{told[0]['content']}\n\n".lstrip() if has_system else ""
    if form.name == "deepseek":
        listed = "".join(map(_deepseek_tool, tools))
        text = guard(f"{system}## Tools\nYou have access to the following tools:\n\n{listed}")
        text = Guarded(text + _DEEPSEEK_INSTRUCTIONS)
    else:
        listed = "\n".join(json.dumps(tool.as_json(), ensure_ascii=False) for tool in tools)
        text = system + _INSTRUCTIONS.format(tools=listed)
    return [{"role": "system", "content": text}, *told[has_system:]]


def _deepseek_tool(tool: Tool) -> str:
    return _DEEPSEEK_TOOL.format(
        name=tool.name,
        description=tool.description,
        parameters=json.dumps(dict(tool.parameters), ensure_ascii=False),
    )


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
