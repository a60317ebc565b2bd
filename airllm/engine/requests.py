"""What a scheduler takes and what it tells: requests, their handles, and events.

    handle = scheduler.submit(Request(tokens), on_event)

The engine's thread then calls on_event(handle, event) for each event of the request, in order:
PromptProgress while the prompt is evaluated, a Piece for each piece of text, and Finished for each
choice; or Failed in place of all that is still to come. After `cancel` there are no more events.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from airllm.engine.settings import Limits, Sampling
from airllm.util.arguments import check_choice, check_count, check_number
from airllm.util.errors import AirllmError
from airllm.util.shown import shown

if TYPE_CHECKING:
    from airllm.engine.continuation import Generation
    from airllm.engine.grammar import AnswerForm

__all__ = [
    "MOST_TOP_LOGPROBS",
    "AfterEvents",
    "DeadlineError",
    "Embedded",
    "Event",
    "Failed",
    "Finished",
    "Handle",
    "OnEvent",
    "Piece",
    "PromptProgress",
    "QueueFullError",
    "Request",
    "Reuse",
    "TokenLogprob",
]

Reuse = Literal["exact", "any", "none"]
MOST_TOP_LOGPROBS = 100  # of a token; OpenAI's API allows 20


class QueueFullError(AirllmError, RuntimeError):
    """As many requests wait as the queue has room for; try again later."""


class DeadlineError(AirllmError, TimeoutError):
    """A request has waited in the queue, or run, longer than it may."""


@dataclass(frozen=True)
class Request:
    """A prompt and what is wanted of its answer. ValueError or TypeError names an argument that
    makes no sense by itself; `submit` checks the others against the model.

    prompt: token ids, at least one. Texts and chats become tokens with engine.tokenize.
    sampling, limits: see airllm.engine.settings. With a seed, choice i of a request draws with the
        seed + i.
    shown: control tokens whose spelling is a part of the text, for those who read the markup of
        thoughts and tool calls.
    n: how many answers, which share the evaluation of the prompt. best_of: how many are generated,
        of which the n with the largest mean logprob are told, when all have ended; None for n.
    logprobs: whether pieces have the logprobs of their tokens. top_logprobs: the number of the
        likeliest tokens whose logprobs come with them. Both are of the model's distribution, before
        sampling changes it.
    prompt_logprobs: whether PromptProgress has the logprobs of the prompt's tokens. All of the
        prompt is evaluated then, and the first token's logits may round in another way.
    grammar: what the answer must look like, from LayerWiseInferenceEngine.grammar; None for
        anything. Tokens that must come are taken without a pass of their own, unless logprobs are
        wanted.
    deadline_seconds: from `submit` to the end of the answer. queue_seconds: from `submit` to the
        beginning of the prompt's evaluation. None for any time. DeadlineError, in Failed.
    reuse: what may be taken from earlier prompts and answers. "exact": only what leaves each bit of
        the answer as it is without reuse. "any": the longest beginning that was evaluated before,
        which may round differently, as engine.generate's own cache does. "none". None: "exact" if
        the answer is determined, by a seed or temperature 0, else "any".
    embedding: in place of an answer, the embedding of the prompt: "model" for the pooling that the
        model's file asks for, "mean", "last" or "cls".
    """

    prompt: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    limits: Limits = field(default_factory=Limits)
    shown: frozenset[int] = frozenset()
    n: int = 1
    best_of: int | None = None
    logprobs: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: bool = False
    grammar: "AnswerForm | None" = None
    deadline_seconds: float | None = None
    queue_seconds: float | None = None
    reuse: Reuse | None = None
    embedding: Literal["model", "mean", "last", "cls"] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompt, (str, bytes)):
            raise TypeError(f"prompt is {shown(self.prompt)}; expected token ids")
        object.__setattr__(self, "n", check_count("n", self.n))
        for name, least in (("best_of", self.n), ("top_logprobs", 0)):
            value = getattr(self, name)
            if value is not None:
                most = MOST_TOP_LOGPROBS if name == "top_logprobs" else None
                object.__setattr__(self, name, check_count(name, value, least, most))
        for name in ("deadline_seconds", "queue_seconds"):
            value = getattr(self, name)
            if value is not None:
                expected = "a finite one above 0, or None"
                number = check_number(name, value, 0.0, float("inf"), expected, above=True)
                object.__setattr__(self, name, number)
        if self.reuse is not None:
            check_choice("reuse", self.reuse, ("exact", "any", "none"))
        if self.embedding is not None:
            check_choice("embedding", self.embedding, ("model", "mean", "last", "cls"))

    @property
    def n_generated(self) -> int:
        """How many answers are generated."""
        return self.n if self.best_of is None else self.best_of

    @property
    def reuses(self) -> Reuse:
        """`reuse`, or what it is by default."""
        if self.reuse is not None:
            return self.reuse
        determined = self.sampling.seed is not None or self.sampling.temperature == 0.0
        return "exact" if determined else "any"


@dataclass(frozen=True)
class TokenLogprob:
    """A token, the natural logarithm of its probability, and those of the likeliest tokens, the
    likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class PromptProgress:
    """done of total tokens of the prompt are evaluated; `done` includes what was reused, which
    `reused` counts. The last one has done == total. logprobs: of the prompt's tokens since the last
    one but for the first token, which has none; empty unless wanted."""

    done: int
    total: int
    reused: int = 0
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Piece:
    """Text that is certain: whole characters, no part of a stop string.

    tokens: those that came since the last piece of the choice; their text may be in the next piece.
    The last piece of a choice may have tokens and no text. The end token is no part of any.
    logprobs: of these tokens; empty unless wanted.
    """

    choice: int
    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """A choice has ended: all of its text, its finish_reason, and what was counted."""

    choice: int
    generation: "Generation"


@dataclass(frozen=True)
class Embedded:
    """The embedding of the prompt, float32 [hidden_size], not normalised."""

    embedding: NDArray[np.float32]
    prompt_tokens: int
    reused_tokens: int = 0


@dataclass(frozen=True)
class Failed:
    """The request has ended, all of its choices, with an error."""

    error: Exception


Event: TypeAlias = PromptProgress | Piece | Finished | Embedded | Failed
# Called on the engine's thread, which waits for it: it must be quick, and never block. An exception
# of it ends its request.
OnEvent: TypeAlias = Callable[["Handle", Event], Any]
# Called on the engine's thread when a pass has told its events, once for all requests with the same
# function. It must not block.
AfterEvents: TypeAlias = Callable[[], Any]
Stage = Literal["queue", "prompt", "answer", "finished", "failed", "cancelled"]


@dataclass(eq=False)
class Handle:
    """A request in a scheduler.

    number: counts the scheduler's requests. prompt: the token ids. stage: where the request is.
    submitted, started, first_token, ended: when it came, when its prompt's evaluation began, when
    its first token was chosen, and when it ended, by perf_counter; None until then.
    reused_tokens: of the prompt; known once started. answer_tokens: of all choices so far.
    """

    number: int
    request: Request
    prompt: list[int]
    on_event: OnEvent = field(repr=False)
    after_events: AfterEvents | None = field(default=None, repr=False)
    stage: Stage = "queue"
    submitted: float = field(default_factory=perf_counter)
    started: float | None = None
    first_token: float | None = None
    ended: float | None = None
    reused_tokens: int = 0
    answer_tokens: int = 0
    # Held while on_event runs: `cancel` waits for the call under way and allows no other.
    _telling: Any = field(default_factory=threading.RLock, repr=False)
    _over: threading.Event = field(default_factory=threading.Event, repr=False)

    @property
    def is_over(self) -> bool:
        """Whether no more events come."""
        return self._over.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no more events come; whether that is so. Not for the engine's thread."""
        return self._over.wait(timeout)

    @contextmanager
    def telling(self) -> Iterator[None]:
        """For the scheduler: inside the `with`, `cancel` of another thread waits, so that a request
        is not cancelled between its last event and its end."""
        with self._telling:
            yield

    def tell(self, event: Event) -> bool:
        """For the scheduler: calls on_event, unless the request is over. Returns whether it did."""
        with self._telling:
            if self._over.is_set():
                return False
            self.on_event(self, event)
            return True

    def reach(self, stage: Stage) -> None:
        """For the scheduler: where the request is now, unless it is over."""
        with self._telling:
            if not self._over.is_set():
                self.stage = stage

    def end(self, stage: Stage) -> bool:
        """For the scheduler: no more events from now on. False if it was over before."""
        with self._telling:
            if self._over.is_set():
                return False
            self.stage, self.ended = stage, perf_counter()
            self._over.set()
            return True
