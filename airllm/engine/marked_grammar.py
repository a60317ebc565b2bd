"""Grammars that hold from a mark on: tool calls, wherever the model begins one.

An answer is free until a mark in it is complete: no token is ruled out, and nothing is computed but
a search in its last few bytes. From there the mark's grammar holds until it ends. Then the answer
is free again.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.engine.grammar import Grammar, GrammarMatcher, Matcher

__all__ = ["Marked", "MarkedGrammars"]


@dataclass(frozen=True)
class Marked:
    """grammar: of what follows the mark. at_start: whether the mark counts only where the answer
    begins, after white space, or after a thought that the prompt has begun. ends: whether the
    answer ends with what the grammar matches."""

    mark: bytes
    grammar: Grammar
    at_start: bool = False
    ends: bool = False


@dataclass(frozen=True)
class MarkedGrammars:
    """An AnswerForm. spell: the bytes of a token; those of a control token are its name. thought:
    the marks around a thought, within which no other mark counts. in_thought: whether the answer
    begins within one."""

    marked: Sequence[Marked]
    spell: Callable[[int], bytes]
    thought: tuple[bytes, bytes] | None = None
    in_thought: bool = False

    def matcher(self) -> Matcher:
        return _Matcher(self)


@dataclass(frozen=True)
class _Free:
    """A place in free text. tail: its end, in which a mark may have begun."""

    tail: bytes = b""
    in_thought: bool = False
    at_start: bool = True


@dataclass(frozen=True)
class _Inner:
    """A grammar that holds, and whether the answer ends with it."""

    state: GrammarMatcher
    ends: bool


class _Matcher:
    def __init__(self, form: MarkedGrammars) -> None:
        self._form = form
        self._marked = [one for one in form.marked if not one.at_start]
        self._starts = [one for one in form.marked if one.at_start]
        marks = [one.mark for one in self._marked]
        self._longest = max(map(len, (*marks, *(form.thought or ()))), default=1)
        self._free = _Free(in_thought=form.in_thought)
        self._inner: _Inner | None = None  # the grammar that holds
        self._next: tuple[int, _Free, _Inner | None] | None = None  # after this token
        self._over = False

    def mask(self) -> NDArray[np.uint32] | None:
        """A grammar that has become too complex holds no longer."""
        if self._inner is not None:
            try:
                return self._inner.state.mask()
            except ValueError:
                self._inner = None
        return None

    def allows(self, token: int) -> bool:
        """In free text: whether what a token brings beyond a mark is allowed after it."""
        if self._inner is not None:
            return True
        try:
            self._next = (token, *self._after(self._form.spell(token)))
        except ValueError:
            return False
        return True

    def accept(self, token: int) -> None:
        if self._inner is not None:
            self._inner.state.accept(token)
        else:
            if self._next is None or self._next[0] != token:
                self._next = (token, *self._after(self._form.spell(token)))
            _, self._free, self._inner = self._next
        self._next = None
        inner = self._inner
        if inner is not None and inner.state.ended:
            self._inner, self._over = None, inner.ends

    def forced(self) -> Sequence[int]:
        return () if self._inner is None else self._inner.state.forced()

    @property
    def ended(self) -> bool:
        return self._over

    def _after(self, more: bytes) -> tuple[_Free, _Inner | None]:
        """The place after more text, and the state of the grammar if a mark is complete. ValueError
        if the grammar does not allow what follows the mark."""
        free, thought = self._free, self._form.thought
        text, in_thought, at_start = free.tail + more, free.in_thought, free.at_start
        while True:
            if in_thought and thought is not None:
                at = text.find(thought[1])
                if at < 0:
                    return _Free(self._end(text), True, at_start), None
                text, in_thought = text[at + len(thought[1]) :], False
            if at_start:
                begun = text.lstrip()
                for one in self._starts:
                    if begun.startswith(one.mark):
                        return self._begun(one, begun[len(one.mark) :])
                if any(one.mark.startswith(begun) for one in self._starts):
                    return _Free(begun), None
                at_start = False
            found = [(at, one) for one in self._marked if (at := text.find(one.mark)) >= 0]
            place, first = min(found, key=lambda pair: pair[0], default=(len(text), None))
            begin = text.find(thought[0]) if thought is not None else -1
            if thought is not None and 0 <= begin < place:
                text, in_thought = text[begin + len(thought[0]) :], True
            elif first is not None:
                return self._begun(first, text[place + len(first.mark) :])
            else:
                return _Free(self._end(text), False, False), None

    def _begun(self, one: Marked, rest: bytes) -> tuple[_Free, _Inner]:
        inner = one.grammar.matcher()
        if rest:
            inner.accept_text(rest)
        return _Free(at_start=False), _Inner(inner, one.ends)

    def _end(self, text: bytes) -> bytes:
        return text[len(text) - min(self._longest - 1, len(text)) :]
