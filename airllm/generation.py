"""Generating text: evaluate, sample, show, again."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np

from airllm.decoder import Decoder
from airllm.limits import ContextFullError, Limits, shift
from airllm.progress import OnProgress
from airllm.sampling import Sampler, Sampling
from airllm.text_stream import TextStream
from airllm.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Generation:
    """What was generated, and how fast."""

    text: str
    tokens: tuple[int, ...]  # without the end token; those of a stop string are there
    prompt_tokens: int
    reused_tokens: int  # of the prompt, those that were in the KV cache and not evaluated again
    shifted_tokens: int  # that were forgotten to make room, with on_full="shift"
    finish_reason: FinishReason  # end token or stop string; max_new_tokens; the context is full
    prefill_seconds: float  # the prompt's evaluation, up to the first token
    decode_seconds: float  # the tokens after the first
    prefill_tokens_per_second: float  # of the tokens that were evaluated
    decode_tokens_per_second: float


def generate(
    decoder: Decoder,
    tokenizer: Tokenizer,
    prompt: Sequence[int],
    sampling: Sampling,
    limits: Limits,
    on_progress: OnProgress | None = None,
) -> Generator[str, None, Generation]:
    """Continue a prompt, which must fit the context; yields text and returns the whole.

    limits: for this prompt, as for_prompt gives them; ContextFullError where on_full says so.

    The cache holds the prompt's beginning, or nothing, but not the whole prompt.

    Whole characters are yielded, and nothing of a stop string. Times are the model's and the
    sampler's, not the consumer's.
    """
    sampler, stream = Sampler(sampling), TextStream(limits.stop)
    history, n_prompt = list(prompt), len(prompt)
    cache, n_reused, n_shifted = decoder.cache, decoder.cache.length, 0
    pieces: list[str] = []
    seconds: list[float] = []  # of each evaluation, the prompt's first
    finish: FinishReason = "length"
    pending = history[n_reused:]
    while len(history) - n_prompt < limits.max_new_tokens:
        if cache.length + len(pending) > cache.capacity:
            if limits.on_full == "stop":
                finish = "context"
                break
            if limits.on_full == "error":
                raise ContextFullError(
                    f"the context of {cache.capacity} tokens is full, after {n_prompt} of the "
                    f"prompt and {len(history) - n_prompt} of the answer"
                )
            before = cache.length + len(pending)
            pending = shift(cache, pending, limits.keep)
            n_shifted += before - cache.length - len(pending)
        start = perf_counter()
        logits = decoder.evaluate(np.array(pending, np.int32), None, on_progress)
        if not decoder.streams:
            on_progress = None  # it is for the prompt; a token of the answer is quick
        token = sampler.sample(logits, history)
        seconds.append(perf_counter() - start)
        if token in tokenizer.eos_ids:
            finish = "stop"
            break
        history.append(token)
        pending = [token]
        # A control token is markup, not text.
        said = b"" if tokenizer.is_control(token) else tokenizer.token_bytes(token)
        if piece := stream.push(said):
            pieces.append(piece)
            yield piece
        if stream.stopped:
            finish = "stop"
            break
    if rest := stream.finish():
        pieces.append(rest)
        yield rest
    prefill, decode = sum(seconds[:1]), sum(seconds[1:])
    return Generation(
        text="".join(pieces),
        tokens=tuple(history[n_prompt:]),
        prompt_tokens=n_prompt,
        reused_tokens=n_reused,
        shifted_tokens=n_shifted,
        finish_reason=finish,
        prefill_seconds=prefill,
        decode_seconds=decode,
        prefill_tokens_per_second=(n_prompt - n_reused) / prefill if prefill else 0.0,
        decode_tokens_per_second=(len(seconds) - 1) / decode if decode else 0.0,
    )
