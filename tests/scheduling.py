"""Requests of token ids to a scheduler, and what they were told."""

from collections.abc import Callable, Sequence
from typing import Any

from airllm.engine.continuation import Generation
from airllm.engine.generation import generate
from airllm.engine.requests import Event, Failed, Finished, Handle, Piece, PromptProgress, Request
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import Limits, Sampling
from airllm.layer_engine import LayerWiseInferenceEngine

GREEDY = Sampling(temperature=0.0)


class NoText:
    """In the place of a tokenizer, for models that have none: no token ends an answer."""

    eos_ids: frozenset[int] = frozenset()
    add_bos, bos_id = False, None

    vocab_size = 160

    def is_control(self, token: int) -> bool:
        return False

    def token_bytes(self, token: int) -> bytes:
        return b"%d " % token


class Told:
    """The events of one request, of which it checks the order."""

    def __init__(self, then: Callable[[Handle, Event], Any] | None = None) -> None:
        self.events: list[Event] = []
        self._then = then

    def __call__(self, handle: Handle, event: Event) -> None:
        assert not handle.is_over
        assert not self.error
        if isinstance(event, PromptProgress):
            assert not self.of(Piece)
        if isinstance(event, Piece):
            assert event.choice not in self.answers
        self.events.append(event)
        if self._then is not None:
            self._then(handle, event)

    def of(self, kind: type) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def error(self) -> Exception | None:
        failed = self.of(Failed)
        return failed[0].error if failed else None

    @property
    def answers(self) -> dict[int, Generation]:
        return {event.choice: event.generation for event in self.of(Finished)}

    @property
    def answer(self) -> Generation:
        assert self.error is None
        (answer,) = self.answers.values()
        return answer

    def text(self, choice: int = 0) -> str:
        return "".join(piece.text for piece in self.of(Piece) if piece.choice == choice)

    def tokens(self, choice: int = 0) -> tuple[int, ...]:
        pieces = [piece.tokens for piece in self.of(Piece) if piece.choice == choice]
        return tuple(token for piece in pieces for token in piece)


def ask(
    scheduler: Scheduler,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 8,
    *,
    then: Callable[[Handle, Event], Any] | None = None,
    limits: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Handle, Told]:
    """Submit a request."""
    told = Told(then)
    request = Request(prompt, sampling, Limits(max_new_tokens, **(limits or {})), **settings)
    return scheduler.submit(request, told), told


def run(scheduler: Scheduler) -> None:
    """Run all that was submitted."""
    while scheduler.step():
        pass


def alone(
    engine: LayerWiseInferenceEngine,
    prompt: Sequence[int],
    sampling: Sampling = GREEDY,
    max_new_tokens: int = 8,
    **limits: Any,
) -> Generation:
    """What engine.generate gives for the tokens, with an empty cache."""
    model = engine._model
    model.decoder.state.clear()
    pieces = generate(
        model.decoder,
        model.prompts.tokenizer,
        prompt,
        sampling,
        model.limits_for(prompt, Limits(max_new_tokens, **limits)),
    )
    try:
        while True:
            next(pieces)
    except StopIteration as end:
        model.decoder.state.clear()
        generation: Generation = end.value
        return generation
