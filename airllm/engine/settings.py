"""The options of an answer: how its tokens are chosen, and where it ends.

Each option is defined only here; the command line and files of prompts take its name, type and
default from here. This module does not import NumPy, so that `airllm --help` is quick.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args

from airllm.util.arguments import check_choice, check_count, check_number
from airllm.util.shown import shown

__all__ = ["AnswerOptions", "ContextFullError", "Limits", "OnFull", "Sampling", "settings_of"]

OnFull = Literal["stop", "shift", "error"]

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ContextFullError(ValueError):
    """The context has no room for a prompt, or for the next token of an answer."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ValueError or TypeError names an argument that makes no sense.

    temperature: 0 takes the likeliest token, the lowest id if several are equally likely. 1 keeps
        the model's distribution; below 1 it is sharper, above 1 flatter.
    top_k: only the k likeliest tokens; 0 for all.
    top_p: only the likeliest tokens that together reach this probability (arXiv:1904.09751).
    min_p: only tokens at least this fraction as likely as the likeliest (arXiv:2407.01082).
    repeat_penalty: divides the positive and multiplies the negative logits of the last 64 tokens
        (arXiv:1909.05858); 1 changes nothing.
    seed: the same seed draws the same tokens from the same logits; None draws anew each time.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None

    def __post_init__(self) -> None:
        def number(name: str, high: float, expected: str, *, above: bool = False) -> None:
            value = check_number(name, getattr(self, name), 0.0, high, expected, above=above)
            object.__setattr__(self, name, value)

        number("temperature", math.inf, "a finite one of 0 (greedy) or more")
        number("top_p", 1.0, "above 0, up to 1", above=True)
        number("min_p", 1.0, "0 to 1")
        number("repeat_penalty", math.inf, "a finite one above 0", above=True)
        object.__setattr__(self, "top_k", check_count("top_k", self.top_k, least=0))
        if self.seed is not None:
            object.__setattr__(self, "seed", check_count("seed", self.seed, least=0))


@dataclass(frozen=True)
class Limits:
    """Where an answer ends. ValueError or TypeError names an argument that makes no sense.

    max_new_tokens: the most tokens of the answer.
    stop: a string, or several, that end the answer and are not part of it.
    on_full: what to do if the context is full before the answer ends. "stop" ends the answer, with
        finish_reason "context". "error" raises ContextFullError. "shift" forgets the older half of
        prompt and answer and goes on; it evaluates the rest again at its new positions, which takes
        as long as a prompt of that length. Generation.shifted_tokens counts the forgotten tokens.
    keep: how many tokens of the prompt's beginning "shift" never forgets; -1 for the whole prompt.
        A BOS token always stays.
    """

    max_new_tokens: int = 256
    stop: str | Sequence[str] = ()
    on_full: OnFull = "stop"
    keep: int = 0

    def __post_init__(self) -> None:
        most = check_count("max_new_tokens", self.max_new_tokens, least=0)
        object.__setattr__(self, "max_new_tokens", most)
        check_choice("on_full", self.on_full, get_args(OnFull))
        object.__setattr__(self, "keep", check_count("keep", self.keep, least=-1))
        try:
            object.__setattr__(self, "stop", self.stop_strings)
        except TypeError:
            raise TypeError(f"stop is {shown(self.stop)}; expected a string, or several") from None
        for text in self.stop_strings:
            if not isinstance(text, str):
                raise TypeError(f"stop has {shown(text)}; expected strings")
            if not text:
                raise ValueError("stop has an empty string, which would stop at once")

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def for_prompt(self, n_prompt: int, has_bos: bool, context: int) -> "Limits":
        """The same limits, with `keep` as a number of tokens for a prompt of n_prompt tokens.
        ContextFullError if that leaves "shift" nothing to forget."""
        keep = max(n_prompt if self.keep == -1 else min(self.keep, n_prompt), int(has_bos))
        if self.on_full == "shift" and keep >= context:
            raise ContextFullError(
                f"on_full='shift' must keep {keep} tokens, and the context has {context}: there is "
                "nothing to forget; lower keep= or raise context="
            )
        return replace(self, keep=keep)


class AnswerOptions(TypedDict, total=False):
    """The fields of Sampling and of Limits as keyword arguments."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repeat_penalty: float
    seed: int | None
    max_new_tokens: int
    stop: str | Sequence[str]
    on_full: OnFull
    keep: int


def settings_of(**options: Unpack[AnswerOptions]) -> tuple[Sampling, Limits]:
    """Sampling and Limits with these options and the defaults of the others. TypeError for an
    unknown option."""
    unknown = options.keys() - AnswerOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(AnswerOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}; expected some of {known}")
    given: dict[str, Any] = dict(options)
    sampling, limits = (
        {field.name: given[field.name] for field in fields(kind) if field.name in given}
        for kind in (Sampling, Limits)
    )
    return Sampling(**sampling), Limits(**limits)


def takes_answer_options(function: _Function) -> _Function:
    """List the answer options by name in a function's signature, in place of its **options, for
    help() and editors."""
    signature = inspect.signature(function)
    own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
    options = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=AnswerOptions.__annotations__[field.name],
        )
        for kind in (Limits, Sampling)
        for field in fields(kind)
    ]
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function
