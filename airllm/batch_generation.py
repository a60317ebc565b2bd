"""Several sequences at once: their tokens go through the layers together, so that the weights,
whose reading is most of a token's time, are read once for all of them.

Each sequence has a KV cache and a length of its own. Its numbers do not depend on those beside it.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter

import numpy as np

from airllm.decoder import Decoder, Logits
from airllm.generation import Continuation, Generation
from airllm.kv_cache import KVCache
from airllm.limits import Limits
from airllm.sampling import Sampling
from airllm.tokenizer import Tokenizer


class ParallelSequences:
    """KV caches of n sequences, which go on together by a token each."""

    def __init__(self, decoder: Decoder, n: int, capacity: int, vocab_size: int) -> None:
        """capacity: tokens of each. MemoryError where there is no room."""
        if n > decoder.batch_size:
            raise ValueError(
                f"a batch of {n} sequences; the engine evaluates at most batch_size="
                f"{decoder.batch_size} tokens at once"
            )
        self._decoder = decoder
        self.caches = [decoder.new_cache(capacity) for _ in range(n)]
        self._logits = np.empty((n, vocab_size), np.float32)

    def reset(self) -> None:
        for cache in self.caches:
            cache.clear()

    def forward(self, tokens: Sequence[int]) -> Logits:
        """Evaluate a token of each sequence; returns their logits, float32 [n, vocab], in a buffer
        that the next call overwrites. The tokens must be valid ids and fit the caches."""
        return self.forward_some(list(zip(tokens, self.caches, strict=True)))

    def forward_alone(self, tokens: Sequence[int], cache: KVCache) -> Logits:
        """Evaluate several tokens of one of the sequences; the last one's logits, [vocab]."""
        return self._decoder.evaluate(np.array(tokens, np.int32), cache=cache)

    def forward_some(self, steps: Sequence[tuple[int, KVCache]]) -> Logits:
        """`forward` for those of the sequences that go on: their tokens, and their caches."""
        tokens = np.array([token for token, _ in steps], np.int32)
        caches = [cache for _, cache in steps]
        return self._decoder.evaluate_batch(tokens, caches, self._logits[: len(steps)])


def stream_batch(
    lanes: ParallelSequences,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    limits: Sequence[Limits],
    on_token: Callable[[int, str], None] | None = None,
) -> Iterator[tuple[int, Generation]]:
    """Continue all prompts, as many together as there are lanes; a sequence that ends makes room
    for the next prompt. Yields a prompt's index and its answer as each gets ready.

    limits: of each prompt, which must fit its lane with its answer, or fill the context.
    on_token(index of the prompt, text).

    A prompt is evaluated by itself, as is what a shift leaves of one; tokens of answers together.
    """
    free, waiting = list(lanes.caches), deque(enumerate(zip(prompts, limits, strict=True)))
    running: dict[int, Continuation] = {}

    def say(index: int, piece: str) -> None:
        if piece and on_token is not None:
            on_token(index, piece)

    def ended() -> Iterator[tuple[int, Generation]]:
        """Take answers out that have ended."""
        for index in [index for index, answer in running.items() if not answer.goes_on()]:
            answer = running.pop(index)
            say(index, answer.rest())
            free.append(answer.cache)
            yield index, answer.result()

    while True:
        yield from ended()
        while waiting and free:
            index, (prompt, own_limits) = waiting.popleft()
            cache = free.pop()
            cache.clear()
            running[index] = Continuation(prompt, cache, tokenizer, sampling, own_limits)
            yield from ended()
        if not running:
            return
        together = [item for item in running.items() if len(item[1].pending) == 1]
        for index, answer in running.items():
            if len(answer.pending) > 1:
                start = perf_counter()
                logits = lanes.forward_alone(answer.pending, answer.cache)
                say(index, answer.take(logits, start))
        if together:
            start = perf_counter()
            rows = lanes.forward_some([(a.pending[0], a.cache) for _, a in together])
            for (index, answer), row in zip(together, rows, strict=True):
                say(index, answer.take(row, start))
