"""Functionary v3.2's answers: messages, each of which begins with the name of its recipient.

    all
    Let me look.>>>weather
    {"city": "Paris"}

The prompt ends with the first `>>>`. What goes to `all` is text; what goes to a function is a call.
"""

from collections.abc import Mapping

from airllm.text.answer.json_calls import is_name, read_arguments
from airllm.text.answer.parts import Parts, Tool
from airllm.text.answer.source import AnswerSource, Reading

__all__ = ["NEXT", "TO_ALL", "read_recipients"]

NEXT, TO_ALL = ">>>", "all"


def read_recipients(source: AnswerSource, parts: Parts, tools: Mapping[str, Tool]) -> Reading[None]:
    """All messages of an answer. `>>>` in a text, of Python say, is text unless a recipient's line
    follows."""
    mark = NEXT if (yield from source.take(NEXT)) else ""
    while True:
        source.hold()
        name = yield from source.word(is_name)
        is_line = (name == TO_ALL or name in tools) and (yield from source.take("\n"))
        line = source.release()
        if is_line and name in tools:
            parts.begin_call(name)
            yield from source.skip_space()
            yield from read_arguments(source, parts.arguments)
            found = yield from source.until((NEXT,), _drop)
        else:
            if not is_line:
                parts.text(mark + line)
            found = yield from source.until((NEXT,), parts.text)
        if found is None:
            return
        mark = found


def _drop(text: str) -> None:
    pass
