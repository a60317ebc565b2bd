"""DRY ("don't repeat yourself"): penalties for tokens that would continue a repetition.

If the last n tokens stand in the text before, the token that followed them there is penalised, more
with each token of n. Text over a breaker, such as a line's end, counts as no repetition. The idea
and its parameters are those of text-generation-webui and llama.cpp.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate

import numpy as np

from airllm.engine.settings import Sampling

__all__ = ["Repetition"]

# Above this exponent of e a penalty is larger than any logit.
_LARGEST_EXPONENT = 80.0


class Repetition:
    def __init__(self, sampling: Sampling, token_bytes: Callable[[int], bytes] | None) -> None:
        self._multiplier, self._base = sampling.dry_multiplier, sampling.dry_base
        self._allowed = sampling.dry_allowed_length
        self._breakers = [text.encode() for text in sampling.dry_breakers if text]
        self._token_bytes = token_bytes
        growth = math.log(self._base)
        self._most = self._allowed + (int(_LARGEST_EXPONENT / growth) if growth > 0 else 0)

    def penalties(self, recent: Sequence[int]) -> dict[int, float]:
        """What is taken off the logits of tokens, by token. recent: the tokens to look at, the last
        of which is the text's last."""
        return {
            token: self._multiplier * self._base ** (length - self._allowed)
            for token, length in self._repeated(recent).items()
        }

    def _repeated(self, recent: Sequence[int]) -> dict[int, int]:
        """The tokens that would continue a repetition, and the longest that each continues."""
        longest = min(len(recent), self._since_breaker(recent))
        if longest < self._allowed:
            return {}
        tokens = np.asarray(recent, np.int64)
        last = len(tokens) - 1
        ends = np.flatnonzero(tokens[:last] == tokens[last])  # where the text's end was before
        found: dict[int, int] = {}
        length = 1
        while len(ends):
            if length >= self._allowed:
                capped = max(self._most, self._allowed)
                found.update(dict.fromkeys(tokens[ends + 1].tolist(), min(length, capped)))
            if length == longest:
                break
            ends = ends[ends >= length]
            ends = ends[tokens[ends - length] == tokens[last - length]]
            length += 1
        return found

    def _since_breaker(self, recent: Sequence[int]) -> int:
        """The number of tokens after the last one that has a part of a breaker."""
        if self._token_bytes is None or not self._breakers:
            return len(recent)
        parts = [self._token_bytes(token) for token in recent]
        ends, text = list(accumulate(map(len, parts))), b"".join(parts)
        last = max(
            (at + len(each) for each in self._breakers if (at := text.rfind(each)) >= 0), default=0
        )
        # The token in which the breaker's last byte lies, and those before it.
        return len(parts) - (bisect_right(ends, last - 1) + 1 if last else 0)
