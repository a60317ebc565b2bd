"""Generates several sequences at once. Their tokens go through the layers together, so that the
weights are read once for all of them; reading weights is most of a token's time.

Each sequence has its own state and length. Its numbers do not depend on the other sequences.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np

from airllm.engine.batches import Logits
from airllm.engine.continuation import Generation
from airllm.engine.decoder import Decoder
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.requests import Event, Failed, Finished, Handle, Piece, Request
from airllm.engine.scheduler import Scheduler
from airllm.engine.settings import Limits, Sampling
from airllm.text.prompts import Prompt, prompt_list
from airllm.util.arguments import check_choice, check_count
from airllm.util.progress import OnProgress
from airllm.util.shown import shown


class ParallelSequences:
    """n sequences that are evaluated together."""

    def __init__(self, decoder: Decoder, n: int, capacity: int, vocab_size: int) -> None:
        """capacity: in tokens, of each sequence. MemoryError if there is no room."""
        self._decoder = decoder
        pool = decoder.new_pool()
        self.states = [decoder.new_state(capacity, pool) for _ in range(n)]
        self._logits = np.empty((n, vocab_size), np.float32)

    def reset(self) -> None:
        for state in self.states:
            state.clear()

    def forward(self, tokens: Sequence[int]) -> Logits:
        """Evaluate a token of each sequence. Returns the logits, float32 [n, vocab], in a buffer
        that the next call overwrites. The tokens must be valid ids and fit the sequences."""
        ids = np.array(tokens, np.int32)
        return self._decoder.evaluate_batch(ids, self.states, self._logits)


@contextmanager
def parallel_sequences(
    model: LoadedModel, n: int, capacity: int | None = None
) -> Iterator[ParallelSequences]:
    """See LayerWiseInferenceEngine.sequences."""
    n = check_count("n", n)
    capacity = check_count("capacity", model.context if capacity is None else capacity)
    if capacity > model.context:
        raise ValueError(f"capacity is {shown(capacity)}; the context has room for {model.context}")
    with model.exclusive() as decoder:
        yield ParallelSequences(decoder, n, capacity, model.config.vocab_size)


def continue_prompts(
    model: LoadedModel,
    prompts: Sequence[Prompt],
    batch: int,
    sampling: Sampling,
    limits: Limits,
    markup: bool = False,
    on_token: Callable[[int, str], None] | None = None,
    on_layer: OnProgress | None = None,
) -> Generator[tuple[int, Generation], None, None]:
    """Check all arguments now, and return the generator of the answers, see
    LayerWiseInferenceEngine.stream_batch. The model is busy from the generator's start to its end.
    """
    prompts = prompt_list(prompts)
    ids = [model.prompts.some_tokens(prompt) for prompt in prompts]
    batch = check_count("batch", batch)
    check_choice("on_full", limits.on_full, ("stop", "shift"))
    model.check_sampling(sampling)
    for prompt in ids:
        model.limits_for(prompt, limits)
    if not ids:
        return _nothing()
    longest = min(max(map(len, ids)) + int(limits.max_new_tokens), model.context)
    lanes = min(batch, len(ids))
    marks = model.prompts.answer_marks if markup else frozenset()
    requests = [
        Request(
            tokens,
            sampling,
            limits,
            reuse="exact",
            shown=frozenset() if isinstance(prompt, str) else marks,
        )
        for prompt, tokens in zip(prompts, ids, strict=True)
    ]
    return _stream_batch(model, requests, lanes, longest, on_token, on_layer)


def _nothing() -> Generator[tuple[int, Generation], None, None]:
    yield from ()


def _note(told: list[tuple[int, Event]], index: int, _: Handle, event: Event) -> None:
    told.append((index, event))


def _stream_batch(
    model: LoadedModel,
    requests: Sequence[Request],
    lanes: int,
    capacity: int,
    on_token: Callable[[int, str], None] | None,
    on_layer: OnProgress | None,
) -> Generator[tuple[int, Generation], None, None]:
    """Answer all requests, as many together as there are lanes. When an answer ends, the next
    request takes its lane. Yields a request's index and its answer as soon as it is complete.

    Nobody waits for the next token of an answer, so that a prompt is evaluated in one piece.
    """
    told: list[tuple[int, Event]] = []
    piece, n_requests = model.decoder.batch_size, len(requests)
    with Scheduler(
        model,
        lanes=lanes,
        capacity=capacity,
        queue_length=n_requests,
        piece_tokens=piece,
        within_budget=False,
        on_layer=on_layer,
    ) as scheduler:
        for index, request in enumerate(requests):
            scheduler.submit(request, partial(_note, told, index))
        while scheduler.step() or told:
            for index, event in told:
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Piece) and event.text and on_token is not None:
                    on_token(index, event.text)
                if isinstance(event, Finished):
                    yield index, event.generation
            told.clear()
