"""Takes an answer apart while it comes."""

from collections.abc import Sequence

from airllm.text.answer.formats import AnswerFormat, ReadCalls
from airllm.text.answer.parts import AnswerPart, Parts, Tool
from airllm.text.answer.source import AnswerSource, NotACallError, Reading

__all__ = ["AnswerParser"]


class AnswerParser:
    """Turns the pieces of an answer into its parts. The parts, joined, do not depend on where the
    answer is cut into pieces.

    A call that is not written as its format wants stays in the text, as the model wrote it, if that
    shows before its name is known. What is wrong later stays in its arguments.
    """

    def __init__(
        self, form: AnswerFormat, tools: Sequence[Tool] = (), *, in_thought: bool = False
    ) -> None:
        """tools: without any, what looks like a call is text. in_thought: whether the answer begins
        inside a thought, see AnswerFormat.begins_in_thought."""
        self._format, self._tools = form, {tool.name: tool for tool in tools}
        self._source, self._parts = AnswerSource(), Parts()
        self._reader: Reading[None] | None = self._read(in_thought)

    def push(self, text: str) -> list[AnswerPart]:
        """The parts that a piece of text makes certain."""
        self._source.feed(text)
        return self._go_on()

    def finish(self) -> list[AnswerPart]:
        """The parts that were held back; no more text comes."""
        self._source.end()
        parts = self._go_on()
        self._parts.finish()
        return [*parts, *self._parts.take()]

    @property
    def n_calls(self) -> int:
        return self._parts.n_calls

    def _go_on(self) -> list[AnswerPart]:
        if self._reader is not None:
            try:
                next(self._reader)
            except StopIteration:
                self._reader = None
        return self._parts.take()

    def _read(self, in_thought: bool) -> Reading[None]:
        source, parts, form = self._source, self._parts, self._format
        if form.whole is not None:
            yield from form.whole(source, parts, self._tools)
            return
        calls = form.calls if self._tools else {}
        thought = form.thought
        dropped = (*form.layout, *(form.drops if calls else ()))
        marks = (*calls, *(thought[:1] if thought else ()), *dropped)
        if in_thought:
            yield from self._thought()
        if form.bare and calls:
            yield from self._bare_call()
        while (mark := (yield from source.until(marks, parts.text))) is not None:
            if mark in calls:
                yield from self._call(mark, calls[mark])
            elif thought and mark == thought[0]:
                yield from self._thought()

    def _thought(self) -> Reading[None]:
        assert self._format.thought is not None
        yield from self._source.until(self._format.thought[1:], self._parts.thought)
        self._parts.end_thought()

    def _bare_call(self) -> Reading[None]:
        """A call at the beginning of the answer."""
        self._source.hold()
        yield from self._source.skip_space()
        begins = (yield from self._source.peek()) == "{"
        space = self._source.release()
        if begins:
            yield from self._call(space, self._format.calls["<|python_tag|>"])
        else:
            self._parts.text(space)

    def _call(self, mark: str, read: ReadCalls) -> Reading[None]:
        """What follows a mark, which becomes text with the mark if it is not a call."""
        before = self._parts.n_calls
        self._source.hold()
        try:
            yield from read(self._source, self._parts, self._tools)
        except NotACallError:
            text = self._source.release()
            if self._parts.n_calls == before:
                self._parts.text(mark + text)
        else:
            self._source.release()
