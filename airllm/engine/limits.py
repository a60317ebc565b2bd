"""Where an answer ends, and what happens where the context does."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from airllm.state.kv_cache import KVCache
from airllm.util.arguments import check_choice, check_count
from airllm.util.shown import shown

__all__ = ["ContextFullError", "Limits", "OnFull", "shift"]

OnFull = Literal["stop", "shift", "error"]


class ContextFullError(ValueError):
    """The context has no room for a prompt, or for the next token of an answer."""


@dataclass(frozen=True)
class Limits:
    """ValueError or TypeError names an argument that makes no sense.

    max_new_tokens: of an answer, at most.
    stop: strings that end the answer and are not part of it.
    on_full: what happens where the context is full before the answer ends. "stop" ends it, with
        finish_reason "context". "error" raises ContextFullError. "shift" forgets the older half of
        prompt and answer, evaluates the rest again in its new place, which takes as long as a
        prompt of that length, and goes on; Generation.shifted_tokens counts what was forgotten.
    keep: tokens of the prompt's beginning that "shift" does not forget; -1: all of them. A BOS
        token always stays.
    """

    max_new_tokens: int
    stop: tuple[str, ...] = ()
    on_full: OnFull = "stop"
    keep: int = 0

    def __post_init__(self) -> None:
        most = check_count("max_new_tokens", self.max_new_tokens, least=0)
        object.__setattr__(self, "max_new_tokens", most)
        check_choice("on_full", self.on_full, get_args(OnFull))
        object.__setattr__(self, "keep", check_count("keep", self.keep, least=-1))
        for text in self.stop:
            if not isinstance(text, str):
                raise TypeError(f"stop has {shown(text)}; expected strings")
            if not text:
                raise ValueError("stop has an empty string, which would stop at once")

    def for_prompt(self, n_prompt: int, has_bos: bool, context: int) -> "Limits":
        """The same, with `keep` the number that it means for a prompt of so many tokens.
        ContextFullError where that leaves "shift" nothing to forget."""
        keep = max(n_prompt if self.keep == -1 else min(self.keep, n_prompt), int(has_bos))
        if self.on_full == "shift" and keep >= context:
            raise ContextFullError(
                f"on_full='shift' is to keep {keep} tokens of a context of {context}, and would "
                "have nothing to forget; lower keep= or raise context="
            )
        return replace(self, keep=keep)


def shift(cache: KVCache, pending: Sequence[int], keep: int) -> list[int]:
    """Forget the older half of what comes after the first `keep` tokens; returns the tokens that
    are then to be evaluated, `pending` last.

    What stays moves to earlier positions and is evaluated again there. To turn its keys by the
    difference of positions, as llama.cpp does, would be faster and another result: keys and values
    of all layers but the first have seen what is forgotten, and a cache of 16 or 8 bit would be
    rounded once more with each shift.
    """
    tokens = [*cache.tokens, *pending]
    forgotten = (len(tokens) - keep) // 2
    left = tokens[:keep] + tokens[keep + forgotten :]
    return left[cache.keep_shared(left) :]
