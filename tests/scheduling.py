"""Requests of token ids to a scheduler, and what they were told."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from extension import require_cpp
from tiny_model import Sizes, write_tiny_model

from airllm.engine.continuation import Generation
from airllm.engine.generation import generate
from airllm.engine.requests import Event, Failed, Finished, Handle, Piece, PromptProgress, Request
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import Limits, Sampling
from airllm.layer_engine import LayerWiseInferenceEngine

GREEDY = Sampling(temperature=0.0)


SIZES = Sizes(context=400)


def some_tokens(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(3, 150, n).tolist()


def prompts_alike(n: int, most: int, seed: int = 1) -> list[list[int]]:
    """Prompts of 1 to `most` tokens, many of which begin alike."""
    random = np.random.default_rng(seed)
    shared = some_tokens(most)
    found = []
    for _ in range(n):
        length = int(random.integers(1, most + 1))
        begin = int(random.integers(0, length))
        found.append(shared[:begin] + random.integers(3, 150, length - begin).tolist())
    return found


@contextmanager
def open_tiny(folder: Path, backend: str) -> Iterator[LayerWiseInferenceEngine]:
    """A tiny model whose answers no token ends."""
    if backend == "cpp":
        require_cpp()
    path = write_tiny_model(folder, "f32" if backend == "numpy" else "q8_0", sizes=SIZES).path
    with LayerWiseInferenceEngine(path, backend=backend) as engine:
        engine.tokenizer.eos_ids = frozenset()
        yield engine


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
    after: Callable[[], Any] | None = None,
    limits: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[Handle, Told]:
    """Submit a request. then: called with its events. after: the scheduler's after_events."""
    told = Told(then)
    request = Request(prompt, sampling, Limits(max_new_tokens, **(limits or {})), **settings)
    return scheduler.submit(request, told, after), told


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
