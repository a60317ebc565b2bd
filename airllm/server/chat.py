"""What all protocols' requests become, and where their options come from."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from airllm.engine.settings import Sampling
from airllm.server.body_fields import BodyFields
from airllm.server.errors import ApiError
from airllm.text.answer import Tool

__all__ = ["ChatRequest", "OutputForm", "ToolChoice", "read_sampling"]

MOST_CHOICES = 32
MOST_TOP_LOGPROBS = 20
MOST_STOPS = 16


@dataclass(frozen=True)
class OutputForm:
    """What the answer's text must look like. kind: "json" for any JSON object, or the language of
    `text`. text: a schema as JSON, a regular expression, or a grammar."""

    kind: Literal["json", "json_schema", "regex", "lark", "gbnf"]
    text: str = ""
    param: str = "response_format"  # the request's field, for errors


@dataclass(frozen=True)
class ToolChoice:
    """kind: whether the model may call tools ("auto"), may not, must, or must call `name`."""

    kind: Literal["auto", "none", "required", "named"] = "auto"
    name: str = ""


@dataclass(frozen=True)
class ChatRequest:
    """A request of any protocol.

    messages: of a chat, in OpenAI's form, texts as `content`. prompts: texts or tokens to continue,
    in place of messages, each with n choices of its own. suffix: what comes after the only one of
    these texts, in which a gap is to be filled. prefill: the beginning of the answer.
    deferred_tools: names of tools that the messages themselves describe, so that the prompt's
    beginning does not.
    thinks: whether the client wants to see thoughts; they are told apart in any case. sampling: the
    options that the request gives.
    max_tokens: None for as many as the context has room for. keep_alive: seconds that the model
    stays loaded after the answer; below 0 for ever, None as the server has it. said: what the
    protocol itself needs for its answer.
    """

    messages: Sequence[Mapping[str, Any]] = ()
    prompts: Sequence[str | Sequence[int]] = ()
    suffix: str = ""
    prefill: str = ""
    tools: Sequence[Tool] = ()
    deferred_tools: frozenset[str] = frozenset()
    tool_choice: ToolChoice = ToolChoice()
    parallel_calls: bool = True
    variables: Mapping[str, object] = field(default_factory=dict)
    form: OutputForm | None = None
    sampling: Mapping[str, Any] = field(default_factory=dict)
    max_tokens: int | None = None
    stop: Sequence[str] = ()
    n: int = 1
    best_of: int | None = None
    logprobs: bool = False
    top_logprobs: int = 0
    prompt_logprobs: bool = False
    echo: bool = False
    thinks: bool = True
    stream: bool = False
    stream_usage: bool = False
    stream_progress: bool = False
    model: str = ""
    keep_alive: float | None = None
    said: Mapping[str, Any] = field(default_factory=dict)

    @property
    def n_choices(self) -> int:
        return self.n * max(len(self.prompts), 1)


# Names of options of Sampling elsewhere.
_ALIASES = {
    "repetition_penalty": "repeat_penalty",
    "typical": "typical_p",
    "repeat_last_n": "penalty_window",
    "dry_penalty_last_n": "penalty_window",
    "dry_sequence_breakers": "dry_breakers",
}
_OPTIONS = {**{item.name: item.name for item in fields(Sampling)}, **_ALIASES}


def read_sampling(given: BodyFields) -> dict[str, Any]:
    """The options of Sampling that an object gives. ApiError for a value that makes no sense."""
    return {
        own: _checked(given, name, own, given.raw(name))
        for name, own in _OPTIONS.items()
        if given.raw(name) is not None
    }


def _checked(given: BodyFields, name: str, own: str, value: Any) -> Any:
    if own == "seed" and isinstance(value, int) and value < 0:
        return None  # -1 asks for a new seed each time
    if own == "logit_bias":
        return _biases(given, name)
    if own == "top_k" and value == -1:
        value = 0  # all tokens, as in vLLM
    try:
        Sampling(**{own: value})
    except (TypeError, ValueError) as error:
        raise ApiError(400, str(error), given.name(name)) from None
    return value


def _biases(given: BodyFields, name: str) -> dict[int, float]:
    """Token ids are texts in JSON, as all keys are. -100 and less rules a token out, as OpenAI
    promises."""
    try:
        biases = {int(token): float(bias) for token, bias in given.mapping(name).items()}
    except (TypeError, ValueError):
        raise given.wrong(name, "an object of token ids and numbers") from None
    if any(math.isnan(bias) or token < 0 for token, bias in biases.items()):
        raise given.wrong(name, "an object of token ids and numbers")
    return {token: -math.inf if bias <= -100 else bias for token, bias in biases.items()}
