"""An answer as all protocols see it: what the engine tells of a request becomes parts of choices.

Streams write the events one by one; a whole answer is the same events, collected. So both say the
same.
"""

import secrets
import string
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

from airllm.engine.requests import (
    Event,
    Finished,
    Piece,
    PromptProgress,
    TokenLogprob,
)
from airllm.server.errors import ApiError
from airllm.text.answer import (
    AnswerFormat,
    AnswerParser,
    AnswerPart,
    AnswerText,
    AnswerThought,
    CallArguments,
    CallBegin,
    Tool,
    ToolCall,
)

if TYPE_CHECKING:
    from airllm.engine.continuation import Generation

__all__ = [
    "AnswerChoice",
    "AnswerEvent",
    "AnswerReader",
    "Broken",
    "ChoiceEnded",
    "Collected",
    "Evaluated",
    "Finish",
    "TokenCounts",
    "Told",
    "collect",
]

Finish = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True)
class Evaluated:
    """done of total tokens of the prompt are evaluated, `reused` of them earlier. choice: the
    first one of the prompt."""

    choice: int
    done: int
    total: int
    reused: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Told:
    """More of a choice. tokens, logprobs: those that came with it."""

    choice: int
    parts: tuple[AnswerPart, ...]
    tokens: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class ChoiceEnded:
    """A choice is complete. stop: the stop string that ended it, if any did."""

    choice: int
    finish: Finish
    generation: "Generation"
    n_thought: int = 0  # tokens of thoughts
    stop: str | None = None


@dataclass(frozen=True)
class Broken:
    """There will be no more of the answer."""

    error: ApiError


AnswerEvent = Evaluated | Told | ChoiceEnded | Broken


class AnswerReader:
    """Turns the engine's events of a request into those of its answer.

    tools: that the model may call. stops: the stop strings.
    """

    def __init__(
        self,
        form: AnswerFormat,
        tools: Sequence[Tool],
        *,
        n: int = 1,
        first: int = 0,
        in_thought: bool = False,
        parallel_calls: bool = True,
        stops: Sequence[str] = (),
        decode: Callable[[Sequence[int]], str] | None = None,
        call_id: str = "call_",
    ) -> None:
        """first: the number of the first choice, for an answer to several prompts. decode: tokens
        to text, to see which of the stop strings came. call_id: how the ids begin
        that are made for calls; "" for ids of nine letters and digits, which Mistral's templates
        want."""
        self._parsers = [AnswerParser(form, tools, in_thought=in_thought) for _ in range(n)]
        self._n_thought = [0] * n
        self._in_thought = [in_thought] * n
        self._most_calls = None if parallel_calls else 1
        self._first = first
        self._stops, self._decode, self._call_id = stops, decode, call_id

    def read(self, event: Event) -> list[AnswerEvent]:
        match event:
            case PromptProgress():
                logprobs = event.logprobs
                return [Evaluated(self._first, event.done, event.total, event.reused, logprobs)]
            case Piece():
                parts = self._parts(event.choice, self._parsers[event.choice].push(event.text))
                self._count(event.choice, parts, len(event.tokens))
                if not parts and not event.logprobs:
                    return []
                choice = self._first + event.choice
                return [Told(choice, parts, event.tokens, event.logprobs)]
            case Finished():
                return self._finished(event.choice, event.generation)
            case _:
                raise TypeError(f"{type(event).__name__} is no event of an answer")

    def _finished(self, choice: int, generation: "Generation") -> list[AnswerEvent]:
        parser = self._parsers[choice]
        rest = self._parts(choice, parser.finish())
        finish: Finish = "stop" if generation.finish_reason == "stop" else "length"
        if finish == "stop" and parser.n_calls:
            finish = "tool_calls"
        stop = self._stop_string(generation) if finish == "stop" else None
        number = self._first + choice
        events: list[AnswerEvent] = [Told(number, rest)] if rest else []
        return [*events, ChoiceEnded(number, finish, generation, self._n_thought[choice], stop)]

    def _stop_string(self, generation: "Generation") -> str | None:
        """The stop string that ended the answer: the first in its tokens, which have it too."""
        if not self._stops or self._decode is None:
            return None
        text = self._decode(generation.tokens)
        found = [(at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _parts(self, choice: int, parts: Iterable[AnswerPart]) -> tuple[AnswerPart, ...]:
        """The parts with ids for calls, without calls beyond the first if one is allowed."""
        kept: list[AnswerPart] = []
        for part in parts:
            if isinstance(part, (CallBegin, CallArguments)) and self._is_too_much(part):
                continue
            if isinstance(part, CallBegin) and not part.id:
                part = replace(part, id=self._new_id())
            kept.append(part)
        return tuple(kept)

    def _is_too_much(self, part: CallBegin | CallArguments) -> bool:
        return self._most_calls is not None and part.index >= self._most_calls

    def _new_id(self) -> str:
        letters = string.ascii_letters + string.digits
        n = 24 if self._call_id else 9
        return self._call_id + "".join(secrets.choice(letters) for _ in range(n))

    def _count(self, choice: int, parts: Sequence[AnswerPart], n_tokens: int) -> None:
        if parts:
            self._in_thought[choice] = isinstance(parts[-1], AnswerThought)
        if self._in_thought[choice]:
            self._n_thought[choice] += n_tokens


@dataclass
class AnswerChoice:
    """A complete answer."""

    text: str = ""
    thought: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    end: ChoiceEnded | None = None

    @property
    def finish(self) -> Finish:
        return self.end.finish if self.end is not None else "stop"

    def add(self, part: AnswerPart) -> None:
        match part:
            case AnswerText(text):
                self.text += text
            case AnswerThought(text):
                self.thought += text
            case CallBegin(_, name, id):
                self.calls.append(ToolCall(name, id or ""))
            case CallArguments(_, text):
                self.calls[-1].arguments += text


@dataclass(frozen=True)
class TokenCounts:
    """What a request took, in tokens and seconds."""

    prompt_tokens: int = 0
    reused_tokens: int = 0
    answer_tokens: int = 0
    thought_tokens: int = 0
    prompt_seconds: float = 0.0
    answer_seconds: float = 0.0

    @classmethod
    def of(cls, ends: Iterable[ChoiceEnded], n: int = 1) -> "TokenCounts":
        """n: choices of each prompt."""
        ends = list(ends)
        all_of = [end.generation for end in ends]
        prompts = {end.choice // n: end.generation for end in ends}.values()
        return cls(
            prompt_tokens=sum(one.prompt_tokens for one in prompts),
            reused_tokens=sum(one.reused_tokens for one in prompts),
            answer_tokens=sum(len(one.tokens) for one in all_of),
            thought_tokens=sum(end.n_thought for end in ends),
            prompt_seconds=max((one.prefill_seconds for one in all_of), default=0.0),
            answer_seconds=max((one.decode_seconds for one in all_of), default=0.0),
        )


@dataclass
class Collected:
    """A whole answer."""

    choices: list[AnswerChoice]
    n: int = 1  # choices of each prompt

    @property
    def usage(self) -> TokenCounts:
        ends = (choice.end for choice in self.choices if choice.end is not None)
        return TokenCounts.of(ends, self.n)


def collect(events: Iterable[AnswerEvent], n_choices: int, n: int = 1) -> Collected:
    """The answer that the events tell. n: choices of each prompt. ApiError if it broke off."""
    whole = Collected([AnswerChoice() for _ in range(n_choices)], n)
    for event in events:
        match event:
            case Evaluated():
                whole.choices[event.choice].prompt_logprobs += event.logprobs
            case Told():
                choice = whole.choices[event.choice]
                for part in event.parts:
                    choice.add(part)
                choice.tokens += event.tokens
                choice.logprobs += event.logprobs
            case ChoiceEnded():
                whole.choices[event.choice].end = event
            case Broken():
                raise event.error
    return whole
