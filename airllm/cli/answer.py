"""An answer as a person sees it: the text on stdout, what the model thought before it on stderr.

So a pipe or a file gets the answer alone. On a terminal, thoughts are dim; where it has no such
style, lines around them say what they are.
"""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

from airllm.cli import console
from airllm.text.answer import (
    AnswerParser,
    AnswerPart,
    AnswerText,
    AnswerThought,
    CallArguments,
    CallBegin,
    Tool,
    ToolCall,
)
from airllm.text.answer.told_thoughts import PROMPT_END
from airllm.util.progress import format_duration

if TYPE_CHECKING:
    from airllm.cli.engine import Engine

__all__ = ["Answer", "parser_for", "shows_thoughts"]

_REDRAW_SECONDS = 0.2


def shows_thoughts(choice: str | None) -> bool:
    """choice: of --think. Without one, thoughts are for somebody who watches."""
    if choice is None:
        return console.shows_progress() and sys.stdout.isatty() and sys.stderr.isatty()
    return choice == "show"


def parser_for(engine: "Engine", prompt: Sequence[int], tools: Sequence[Tool] = ()) -> AnswerParser:
    """Takes the answer to a chat apart. prompt: its tokens. tools: whose calls are told apart."""
    form = engine.answer_format
    end = engine.detokenize(prompt[-PROMPT_END:])
    return AnswerParser(form, tools, in_thought=form.begins_in_thought(end))


class Answer:
    """An answer that is shown as it comes. Its line ends also after an error or Ctrl-C.

    text, thought, calls: what came. parser: None for a text without markup. shown: whether the text
    is. tells_calls: whether calls that the parser finds are in `calls`, and not in the text.
    thoughts: whether thoughts are; if not, a line on a terminal says that the model thinks, unless
    `waits` says that the progress of each token is on the screen anyway.
    """

    def __init__(
        self,
        parser: AnswerParser | None,
        *,
        shown: bool = True,
        thoughts: bool = True,
        waits: bool = False,
        tells_calls: bool = False,
    ) -> None:
        self._parser, self._shown, self._thoughts = parser, shown, thoughts
        self._tells_calls = tells_calls
        self.text = self.thought = ""
        self.calls: list[ToolCall] = []
        self._line = _ThinkingLine(shown=not waits and console.shows_progress())
        self._in_thought = False  # on the screen

    def show(self, piece: str) -> None:
        """More of the answer, as the model writes it."""
        if self._parser is None:
            self._add_text(piece)
        else:
            self._take(self._parser.push(piece))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # If the answer has failed, that counts; for instance, the terminal may have gone.
        with contextlib.suppress(*(() if kind is None else (OSError,))):
            if self._parser is not None:
                self._take(self._parser.finish())
            self._line.hide()
            self._end_thought()
            if self.text and self._shown:
                console.write("\n")

    def _take(self, parts: list[AnswerPart]) -> None:
        for part in parts:
            match part:
                case AnswerThought(text):
                    self._add_thought(text)
                case AnswerText(text):
                    self._add_text(text)
                case CallBegin(_, name, id) if self._tells_calls:
                    self.calls.append(ToolCall(name, id or ""))
                case CallArguments(index, text) if self._tells_calls:
                    self.calls[index].arguments += text
                case CallBegin(_, name):  # of gpt-oss; other calls stay in the text as they are
                    self._add_text(f"{'' if not self.text else chr(10)}to=functions.{name} ")
                case CallArguments(_, text):
                    self._add_text(text)

    def _add_text(self, text: str) -> None:
        self._line.hide()
        self._end_thought()
        self.text += text
        if self._shown:
            console.write(text)

    def _add_thought(self, text: str) -> None:
        self.thought += text
        if not self._thoughts:
            self._line.update()
            return
        if not self._in_thought:
            self._in_thought = True
            console.show("" if console.has_styles() else "[thinking]\n")
        console.show(text, dim=True)

    def _end_thought(self) -> None:
        if self._in_thought:
            self._in_thought = False
            console.show("\n\n" if console.has_styles() else "\n[answer]\n")


class _ThinkingLine:
    """ "thinking, 12 s" on a terminal; a log says nothing."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown and sys.stderr.isatty()
        self._start: float | None = None
        self._drawn = 0.0

    def update(self) -> None:
        now = time.monotonic()
        if self._start is None:
            self._start = now
        if self._shown and now - self._drawn >= _REDRAW_SECONDS:
            self._drawn = now
            self._write(f"thinking, {format_duration(now - self._start)}")

    def hide(self) -> None:
        if self._drawn:
            self._drawn = 0.0
            self._write("")

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(f"\r{text}\x1b[K")
            sys.stderr.flush()
