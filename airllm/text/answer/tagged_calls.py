"""Tool calls whose arguments lie in tags, one for each: Qwen3-Coder, MiniCPM5, GLM, Hy3, MiniMax,
DeepSeek V3.2.

A tag holds the text of a string as it is, and other values as JSON. Which of the two it holds is
for the tool's schema to say, because `12` can be either.
"""

import ast
import json
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from airllm.text.answer.json_calls import is_name, read_arguments
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading

__all__ = [
    "InvokeTags",
    "KeyValueTags",
    "TaggedArguments",
    "attribute",
    "read_function",
    "read_function_tags",
    "read_named_function",
    "value_of_text",
]

Tools = Mapping[str, Tool]

MOST_PYTHON = 100_000  # characters of a value that may be Python's


class TaggedArguments:
    """Writes a JSON object from values that come as text."""

    def __init__(self, parts: Parts, tool: Tool | None) -> None:
        self._parts, self._n = parts, 0
        self._schema: object = (tool.parameters if tool else {}).get("properties")

    def read(
        self,
        name: str,
        source: AnswerSource,
        ends: tuple[str, ...],
        *,
        text: bool | None = None,
        exact: bool = False,
    ) -> Reading[str | None]:
        """A value up to its closing tag, which is returned. text: whether the value is a text; None
        if the schema says so. exact: newlines around a text are a part of it."""
        self._parts.arguments(("{" if not self._n else ", ") + json.dumps(name) + ": ")
        self._n += 1
        kinds = _kinds(self._schema.get(name)) if isinstance(self._schema, Mapping) else None
        if text is None:
            text = kinds == {"string"}
        if text:
            return (yield from self._text(source, ends, exact))
        value, mark = yield from source.text_until(*ends)
        self._parts.arguments(_as_json(value, kinds))
        return mark

    def _text(
        self, source: AnswerSource, ends: tuple[str, ...], exact: bool
    ) -> Reading[str | None]:
        """A text, as it comes. The newline behind the opening tag and the newline before the
        closing tag are layout, unless the text is exact."""
        if not exact:
            yield from source.take("\n")
        self._parts.arguments('"')
        held = ""

        def say(text: str) -> None:
            nonlocal held
            text = held + text
            held = "\n" if text.endswith("\n") and not exact else ""
            self._parts.arguments(json.dumps(text[: len(text) - len(held)])[1:-1])

        mark = yield from source.until(ends, say)
        self._parts.arguments('"')
        return mark

    def end(self) -> None:
        self._parts.arguments("}" if self._n else "{}")


def read_function_tags(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """Qwen3-Coder and Seed-OSS: <function=f><parameter=x>1</parameter></function></tool_call>."""
    yield from source.skip_space()
    yield from source.expect("<function=")
    yield from read_function(source, parts, tools)


def read_function(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """f><parameter=x>1</parameter></function></tool_call>

    Models forget the <tool_call> before the function, and the closing tag of a parameter.
    """
    name, mark = yield from source.text_until(">", "\n")
    name = name.strip().strip('"')
    if mark != ">" or not is_name(name):
        raise NotACallError
    parts.begin_call(name)
    opening, closing, end = "<parameter=", "</parameter>", "</function>"
    if (yield from source.peek()) == "{":  # Functionary's arguments are JSON
        yield from read_arguments(source, parts.arguments)
        yield from source.until((end,), _drop)
        return
    arguments = TaggedArguments(parts, tools.get(name))
    mark = yield from source.until((opening, end, "</tool_call>"), _drop)
    while mark == opening:
        key, mark = yield from source.text_until(">")
        if mark is None:
            break
        ends = (closing, opening, end)
        mark = yield from arguments.read(key.strip().strip('"'), source, ends)
        if mark == closing:
            mark = yield from source.until((opening, end, "</tool_call>"), _drop)
    arguments.end()
    yield from source.skip_space()
    yield from source.take("</tool_call>", "</seed:tool_call>")


def read_named_function(source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
    """MiniCPM5: f"><param name="x">1</param></function>; a value may be in <![CDATA[...]]>."""
    name, mark = yield from source.text_until(">", "\n")
    name = name.strip().strip("\"'")
    if mark != ">" or not is_name(name):
        raise NotACallError
    parts.begin_call(name)
    opening, closing, end = "<param name=", "</param>", "</function>"
    arguments = TaggedArguments(parts, tools.get(name))
    mark = yield from source.until((opening, end), _drop)
    while mark == opening:
        key, mark = yield from source.text_until(">")
        if mark is None:
            break
        key = key.strip().strip("\"'")
        if (yield from source.take("<![CDATA[")):
            yield from arguments.read(key, source, ("]]>",), exact=True)
            mark = yield from source.until((closing, opening, end), _drop)
        else:
            mark = yield from arguments.read(key, source, (closing, opening, end))
        if mark == closing:
            mark = yield from source.until((opening, end), _drop)
    arguments.end()


@dataclass(frozen=True)
class KeyValueTags:
    """GLM: f, then <arg_key>x</arg_key><arg_value>1</arg_value>, then </tool_call>.

    suffix: of the names of the tags, ":opensource" in Hy3. separator: after the function's name.
    """

    suffix: str = ""
    separator: str = ""

    def tag(self, name: str) -> str:
        return f"<{name}{self.suffix}>"

    def read(self, source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
        key_mark, value_mark, end = map(self.tag, ("arg_key", "arg_value", "/tool_call"))
        after_key, after_value = map(self.tag, ("/arg_key", "/arg_value"))
        separators = (self.separator,) if self.separator else ()
        name, mark = yield from source.text_until(key_mark, end, *separators)
        name = name.strip()
        if mark is None or not is_name(name):
            raise NotACallError
        parts.begin_call(name)
        if mark in separators:
            mark = yield from source.until((key_mark, end), _drop)
        arguments = TaggedArguments(parts, tools.get(name))
        while mark == key_mark:
            key, mark = yield from source.text_until(after_key)
            if mark is None:
                break
            mark = yield from source.until((value_mark, end), _drop)
            if mark != value_mark:
                break
            mark = yield from arguments.read(key.strip(), source, (after_value, key_mark, end))
            if mark == after_value:
                mark = yield from source.until((key_mark, end), _drop)
        arguments.end()


@dataclass(frozen=True)
class InvokeTags:
    """<invoke name="f"><parameter name="x">1</parameter></invoke>, in a section of such calls.

    prefix: before the names of the tags, "｜DSML｜" for DeepSeek V3.2. section: the tag around the
    calls.
    """

    section: str
    prefix: str = ""

    def read(self, source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
        """All calls of a section, and its end."""
        invoke, end = f"<{self.prefix}invoke", f"</{self.prefix}{self.section}>"
        mark = yield from source.until((invoke, end), _drop)
        while mark == invoke:
            yield from self._call(source, parts, tools)
            mark = yield from source.until((invoke, end), _drop)

    def _call(self, source: AnswerSource, parts: Parts, tools: Tools) -> Reading[None]:
        opening, closing = f"<{self.prefix}parameter", f"</{self.prefix}parameter>"
        end = f"</{self.prefix}invoke>"
        attributes, mark = yield from source.text_until(">")
        name = attribute("name", attributes)
        if mark is None or not is_name(name):
            raise NotACallError
        parts.begin_call(name)
        arguments = TaggedArguments(parts, tools.get(name))
        mark = yield from source.until((opening, end), _drop)
        while mark == opening:
            attributes, mark = yield from source.text_until(">")
            if mark is None:
                break
            kind = attribute("string", attributes)
            text = None if not kind else kind == "true"
            key = attribute("name", attributes)
            mark = yield from arguments.read(key, source, (closing, end), text=text)
            if mark == closing:
                mark = yield from source.until((opening, end), _drop)
        arguments.end()


def attribute(name: str, text: str) -> str:
    found = re.search(rf'\b{name}\s*=\s*"([^"]*)"', text)
    return found[1] if found else ""


def _kinds(schema: object) -> set[str] | None:
    """The JSON types that a schema allows; None if it allows any."""
    if not isinstance(schema, Mapping):
        return None
    if "enum" in schema and isinstance(schema["enum"], list):
        return {_kind(value) for value in schema["enum"]}
    kind = schema.get("type")
    if isinstance(kind, str):
        return {kind}
    if isinstance(kind, list):
        return {item for item in kind if isinstance(item, str)}
    for key in ("anyOf", "oneOf"):
        if isinstance(schema.get(key), list):
            kinds = [_kinds(item) for item in schema[key]]
            return None if None in kinds else set().union(*(kind or () for kind in kinds))
    return None


def _kind(value: object) -> str:
    names = {str: "string", bool: "boolean", int: "integer", float: "number", list: "array"}
    return "null" if value is None else names.get(type(value), "object")


def value_of_text(text: str, schema: object) -> Any:
    """The value that a text stands for by its schema."""
    kinds = _kinds(schema)
    return text if kinds == {"string"} else json.loads(_as_json(text, kinds))


def _as_json(text: str, kinds: set[str] | None) -> str:
    """A value that may be JSON: as JSON if it is of a type that the schema allows, else as text."""
    value = text.strip()
    python = {"True": "true", "False": "false", "None": "null"}
    try:
        found = json.loads(python.get(value, value))
    except (ValueError, RecursionError):
        if kinds is not None and not kinds & {"string"}:
            with suppress(ValueError):
                return json.dumps(_python_value(value), ensure_ascii=False)
        return json.dumps(text.removeprefix("\n").removesuffix("\n"))
    kind = _kind(found)
    if kinds is not None and kind not in kinds:
        is_number = kind == "integer" and "number" in kinds
        if not is_number and "string" in kinds:
            return json.dumps(text.removeprefix("\n").removesuffix("\n"))
    return json.dumps(found, ensure_ascii=False)


def _python_value(text: str) -> Any:
    """Lists and objects that a template or a model writes as Python does. ValueError."""
    if len(text) > MOST_PYTHON:
        raise ValueError
    try:
        return json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError from None


def _drop(text: str) -> None:
    pass
