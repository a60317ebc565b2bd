"""Keeps messages from becoming markup: a message that says "<|im_end|>" must not end its turn.

A chat template joins markup and messages to one text, in which the tokeniser finds control tokens
by their spelling. So before the template runs, every control token that a message spells gets a
guard after its first character. Encoding looks for control tokens first and then drops the guards.

A message that spells no control token stays unchanged, so that templates can trim, split and
compare ordinary messages. A template can still build markup from words: some templates write
'<|' + message.role + '|>'. A template that cut words out of a message could join the two halves of
a control token; no template in use does that.
"""

import re
from collections.abc import Iterable
from functools import cached_property

# A noncharacter: Unicode keeps it for use inside a program, and text has no reason to contain it.
GUARD = "\ufdd0"
REPLACEMENT = "\ufffd"


class Guarded(str):
    """A text whose control tokens are meant: all that others wrote of it has been guarded."""

    __slots__ = ()


class ControlGuard:
    """Guards messages against the control tokens whose spellings are `texts`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts) - {""}

    def guard(self, text: str) -> str:
        """`text` with guards, so that neither it nor a longer text that begins with it spells a
        control token.

        A control token of one character has no place for a guard and becomes U+FFFD.
        """
        if not self._texts or isinstance(text, Guarded):
            return text
        text = self._starts.sub(self._guard_start, text.replace(GUARD, REPLACEMENT))
        trimmed = text.rstrip()  # many templates strip messages
        if any(trimmed.endswith(prefix) for prefix in self._prefixes):
            text = trimmed + GUARD + text[len(trimmed) :]
        return text

    def _guard_start(self, start: re.Match[str]) -> str:
        return REPLACEMENT if start[0] in self._texts else start[0] + GUARD

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """Matches the first character of each control token, also of a token that begins inside
        another one."""
        tokens = "|".join(map(re.escape, sorted(self._texts)))
        return re.compile(f"(?={tokens}).", re.DOTALL)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple({text[:end] for text in self._texts for end in range(1, len(text))})
