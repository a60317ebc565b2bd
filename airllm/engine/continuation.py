"""An answer as it grows: the tokens to evaluate next, the next token's choice, the text so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

from airllm.engine.decoder import Logits
from airllm.engine.sampling import Sampler
from airllm.engine.settings import ContextFullError, Limits, Sampling
from airllm.state.kv_cache import KVCache
from airllm.text.text_stream import TextStream
from airllm.text.tokenizer import Tokenizer

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
    decode_seconds: float  # the tokens after the first; in a batch, together with the others'
    prefill_tokens_per_second: float  # of the tokens that were evaluated
    decode_tokens_per_second: float
    passes: int  # evaluations of the model: the prompt's, and those of the answer
    accepted_tokens: int  # of the answer, those that were guessed right and took no pass

    @property
    def tokens_per_pass(self) -> float:
        """Of the answer, its end token too; 1 without lookahead."""
        return (self.passes + self.accepted_tokens) / self.passes if self.passes else 0.0


class Continuation:
    """A prompt and its answer, which grows by a token with each `take`.

        while answer.goes_on():
            evaluate answer.pending after answer.cache, and answer.take(the last token's logits)

    pending: the tokens to evaluate next. Text is given out in whole characters, and nothing of a
    stop string.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        cache: KVCache,
        tokenizer: Tokenizer,
        sampling: Sampling,
        limits: Limits,
    ) -> None:
        """prompt: must fit the context. cache: holds its beginning, or nothing, but not all of it.
        limits: for this prompt, as for_prompt gives them."""
        self.cache, self._tokenizer, self._limits = cache, tokenizer, limits
        self._sampler, self._stream = Sampler(sampling), TextStream(limits.stop_strings)
        self._history, self._n_prompt = list(prompt), len(prompt)
        self._n_reused, self._n_shifted = cache.length, 0
        self.pending = self._history[self._n_reused :]
        self._pieces: list[str] = []
        self._seconds: list[float] = []  # of each evaluation, the prompt's first
        self._finish: FinishReason | None = None
        self.accepted = 0  # tokens whose logits were there before they were chosen

    @property
    def history(self) -> Sequence[int]:
        """The prompt's tokens and the answer's."""
        return self._history

    def room(self) -> int:
        """Tokens that may be evaluated after `pending` in the same pass."""
        n_said = len(self._history) - self._n_prompt
        wanted = self._limits.max_new_tokens - n_said - 1
        return min(wanted, self.cache.capacity - self.cache.length - len(self.pending))

    def goes_on(self) -> bool:
        """Whether another token is wanted; there is room for it then.
        ContextFullError where there is none, and the limits' on_full says so."""
        cache, limits = self.cache, self._limits
        n_said = len(self._history) - self._n_prompt
        if self._finish is None and n_said >= limits.max_new_tokens:
            self._finish = "length"
        if self._finish is None and cache.length + len(self.pending) > cache.capacity:
            if limits.on_full == "error":
                raise ContextFullError(
                    f"the context of {cache.capacity} tokens is full, after {self._n_prompt} of "
                    f"the prompt and {n_said} of the answer"
                )
            if limits.on_full == "stop":
                self._finish = "context"
            else:
                before = cache.length + len(self.pending)
                self.pending = shift(cache, self.pending, limits.keep)
                self._n_shifted += before - cache.length - len(self.pending)
        return self._finish is None

    def take(self, logits: Logits, start: float) -> str:
        """Choose the next token; returns the text that it makes certain, which may be none.

        logits: float32 [vocab], after `pending`; start: when their evaluation began, by
        perf_counter.
        """
        token = self._sampler.sample(logits, self._history)
        self._seconds.append(perf_counter() - start)
        if token in self._tokenizer.eos_ids:
            self._finish = "stop"
            return ""
        self._history.append(token)
        self.pending = [token]
        # A control token is markup, not text.
        is_markup = self._tokenizer.is_control(token)
        piece = self._stream.push(b"" if is_markup else self._tokenizer.token_bytes(token))
        if self._stream.stopped:
            self._finish = "stop"
        self._pieces.append(piece)
        return piece

    def rest(self) -> str:
        """The text that was held back, once no token is to come."""
        rest = self._stream.finish()
        self._pieces.append(rest)
        return rest

    def result(self) -> Generation:
        prefill, decode = sum(self._seconds[:1]), sum(self._seconds[1:])
        n_evaluated = self._n_prompt - self._n_reused
        return Generation(
            text="".join(self._pieces),
            tokens=tuple(self._history[self._n_prompt :]),
            prompt_tokens=self._n_prompt,
            reused_tokens=self._n_reused,
            shifted_tokens=self._n_shifted,
            finish_reason=self._finish or "length",
            prefill_seconds=prefill,
            decode_seconds=decode,
            prefill_tokens_per_second=n_evaluated / prefill if prefill else 0.0,
            decode_tokens_per_second=(len(self._seconds) - 1) / decode if decode else 0.0,
            passes=len(self._seconds) - self.accepted,
            accepted_tokens=self.accepted,
        )


def shift(cache: KVCache, pending: Sequence[int], keep: int) -> list[int]:
    """Forget the older half of what comes after the first `keep` tokens; returns the tokens that
    are then to be evaluated, `pending` last.

    What stays moves to earlier positions and is evaluated again there. To turn its keys by the
    difference of positions, as llama.cpp does, would be faster and another result: keys and values
    of all layers but the first have seen what is forgotten, and a cache of 16 or 8 bit would be
    rounded once more with each shift.
    """
    tokens = [*cache.tokens, *pending]
    forgotten = (len(tokens) - keep) // 2
    left = tokens[:keep] + tokens[keep + forgotten :]
    return left[cache.keep_shared(left) :]
