"""Text that comes in pieces, for readers that are written as if it were there as a whole.

A reader is a generator that yields whenever it needs more text, and returns what it has read:

    mark = yield from source.until(("<tool_call>",), parts.text)

What it reads does not depend on where the text is cut: every method decides only on text that the
next piece cannot change.
"""

import json
from collections.abc import Callable, Generator, Sequence
from typing import TypeAlias, TypeVar

from airllm.util.errors import AirllmError

__all__ = ["AnswerSource", "NotACallError", "Reading", "Say"]

_Result = TypeVar("_Result")
Reading: TypeAlias = Generator[None, None, _Result]
Say: TypeAlias = Callable[[str], None]

_SPACE = " \t\r\n"


class NotACallError(AirllmError):
    """The text is not the tool call that its beginning promised."""


class AnswerSource:
    """The text, of which the part that was read is forgotten."""

    def __init__(self) -> None:
        self._text, self._at, self._held = "", 0, -1
        self.ended = False

    def feed(self, text: str) -> None:
        first = self._at if self._held < 0 else self._held
        self._text = self._text[first:] + text
        self._at -= first
        self._held = min(self._held, 0)

    def end(self) -> None:
        self.ended = True

    def hold(self) -> None:
        """Remember what is read from here on."""
        self._held = self._at

    def release(self) -> str:
        """What was read since `hold`."""
        text, self._held = self._text[self._held : self._at], -1
        return text

    def more(self) -> Reading[bool]:
        """Wait until there is something to read. False at the end."""
        while self._at == len(self._text):
            if self.ended:
                return False
            yield
        return True

    def peek(self) -> Reading[str]:
        """The next character, which stays; "" at the end."""
        return self._text[self._at] if (yield from self.more()) else ""

    def skip_space(self) -> Reading[None]:
        while (yield from self.more()) and self._text[self._at] in _SPACE:
            self._at += 1

    def take(self, *marks: str) -> Reading[bool]:
        """Whether one of the marks comes next; if so, it is read, the longest that fits."""
        while True:
            rest = len(self._text) - self._at
            open_marks = [
                mark
                for mark in marks
                if rest < len(mark) and mark.startswith(self._text[self._at :])
            ]
            if open_marks and not self.ended:
                yield
                continue
            found = [mark for mark in marks if self._text.startswith(mark, self._at)]
            self._at += len(max(found, key=len, default=""))
            return bool(found)

    def expect(self, mark: str) -> Reading[None]:
        """Read a mark. NotACallError if anything else comes."""
        if not (yield from self.take(mark)):
            raise NotACallError

    def until(self, marks: Sequence[str], say: Say) -> Reading[str | None]:
        """Say the text before the first mark. Returns that mark, which is read too; None at the
        end. No mark may be the beginning of another."""
        while True:
            found = [(at, mark) for mark in marks if (at := self._text.find(mark, self._at)) >= 0]
            if found:
                at, mark = min(found)
                self._say(at, say)
                self._at += len(mark)
                return mark
            if self.ended:
                self._say(len(self._text), say)
                return None
            self._say(len(self._text) - self._open_length(marks), say)
            yield

    def text_until(self, *marks: str) -> Reading[tuple[str, str | None]]:
        """The text before the first mark, and the mark."""
        pieces: list[str] = []
        mark = yield from self.until(marks, pieces.append)
        return "".join(pieces), mark

    def word(self, is_part: Callable[[str], bool]) -> Reading[str]:
        """The longest run of characters that belong to a word."""
        chars: list[str] = []
        while (yield from self.more()) and is_part(self._text[self._at]):
            chars.append(self._text[self._at])
            self._at += 1
        return "".join(chars)

    def unread(self, mark: str) -> None:
        """The mark that was read last comes again."""
        self._at -= len(mark)

    def json_string(self) -> Reading[str]:
        """A JSON string, decoded. NotACallError if it is none."""
        pieces: list[str] = []
        if (yield from self.peek()) != '"':
            raise NotACallError
        yield from self.json_value(pieces.append)
        try:
            value: str = json.loads("".join(pieces), strict=False)
        except ValueError:
            raise NotACallError from None
        return value

    def json_value(self, say: Say) -> Reading[None]:
        """Say a JSON value as it is written. It ends where its brackets and quotes close, or where
        a number or a word ends; the rest of its grammar is not checked."""
        depth, in_string, escaped, began = 0, False, False, False
        while (yield from self.more()):
            start = self._at
            for at in range(start, len(self._text)):
                char = self._text[at]
                if in_string:
                    if escaped:
                        escaped = False
                    elif char == "\\":
                        escaped = True
                    elif char == '"':
                        in_string = False
                elif char == '"':
                    in_string = began = True
                elif char in "{[":
                    depth, began = depth + 1, True
                elif char in "}]" and depth:
                    depth -= 1
                elif not depth and (char in ",:}]" or char in _SPACE):
                    self._say(at, say)
                    return
                else:  # a character of a number or a word
                    continue
                if began and not depth and not in_string:
                    self._say(at + 1, say)
                    return
            self._say(len(self._text), say)

    def _say(self, end: int, say: Say) -> None:
        if end > self._at:
            say(self._text[self._at : end])
            self._at = end

    def _open_length(self, marks: Sequence[str]) -> int:
        """The length of the end of the text that may be the beginning of a mark."""
        longest = min(max(map(len, marks), default=1) - 1, len(self._text) - self._at)
        for length in range(longest, 0, -1):
            end = self._text[-length:]
            if any(len(mark) > length and mark.startswith(end) for mark in marks):
                return length
        return 0
