"""Gemma 4's tool calls, JSON but for quotes: call:f{city:<|"|>Paris<|"|>,days:[1,2]}<tool_call|>.

Keys have no quotes, and the quotes of a text are the token <|"|>.
"""

import json
from collections.abc import Mapping

from airllm.text.answer.json_calls import is_name, skip_to
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading

__all__ = ["QUOTE", "read_gemma"]

QUOTE = '<|"|>'
MOST_DEPTH = 50  # of lists and objects in each other


def read_gemma(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    yield from source.skip_space()
    yield from source.expect("call:")
    name, mark = yield from source.text_until("{", "<tool_call|>")
    name = name.strip()
    if mark != "{" or not is_name(name):
        raise NotACallError
    parts.begin_call(name)
    yield from _object(source, parts, 0)
    yield from skip_to("<tool_call|>", source)


def _object(source: AnswerSource, parts: Parts, depth: int) -> Reading[None]:
    """The rest of an object, after its bracket."""
    parts.arguments("{")
    first = True
    yield from source.skip_space()
    while not (yield from source.take("}")):
        if not first:
            yield from source.expect(",")
            yield from source.skip_space()
        if (yield from source.take(QUOTE)):
            key, _ = yield from source.text_until(QUOTE)
            yield from source.skip_space()
            yield from source.expect(":")
        else:
            key, mark = yield from source.text_until(":", "}")
            if mark != ":":
                raise NotACallError
        parts.arguments(
            ("" if first else ", ") + json.dumps(key.strip(), ensure_ascii=False) + ": "
        )
        first = False
        yield from _value(source, parts, depth + 1)
        yield from source.skip_space()
    parts.arguments("}")


def _list(source: AnswerSource, parts: Parts, depth: int) -> Reading[None]:
    parts.arguments("[")
    first = True
    yield from source.skip_space()
    while not (yield from source.take("]")):
        if not first:
            yield from source.expect(",")
            parts.arguments(", ")
        first = False
        yield from _value(source, parts, depth + 1)
        yield from source.skip_space()
    parts.arguments("]")


def _value(source: AnswerSource, parts: Parts, depth: int) -> Reading[None]:
    if depth > MOST_DEPTH:
        raise NotACallError
    yield from source.skip_space()
    if (yield from source.take(QUOTE)):
        parts.arguments('"')
        yield from source.until(
            (QUOTE,), lambda text: parts.arguments(json.dumps(text, ensure_ascii=False)[1:-1])
        )
        parts.arguments('"')
    elif (yield from source.take("{")):
        yield from _object(source, parts, depth)
    elif (yield from source.take("[")):
        yield from _list(source, parts, depth)
    else:
        word = (yield from source.word(lambda char: char not in ",}]")).strip()
        if not word:
            raise NotACallError
        parts.arguments(word if _is_scalar(word) else json.dumps(word, ensure_ascii=False))


def _is_scalar(word: str) -> bool:
    try:
        json.loads(word)
    except ValueError:
        return False
    return True
