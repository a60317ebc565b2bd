"""gpt-oss's answers: messages to channels, each with a header.

    <|channel|>analysis<|message|>thinking<|end|><|start|>assistant<|channel|>commentary
    to=functions.f <|constrain|>json<|message|>{"x": 1}<|call|>

What goes to `analysis` is thinking, what goes to a function is a call, and the rest is text.
"""

import re
from collections.abc import Mapping

from airllm.text.answer.json_calls import is_name
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, Reading

__all__ = ["MARKS", "read_harmony"]

_MESSAGE, _CHANNEL, _START = "<|message|>", "<|channel|>", "<|start|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>")
MARKS = (_MESSAGE, _CHANNEL, _START, "<|constrain|>", *_ENDS)

_RECIPIENT = re.compile(r"to=functions\.([^\s<]+)")


def read_harmony(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """All messages of an answer, the first of which may lack its <|start|>assistant: the prompt
    ends with that, and what follows may be its recipient."""
    yield from source.skip_space()
    mark: str | None
    if (yield from source.take("to=")):
        header, mark = yield from source.text_until(_MESSAGE, *_ENDS)
        if mark == _MESSAGE:
            header = f"to={header}".replace(_CHANNEL, " ")
            mark = yield from _message(header, source, parts)
            if mark is not None:
                mark = yield from source.until((_CHANNEL, _START, _MESSAGE), _drop)
    else:
        mark = yield from source.until((_CHANNEL, _START, _MESSAGE, *_ENDS), parts.text)
    while mark is not None:
        header = ""
        if mark in (_CHANNEL, _START):
            header, mark = yield from source.text_until(_MESSAGE, *_ENDS)
        if mark == _MESSAGE:
            mark = yield from _message(header.replace(_CHANNEL, " "), source, parts)
        if mark is not None:
            mark = yield from source.until((_CHANNEL, _START, _MESSAGE), _drop)


def _message(header: str, source: AnswerSource, parts: Parts) -> Reading[str | None]:
    recipient = _RECIPIENT.search(header)
    if recipient is not None and is_name(recipient[1]):
        parts.begin_call(recipient[1])
        return (yield from source.until(_ENDS, parts.arguments))
    if "analysis" in header.split():
        mark = yield from source.until(_ENDS, parts.thought)
        parts.end_thought()
        return mark
    return (yield from source.until(_ENDS, parts.text))


def _drop(text: str) -> None:
    pass
