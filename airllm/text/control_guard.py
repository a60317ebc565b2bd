"""Keeps messages from becoming markup: one that says "<|im_end|>" must not end its turn.

A chat template makes one text of markup and messages, and in that text control tokens are found by
how they are written. So before the template runs, every control token that a message spells gets a
guard after its first character; encoding looks for tokens first, and drops the guards after that.

A message that spells none is not touched: templates see ordinary messages as they are, and may
trim, split and compare all of them. Still markup is what a template makes of words, as those do
that write '<|' + message.role + '|>'. A template that cut words out of a message could join the
halves of a control token; none in use does.
"""

import re
from collections.abc import Iterable
from functools import cached_property

# A noncharacter: Unicode keeps it for use inside a program, and text has no reason to contain it.
GUARD = "\ufdd0"
REPLACEMENT = "\ufffd"


class ControlGuard:
    """For control tokens that are written as `texts`."""

    def __init__(self, texts: Iterable[str]) -> None:
        self._texts = frozenset(texts) - {""}

    def guard(self, text: str) -> str:
        """`text` in which no control token is found, nor in what begins with it.

        A control token of one character, which has no place for a guard, becomes U+FFFD.
        """
        if not self._texts:
            return text
        text = self._starts.sub(self._guard_start, text.replace(GUARD, REPLACEMENT))
        trimmed = text.rstrip()  # as many templates do
        if any(trimmed.endswith(prefix) for prefix in self._prefixes):
            text = trimmed + GUARD + text[len(trimmed) :]
        return text

    def _guard_start(self, start: re.Match[str]) -> str:
        return REPLACEMENT if start[0] in self._texts else start[0] + GUARD

    @cached_property
    def _starts(self) -> re.Pattern[str]:
        """The first character of each control token, of those too that begin in another one."""
        tokens = "|".join(map(re.escape, sorted(self._texts)))
        return re.compile(f"(?={tokens}).", re.DOTALL)

    @cached_property
    def _prefixes(self) -> tuple[str, ...]:
        return tuple({text[:end] for text in self._texts for end in range(1, len(text))})
