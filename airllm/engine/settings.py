"""The options of an answer: how its tokens are chosen, and where it ends; a scheduler's defaults.

Each option is defined only here; the command line and files of prompts take its name, type and
default from here. This module does not import NumPy, so that `airllm --help` is quick.
"""

import inspect
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, TypedDict, TypeVar, Unpack, get_args

from airllm.util.arguments import check_choice, check_count, check_number
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

__all__ = [
    "CACHE_SAVE_SECONDS",
    "LANES",
    "PIECE_TOKENS",
    "QUEUE_LENGTH",
    "AnswerOptions",
    "ContextFullError",
    "Limits",
    "OnFull",
    "PromptTooLongError",
    "Sampling",
    "model_sampling",
    "settings_of",
]

_log = logging.getLogger("airllm")

OnFull = Literal["stop", "shift", "error"]

# Of a scheduler: the most answers that run at once, and the most requests that wait.
LANES, QUEUE_LENGTH = 8, 256
# A piece of a prompt takes about as long as ten tokens of an answer on a plain CPU; smaller ones
# read the weights more often for the same prompt.
PIECE_TOKENS = 256
# Without a request, before what was evaluated is written to the folder that keeps it over restarts.
CACHE_SAVE_SECONDS = 10.0

_Function = TypeVar("_Function", bound=Callable[..., Any])


class ContextFullError(AirllmError, ValueError):
    """The context has no room for a prompt, or for the next token of an answer."""


class PromptTooLongError(ContextFullError):
    """n_tokens: of the prompt, or a lower bound. context: tokens that there is room for. most: the
    longest context that the model allows."""

    def __init__(self, n_tokens: int, context: int, most: int, least: str = "") -> None:
        """least: said before n_tokens, if that is a lower bound."""
        super().__init__(
            f"the prompt has {least}{n_tokens} tokens; the context has room for {context}."
            f" context= makes it larger; this model allows {most}."
        )
        self.n_tokens, self.context, self.most = n_tokens, context, most


def _strings(name: str, value: str | Sequence[str]) -> tuple[str, ...]:
    """One string, or several, as a tuple. TypeError."""
    try:
        found = (value,) if isinstance(value, str) else tuple(value)
    except TypeError:
        raise TypeError(f"{name} is {shown(value)}; expected a string, or several") from None
    for text in found:
        if not isinstance(text, str):
            raise TypeError(f"{name} has {shown(text)}; expected strings")
    return found


def _biases(value: object) -> dict[int, float] | None:
    if value is None:
        return None
    if not isinstance(value, Mapping):
        raise TypeError(f"logit_bias is {shown(value)}; expected numbers by token id")
    found: dict[int, float] = {}
    for token, bias in value.items():
        number = -math.inf
        if bias != -math.inf:
            expected = "a finite one or -inf"
            number = check_number(f"logit_bias[{token!r}]", bias, -math.inf, math.inf, expected)
        found[check_count("a token of logit_bias", token, 0)] = number
    return found


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. ValueError or TypeError names an argument that makes no sense.

    temperature: 0 takes the likeliest token, the lowest id if several are equally likely. 1 keeps
        the model's distribution; below 1 it is sharper, above 1 flatter.
    top_k: only the k likeliest tokens; 0 for all.
    top_p: only the likeliest tokens that together reach this probability (arXiv:1904.09751).
    min_p: only tokens at least this fraction as likely as the likeliest (arXiv:2407.01082).
    repeat_penalty: divides the positive and multiplies the negative logits of the tokens in the
        penalty window (arXiv:1909.05858); 1 changes nothing.
    seed: the same seed draws the same tokens from the same logits; None draws anew each time.
    typical_p: only tokens whose surprise is nearest to the expected one, and which together reach
        this probability (arXiv:2202.00666); 1 for all.
    presence_penalty: taken off the logits of the tokens in the penalty window. frequency_penalty:
        taken off for each time that the token is there. Below 0, such tokens become likelier.
    penalty_window: how many of the last tokens, of prompt and answer, the penalties and DRY look
        at; -1 for all.
    dry_multiplier: penalises tokens that would continue a repetition ("don't repeat yourself"): if
        the last n tokens are in the window before, the token that followed there loses
        dry_multiplier * dry_base ** (n - dry_allowed_length), for n of dry_allowed_length or more.
        0 changes nothing.
    dry_breakers: strings over which no repetition reaches, so that the form of a chat or of a list
        may come again.
    logit_bias: added to the logits of tokens, by id; -inf rules a token out.

    The order is that of llama.cpp: logit_bias, penalties, DRY, top_k, typical_p, top_p, min_p,
    temperature.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    seed: int | None = None
    typical_p: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    penalty_window: int = 64
    dry_multiplier: float = 0.0
    dry_base: float = 1.75
    dry_allowed_length: int = 2
    dry_breakers: str | Sequence[str] = ("\n", ":", '"', "*")
    logit_bias: Mapping[int, float] | None = None

    def __post_init__(self) -> None:
        def number(name: str, high: float, expected: str, *, above: bool = False) -> None:
            set_number(name, 0.0, high, expected, above=above)

        def set_number(
            name: str, low: float, high: float, expected: str, *, above: bool = False
        ) -> None:
            value = check_number(name, getattr(self, name), low, high, expected, above=above)
            object.__setattr__(self, name, value)

        number("temperature", math.inf, "a finite one of 0 (greedy) or more")
        number("top_p", 1.0, "above 0, up to 1", above=True)
        number("min_p", 1.0, "0 to 1")
        number("repeat_penalty", math.inf, "a finite one above 0", above=True)
        number("typical_p", 1.0, "above 0, up to 1", above=True)
        number("dry_multiplier", math.inf, "a finite one of 0 or more")
        set_number("dry_base", 1.0, math.inf, "a finite one of 1 or more")
        for name in ("presence_penalty", "frequency_penalty"):
            set_number(name, -math.inf, math.inf, "a finite one")
        for name, least in (("top_k", 0), ("penalty_window", -1), ("dry_allowed_length", 1)):
            object.__setattr__(self, name, check_count(name, getattr(self, name), least))
        object.__setattr__(self, "dry_breakers", _strings("dry_breakers", self.dry_breakers))
        object.__setattr__(self, "logit_bias", _biases(self.logit_bias))
        if self.seed is not None:
            object.__setattr__(self, "seed", check_count("seed", self.seed, least=0))


_DEFAULTS = Sampling()


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
        object.__setattr__(self, "stop", _strings("stop", self.stop))
        if "" in self.stop_strings:
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
    typical_p: float
    presence_penalty: float
    frequency_penalty: float
    penalty_window: int
    dry_multiplier: float
    dry_base: float
    dry_allowed_length: int
    dry_breakers: str | Sequence[str]
    logit_bias: Mapping[int, float] | None
    max_new_tokens: int
    max_tokens: int  # another name of max_new_tokens
    stop: str | Sequence[str]
    on_full: OnFull
    keep: int


def settings_of(
    defaults: Sampling = _DEFAULTS, /, **options: Unpack[AnswerOptions]
) -> tuple[Sampling, Limits]:
    """Sampling and Limits with these options; the others of Sampling are as in `defaults`.
    TypeError for an unknown option."""
    unknown = options.keys() - AnswerOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(AnswerOptions.__annotations__)
        raise TypeError(f"there is no option {min(unknown)!r}; expected some of {known}")
    given: dict[str, Any] = dict(options)
    if (most := given.pop("max_tokens", None)) is not None:
        if "max_new_tokens" in given:
            raise TypeError("max_tokens and max_new_tokens are two names of one option; give one")
        given["max_new_tokens"] = most
    sampling, limits = (
        {field.name: given[field.name] for field in fields(kind) if field.name in given}
        for kind in (Sampling, Limits)
    )
    return replace(defaults, **sampling), Limits(**limits)


# Keys of a model's file, as llama.cpp writes and reads them, for fields of Sampling.
_MODEL_KEYS = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repeat_penalty": "general.sampling.penalty_repeat",
    "penalty_window": "general.sampling.penalty_last_n",
}


def model_sampling(metadata: Mapping[str, object]) -> Sampling:
    """The sampling that a model's file asks for; what it does not say is as in Sampling. A value
    that makes no sense is left out, with a warning: it is no reason not to run the model."""
    found = _DEFAULTS
    for name, key in _MODEL_KEYS.items():
        value: Any = metadata.get(key)
        if value is None:
            continue
        if isinstance(value, float):
            value = float(f"{value:.6g}")  # 0.6 rather than its neighbour in float32
        try:
            found = replace(found, **{name: value})
        except (TypeError, ValueError) as error:
            _log.warning("the model's file has %s, which is not used: %s", key, error)
    return found


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
    also = inspect.Parameter("max_tokens", inspect.Parameter.KEYWORD_ONLY, default=None)
    options.insert(1, also.replace(annotation=int | None))
    function.__signature__ = signature.replace(parameters=[*own, *options])  # type: ignore[attr-defined]
    return function
