"""Generating text: evaluate, sample, show, again."""

from collections.abc import Generator, Sequence
from time import perf_counter

import numpy as np

from airllm.engine.continuation import Continuation, Generation
from airllm.engine.decoder import Decoder
from airllm.engine.limits import Limits
from airllm.engine.lookahead import Lookahead
from airllm.engine.sampling import Sampling
from airllm.text.tokenizer import Tokenizer
from airllm.util.progress import OnProgress


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    on_progress: OnProgress | None = None,
    lookahead: Lookahead | None = None,
) -> Generator[str, None, Generation]:
    """Continue a prompt, see Continuation; yields text and returns the whole.

    Times are the model's and the sampler's, not the consumer's.
    """
    answer = Continuation(prompt, decoder.cache, tokenizer, sampling, limits)
    while answer.goes_on():
        if lookahead is not None and (guesses := lookahead.guess(answer)):
            yield from _check(answer, lookahead, guesses, on_progress)
            continue
        start = perf_counter()
        logits = decoder.evaluate(np.array(answer.pending, np.int32), None, on_progress)
        if not decoder.streams:
            on_progress = None  # it is for the prompt; a token of the answer is quick
        if piece := answer.take(logits, start):
            yield piece
    if rest := answer.rest():
        yield rest
    return answer.result()


def _check(
    answer: Continuation,
    lookahead: Lookahead,
    guesses: Sequence[int],
    on_progress: OnProgress | None,
) -> Generator[str, None, None]:
    """Evaluate the pending token and guesses after it together, and take tokens as long as they are
    the guessed ones, and one more: for that the logits are there, too."""
    start = perf_counter()
    rows = lookahead.evaluate([*answer.pending, *guesses], on_progress)
    for row, guess in zip(rows, [*guesses, None], strict=True):
        answer.cache.tokens += answer.pending
        if piece := answer.take(row, start):
            yield piece
        if answer.pending != [guess] or not answer.goes_on():
            return
        answer.accepted += 1
        start = perf_counter()
