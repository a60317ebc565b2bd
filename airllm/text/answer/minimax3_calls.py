"""MiniMax-M3's tool calls: an element for each value, within objects and lists as well.

    ]<]minimax[>[<invoke name="f">]<]minimax[>[<city>Paris]<]minimax[>[</city>...

Each tag follows the token ]<]minimax[>[. The items of a list are elements of the name `item`.
"""

import json
from collections.abc import Mapping
from typing import Any

from airllm.text.answer.json_calls import is_name
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading
from airllm.text.answer.tagged_calls import value_of_text

__all__ = ["NAMESPACE", "read_minimax3"]

NAMESPACE = "]<]minimax[>["
MOST_DEPTH = 50


def read_minimax3(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """All calls of a section, and its end."""
    invoke, end = f'{NAMESPACE}<invoke name="', f"{NAMESPACE}</tool_call>"
    mark = yield from source.until((invoke, end), _drop)
    while mark == invoke:
        name, mark = yield from source.text_until('">')
        if mark is None or not is_name(name):
            raise NotACallError
        parts.begin_call(name)
        schema = dict(tools[name].parameters) if name in tools else {}
        value = yield from _value(source, {"type": "object", **schema}, 0)
        parts.arguments(json.dumps(value, ensure_ascii=False))
        mark = yield from source.until((invoke, end), _drop)


def _value(source: AnswerSource, schema: object, depth: int) -> Reading[Any]:
    """What an element holds, and its closing tag: text, or elements."""
    if depth > MOST_DEPTH:
        raise NotACallError
    text, _ = yield from source.text_until(NAMESPACE)
    children: list[tuple[str, Any]] = []
    while (yield from source.more()) and not (yield from source.take("</")):
        yield from source.expect("<")
        name, _ = yield from source.text_until(">")
        children.append((name, (yield from _value(source, _part(schema, name), depth + 1))))
        yield from source.until((NAMESPACE,), _drop)
    yield from source.until((">",), _drop)
    kind = schema.get("type") if isinstance(schema, Mapping) else None
    if kind == "array" or (children and kind is None and {"item"} == {one for one, _ in children}):
        return [value for _, value in children]
    if children or kind == "object":
        return dict(children)
    return value_of_text(text, schema)


def _part(schema: object, name: str) -> object:
    """The schema of a field, or of an item."""
    if not isinstance(schema, Mapping):
        return None
    properties = schema.get("properties")
    if isinstance(properties, Mapping) and name in properties:
        return properties[name]
    return schema.get("items")


def _drop(text: str) -> None:
    pass
