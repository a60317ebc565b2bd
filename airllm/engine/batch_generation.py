"""Generates several sequences at once. Their tokens go through the layers together, so that the
weights are read once for all of them; reading weights is most of a token's time.

Each sequence has its own state and length. Its numbers do not depend on the other sequences.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from time import perf_counter

import numpy as np

from airllm.engine.continuation import Continuation, Generation
from airllm.engine.decoder import Decoder, Logits
from airllm.engine.loaded_model import LoadedModel
from airllm.engine.settings import Limits, Sampling
from airllm.state.sequence import SequenceState
from airllm.text.prompts import Prompt, prompt_list
from airllm.text.tokenizer import Tokenizer
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

    def forward_each(
        self,
        steps: Sequence[tuple[Sequence[int], SequenceState]],
        on_layer: OnProgress | None = None,
    ) -> list[Logits]:
        """Evaluate one or more tokens of some of the sequences. Returns the logits of the last
        token of each, float32 [vocab], in a buffer that the next call overwrites."""
        return self._decoder.evaluate_each(steps, self._logits, on_layer)

    def in_one_pass(self, answers: Iterable[Continuation]) -> list[Continuation]:
        """Chooses the answers whose pending tokens the next pass evaluates.

        Answers with one pending token always take part. Of the others, most of which are prompts,
        one does, or more if layers are streamed: as many as together are no longer than the
        context, which the plan has memory for.
        """
        most = self._decoder.state.capacity if self._decoder.streams else 0
        chosen, n_tokens = [], 0
        for answer in answers:
            n = len(answer.pending)
            if n == 1:
                chosen.append(answer)
            elif n_tokens == 0 or n_tokens + n <= most:
                chosen.append(answer)
                n_tokens += n
        return chosen


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
    on_token: Callable[[int, str], None] | None = None,
    on_layer: OnProgress | None = None,
) -> Generator[tuple[int, Generation], None, None]:
    """Check all arguments now, and return the generator of the answers, see
    LayerWiseInferenceEngine.stream_batch. The model is busy from the generator's start to its end.
    """
    ids = [model.prompts.some_tokens(prompt) for prompt in prompt_list(prompts)]
    batch = check_count("batch", batch)
    check_choice("on_full", limits.on_full, ("stop", "shift"))
    own_limits = [model.limits_for(prompt, limits) for prompt in ids]

    def answers() -> Generator[tuple[int, Generation], None, None]:
        if not ids:
            return
        longest = min(max(map(len, ids)) + int(limits.max_new_tokens), model.context)
        tokenizer = model.prompts.tokenizer
        with parallel_sequences(model, min(int(batch), len(ids)), longest) as lanes:
            yield from stream_batch(lanes, tokenizer, ids, sampling, own_limits, on_token, on_layer)

    return answers()


def stream_batch(
    lanes: ParallelSequences,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Sequence[Limits],
    on_token: Callable[[int, str], None] | None = None,
    on_layer: OnProgress | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Continue all prompts, as many together as there are lanes. When a sequence ends, the next
    prompt takes its lane. Yields the index of a prompt and its answer as soon as it is complete.

    limits: of each prompt. A lane must have room for each prompt and its answer, or for the whole
    context. on_token(index of the prompt, text). on_layer(done, total): layers of a pass.

    The tokens of answers are evaluated together. A prompt, or the rest of a sequence after a shift,
    is a batch by itself. If layers are streamed, all of them share a pass through the layers.
    """
    free, waiting = list(lanes.states), deque(enumerate(zip(prompts, limits, strict=True)))
    running: dict[int, Continuation] = {}

    def say(index: int, piece: str) -> None:
        if piece and on_token is not None:
            on_token(index, piece)

    def ended() -> Iterator[tuple[int, Generation]]:
        """Remove the answers that have ended and free their lanes."""
        for index in [index for index, answer in running.items() if not answer.goes_on()]:
            answer = running.pop(index)
            say(index, answer.rest())
            free.append(answer.state)
            yield index, answer.result()

    while True:
        yield from ended()
        while waiting and free:
            index, (prompt, own_limits) = waiting.popleft()
            state = free.pop()
            state.clear()
            running[index] = Continuation(prompt, state, tokenizer, sampling, own_limits)
            yield from ended()
        if not running:
            return
        chosen = lanes.in_one_pass(running.values())
        start = perf_counter()
        steps = [(answer.pending, answer.state) for answer in chosen]
        rows = lanes.forward_each(steps, on_layer)
        taken = dict(zip(map(id, chosen), rows, strict=True))
        for index, answer in running.items():
            if id(answer) in taken:
                say(index, answer.take(taken[id(answer)], start))
