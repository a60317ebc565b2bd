"""LFM2's tool calls, which are written as in Python: [f(city='Paris', days=[1, 2]), g()].

A text may have a quotation mark in it that is not escaped, as the models' templates write it: it
ends where a comma or a bracket follows. Values may be JSON, too.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.text.answer.json_calls import is_name, skip_to
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading

__all__ = ["BEGIN", "END", "read_python", "with_written_calls"]

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"
MOST_DEPTH = 50  # of lists and objects in each other

_QUOTES = "'\""
_AFTER_TEXT = (*",)]}:", "")  # what follows a text, perhaps after white space; "" is the end
_ESCAPES = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
_WORDS = {"True": True, "False": False, "None": None, "true": True, "false": False, "null": None}


def read_python(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """All calls of a list, and the mark at its end."""
    yield from source.skip_space()
    yield from source.take("[")
    while True:
        yield from source.skip_space()
        name = yield from source.word(is_name)
        yield from source.skip_space()
        if not is_name(name) or not (yield from source.take("(")):
            raise NotACallError
        parts.begin_call(name)
        yield from _arguments(source, parts)
        yield from source.skip_space()
        if not (yield from source.take(",")):
            break
    yield from skip_to(END, source)


def _arguments(source: AnswerSource, parts: Parts) -> Reading[None]:
    """The rest of a call, after its bracket."""
    before = "{"
    yield from source.skip_space()
    while not (yield from source.take(")")):
        key = yield from source.word(is_name)
        yield from source.skip_space()
        yield from source.expect("=")
        value = yield from _value(source, 0)
        parts.arguments(f"{before}{json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
        before = ", "
        yield from source.skip_space()
        if not (yield from source.take(",")) and (yield from source.peek()) != ")":
            raise NotACallError
        yield from source.skip_space()
    parts.arguments("{}" if before == "{" else "}")


def _value(source: AnswerSource, depth: int) -> Reading[Any]:
    if depth > MOST_DEPTH:
        raise NotACallError
    yield from source.skip_space()
    first = yield from source.peek()
    if first and first in _QUOTES:
        return (yield from _text(source, first))
    if (yield from source.take("[")):
        items: list[Any] = []
        while not (yield from _ends(source, "]", bool(items))):
            items.append((yield from _value(source, depth + 1)))
        return items
    if (yield from source.take("{")):
        found: dict[str, Any] = {}
        while not (yield from _ends(source, "}", bool(found))):
            key = yield from _value(source, depth + 1)
            yield from source.skip_space()
            yield from source.expect(":")
            if not isinstance(key, str):
                raise NotACallError
            found[key] = yield from _value(source, depth + 1)
        return found
    word = (yield from source.word(lambda char: char not in ",)]}:")).strip()
    return _scalar(word)


def _ends(source: AnswerSource, end: str, has_items: bool) -> Reading[bool]:
    """Whether a list or an object ends; otherwise the comma before the next item is read."""
    yield from source.skip_space()
    if (yield from source.take(end)):
        return True
    if has_items:
        yield from source.expect(",")
        yield from source.skip_space()
        return (yield from source.take(end))  # Python allows a comma behind the last
    return False


def _text(source: AnswerSource, quote: str) -> Reading[str]:
    yield from source.expect(quote)
    pieces: list[str] = []
    while True:
        piece, mark = yield from source.text_until(quote, "\\")
        pieces.append(piece)
        if mark == "\\":
            char = yield from source.peek()
            yield from source.take(char)
            pieces.append(_ESCAPES.get(char, f"\\{char}"))
            continue
        space = yield from source.word(str.isspace)
        if mark is None or (yield from source.peek()) in _AFTER_TEXT:
            return "".join(pieces)
        pieces += [quote, space]


def _scalar(word: str) -> Any:
    if not word:
        raise NotACallError
    if word in _WORDS:
        return _WORDS[word]
    try:
        value = json.loads(word)
    except ValueError:
        return word
    return value if isinstance(value, (int, float)) else word


def with_written_calls(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Messages whose calls are in their text, for templates that show none."""
    return [_written(message) if message.get("tool_calls") else message for message in messages]


def _written(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = ", ".join(_call(each["function"]) for each in message["tool_calls"])
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": f"{message.get('content') or ''}{BEGIN}[{calls}]{END}"}


def _call(function: Mapping[str, Any]) -> str:
    arguments = function["arguments"]
    if not isinstance(arguments, Mapping):
        return f"{function['name']}({arguments})"
    return f"{function['name']}({', '.join(f'{key}={arguments[key]!r}' for key in arguments)})"
