"""The rules of a grammar in Lark, as llguidance reads it, and how texts with marks are written."""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from airllm.util.errors import AirllmError

__all__ = ["Mark", "NoGrammarError", "Rules", "quoted"]

# Of JSON: nothing of a schema may be ignored, and white space is bounded, so that a model that has
# lost its way does not write spaces to the end.
_JSON_OPTIONS = {"lenient": False, "whitespace_pattern": r"[ \t\n\r]{1,40}"}
_ANYTHING = "/(?s:.*)/"

# Characters that no name of a tool has, and what they stand for: white space or a line's end that
# may be there or not, as models of one family differ in it; a number; ids of 9 and of 10
# characters; a type of JSON that is no text.
_SYMBOLS = {
    "␣": r"/[ \n]{0,10}/",  # a line's end, and the indentation that Command R writes
    "⏎": r"/\n?/",
    "№": "/[0-9]{1,3}/",
    "§": "/[a-zA-Z0-9]{9}/",
    "¶": "/[a-z0-9]{10}/",
    "†": "/number|boolean|null|object|array/",
}

# Makes the Lark of a mark: a control token, or the text of one that is none.
Mark = Callable[[str], str]


class NoGrammarError(AirllmError, ValueError):
    """What a request wants cannot be written as a grammar."""


class Rules:
    """The rules of a grammar."""

    def __init__(self, mark: Mark, marks: Iterable[str]) -> None:
        """marks: of the format, which may be control tokens."""
        self.mark = mark
        controls = [one for one in marks if mark(one).startswith("<")]
        parts = sorted((*controls, *_SYMBOLS), key=len, reverse=True)
        self._parts = re.compile("(" + "|".join(map(re.escape, parts)) + ")")
        self._rules: dict[str, str] = {}

    def add(self, name: str, body: str) -> str:
        self._rules[name] = body
        return name

    def new(self, body: str, attribute: str = "") -> str:
        """A rule with a name of its own."""
        name = f"r{len(self._rules)}"
        self._rules[name + attribute] = body
        return name

    def once(self, name: str, body: Callable[[], str]) -> str:
        """A rule that may refer to itself, made when it is first needed."""
        if name not in self._rules:
            self._rules[name] = ""
            self._rules[name] = body()
        return name

    def json(self, schema: Mapping[str, Any]) -> str:
        return self.new(f"%json {json.dumps({**schema, 'x-guidance': _JSON_OPTIONS})}")

    def written(self, text: str) -> str:
        """A text as a format has it: marks may be control tokens, and ␣ ⏎ № § ¶ † are patterns."""
        return " ".join(self._pieces(text))

    def one_of(self, texts: Sequence[str]) -> str:
        """One of the texts, each as in `written`; "" for none of them."""
        choices = " | ".join(self.written(text) for text in texts if text)
        return f"({choices}){'?' * ('' in texts)}" if choices else ""

    def text_until(self, end: str) -> str:
        """Any text, and `end` after it, in which the first piece is the first that comes."""
        first, *rest = self._pieces(end)
        if first.startswith("<"):  # a control token, which no text contains
            return " ".join([self.new(_ANYTHING), first, *rest])
        if not (rest and rest[0].startswith("<")):
            return " ".join([self.new(_ANYTHING, f"[suffix={first}]"), *rest])
        pattern = re.escape(json.loads(first)).replace("/", r"\/")
        return " ".join([self.new(f"/(?s:.*){pattern}/"), *rest])

    def _pieces(self, text: str) -> list[str]:
        """Control tokens, symbols and plain text."""
        return [
            _SYMBOLS.get(part) or (self.mark(part) if at % 2 else quoted(part))
            for at, part in enumerate(self._parts.split(text))
            if part
        ]

    def lark(self, start: str) -> str:
        """The grammar. start: its root."""
        lines = [f"{name}: {body}" for name, body in self._rules.items()]
        return "\n".join([f"start: {start}", *lines, ""])


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
