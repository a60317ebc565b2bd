"""Kimi K3's tool calls: elements with attributes, whose brackets are control tokens.

    <|open|>tools<|sep|>
    <|open|>call tool="f" index="1"<|sep|>
    <|open|>argument key="city" type="string"<|sep|>Paris<|close|>argument<|sep|>
    <|close|>call<|sep|>
    <|close|>tools<|sep|>

without the white space between them. A value is exactly what stands between its tags.
"""

from collections.abc import Mapping

from airllm.text.answer.json_calls import is_name, read_arguments
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading
from airllm.text.answer.tagged_calls import TaggedArguments, attribute

__all__ = ["closing", "opening", "read_kimi3"]

_CALL, _ARGUMENT, _JSON = "<|open|>call", "<|open|>argument", "<|open|>json"


def opening(tag: str) -> str:
    return f"<|open|>{tag}<|sep|>"


def closing(tag: str) -> str:
    return f"<|close|>{tag}<|sep|>"


def read_kimi3(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """All calls of a section, and its end."""
    mark = yield from source.until((_CALL, closing("tools")), _drop)
    while mark == _CALL:
        yield from _call(source, parts, tools)
        mark = yield from source.until((_CALL, closing("tools")), _drop)


def _call(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    attributes, mark = yield from source.text_until("<|sep|>")
    name = _unescaped(attribute("tool", attributes))
    if mark is None or not is_name(name):
        raise NotACallError
    parts.begin_call(name)
    marks = (_ARGUMENT, _JSON, closing("call"))
    mark = yield from source.until(marks, _drop)
    if mark == _JSON:  # all arguments as an object
        yield from source.until(("<|sep|>",), _drop)
        yield from read_arguments(source, parts.arguments)
        yield from source.until((closing("call"),), _drop)
        return
    arguments = TaggedArguments(parts, tools.get(name))
    while mark == _ARGUMENT:
        attributes, mark = yield from source.text_until("<|sep|>")
        if mark is None:
            break
        key = _unescaped(attribute("key", attributes))
        kind = attribute("type", attributes)
        is_text = kind == "string" if kind else None
        ends = (closing("argument"), closing("call"))
        mark = yield from arguments.read(key, source, ends, text=is_text, exact=True)
        if mark == closing("argument"):
            mark = yield from source.until(marks, _drop)
    arguments.end()


def _unescaped(text: str) -> str:
    return text.replace("&quot;", '"').replace("&amp;", "&")


def _drop(text: str) -> None:
    pass
