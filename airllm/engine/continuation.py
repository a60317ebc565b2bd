"""An answer as it grows: the tokens to evaluate next, the choice of the next one, the text."""

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from airllm.engine.batches import Logits
from airllm.engine.grammar import AnswerForm, Matcher
from airllm.engine.sampling import Sampler
from airllm.engine.settings import ContextFullError, Limits, Sampling
from airllm.state.sequence import SequenceState
from airllm.text.text_stream import TextStream
from airllm.text.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "context"]


@dataclass(frozen=True)
class Generation:
    """An answer, and how fast it was generated."""

    text: str
    tokens: tuple[int, ...]  # without the end token, but with the tokens of a stop string
    prompt_tokens: int
    reused_tokens: int  # of the prompt: found in the KV cache, not evaluated again
    shifted_tokens: int  # forgotten to make room, with on_full="shift"
    finish_reason: FinishReason  # end token or stop string; max_new_tokens; the context is full
    prefill_seconds: float  # from the start of the prompt's evaluation to the first token
    decode_seconds: float  # for the tokens after the first; in a batch, shared with other answers
    prefill_tokens_per_second: float  # counts evaluated tokens only
    decode_tokens_per_second: float
    passes: int  # evaluations of the model: one for the prompt, the others for the answer
    accepted_tokens: int  # of the answer: guessed right, so that they took no pass

    @property
    def tokens_per_pass(self) -> float:
        """Tokens of the answer, including its end token, for each pass; 1 without lookahead."""
        return (self.passes + self.accepted_tokens) / self.passes if self.passes else 0.0


class Continuation:
    """A prompt and its answer, which grows by a token with each `take`.

        while answer.goes_on():
            evaluate answer.pending after answer.state, and answer.take(the last token's logits)

    pending: the tokens to evaluate next. n_again: how many of them, the first ones, were evaluated
    before. n_fresh: how many of them, the last ones, came from the last `take`. Text comes in whole
    characters, and without stop strings.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        state: SequenceState,
        tokenizer: Tokenizer,
        sampling: Sampling,
        limits: Limits,
        grammar: AnswerForm | None = None,
        *,
        forces: bool = True,
        shown: frozenset[int] = frozenset(),
    ) -> None:
        """prompt: must fit the context. state: holds the beginning of the prompt or nothing, but
        never the whole prompt. limits: for this prompt, from Limits.for_prompt. grammar: what the
        answer must look like. forces: whether tokens that must come are taken without logits.
        shown: control tokens whose spelling is a part of the text."""
        self._grammar, self._forces = grammar, forces
        self._matcher = None if grammar is None else grammar.matcher()
        self.state, self._tokenizer, self._limits = state, tokenizer, limits
        self._sampler = Sampler(sampling, tokenizer.token_bytes)
        self._stream, self._shown = TextStream(limits.stop_strings), shown
        self._history, self._n_prompt = list(prompt), len(prompt)
        self._n_reused, self._n_shifted = state.length, 0
        self.pending = self._history[self._n_reused :]
        self.n_again, self.n_fresh = 0, 0
        self._pieces: list[str] = []
        self._seconds: list[float] = []  # for each `take`; the first includes the prompt
        self._finish: FinishReason | None = None
        self.last_token: int | None = None  # that was chosen; maybe an end token
        self.accepted = 0  # tokens whose logits were there before they were chosen

    def sibling(self, state: SequenceState, sampling: Sampling) -> "Continuation":
        """Another answer to the same prompt. state: holds the whole prompt; this answer must not
        have a token yet. What comes next is `take`."""
        prompt = self._history[: self._n_prompt]
        other = Continuation(
            prompt,
            state,
            self._tokenizer,
            sampling,
            self._limits,
            self._grammar,
            forces=self._forces,
            shown=self._shown,
        )
        other._n_reused = self._n_reused
        return other

    @property
    def vocab_size(self) -> int:
        return self._tokenizer.vocab_size

    @property
    def sampling(self) -> Sampling:
        return self._sampler.sampling

    @property
    def n_answer(self) -> int:
        """Tokens of the answer so far."""
        return len(self._history) - self._n_prompt

    @property
    def n_shifted(self) -> int:
        """Tokens that were forgotten to make room."""
        return self._n_shifted

    def tokens_from(self, first: int) -> tuple[int, ...]:
        """The answer's tokens from number `first` on."""
        return tuple(self._history[self._n_prompt + first :])

    @property
    def history(self) -> Sequence[int]:
        """The tokens of the prompt and of the answer."""
        return self._history

    def room(self) -> int:
        """How many tokens may be evaluated after `pending` in the same pass."""
        n_said = self.n_answer
        wanted = self._limits.max_new_tokens - n_said - 1
        return min(wanted, self.state.capacity - self.state.length - len(self.pending))

    @property
    def ended(self) -> bool:
        """Whether an end token or a stop string has come."""
        return self._finish is not None

    @property
    def ended_by_token(self) -> bool:
        """Whether the token chosen last is an end token, which is no part of the answer."""
        return self.last_token in self._tokenizer.eos_ids

    def goes_on(self) -> bool:
        """Whether another token is wanted; if so, there is room for it.
        ContextFullError if the context is full and on_full is "error"."""
        state, limits = self.state, self._limits
        n_said = self.n_answer
        if self._finish is None and n_said >= limits.max_new_tokens:
            self._finish = "length"
        if self._finish is None and state.length + len(self.pending) > state.capacity:
            if limits.on_full == "error":
                raise ContextFullError(
                    f"the context of {state.capacity} tokens is full, after {self._n_prompt} of "
                    f"the prompt and {n_said} of the answer"
                )
            if limits.on_full == "stop":
                self._finish = "context"
            else:
                before = state.length + len(self.pending)
                self.pending, self.n_again = shift(state, self.pending, limits.keep), 0
                self._n_shifted += before - state.length - len(self.pending)
        return self._finish is None

    def take(self, logits: Logits, start: float) -> str:
        """Choose the next token. Returns the text that is now certain, which may be empty.

        With a grammar, more tokens may follow that must come; they are evaluated in the pass of the
        chosen one. logits: float32 [vocab], after `pending`. start: when their evaluation began, by
        perf_counter. ValueError if a grammar is too complex at this place.
        """
        self.last_token = token = self._choose(logits)
        self._seconds.append(perf_counter() - start)
        if token in self._tokenizer.eos_ids:
            self._finish = "stop"
            return ""
        self.pending, self.n_again, self.n_fresh = [], 0, 0
        text = self._append(token)
        if self._matcher is not None:
            text += self._follow(self._matcher, token)
        return text

    def _choose(self, logits: Logits) -> int:
        matcher = self._matcher
        words = None if matcher is None else matcher.mask()
        allowed = None if words is None else _bits(words, len(logits))
        token = self._sampler.sample(logits, self._history, allowed)
        while matcher is not None and not matcher.allows(token):
            # Drawing again without it is drawing from the allowed tokens.
            allowed = np.ones(len(logits), bool) if allowed is None else allowed
            allowed[token] = False
            token = self._sampler.sample(logits, self._history, allowed)
        return token

    def _follow(self, matcher: Matcher, token: int) -> str:
        """Takes the tokens that a grammar forces after a token; returns their text."""
        matcher.accept(token)
        text = ""
        for forced in matcher.forced() if self._forces else ():
            n_said = self.n_answer
            room = self.state.capacity - self.state.length - len(self.pending)
            if self._finish is not None or n_said >= self._limits.max_new_tokens or room < 1:
                break
            text += self._append(forced)
            matcher.accept(forced)
            self._seconds.append(0.0)
            self.accepted += 1
        if matcher.ended:
            self._finish = self._finish or "stop"
        return text

    def _append(self, token: int) -> str:
        self._history.append(token)
        self.pending.append(token)
        self.n_fresh += 1
        # A control token is markup, not text.
        is_markup = self._tokenizer.is_control(token) and token not in self._shown
        piece = self._stream.push(b"" if is_markup else self._tokenizer.token_bytes(token))
        if self._stream.stopped:
            self._finish = "stop"
        self._pieces.append(piece)
        return piece

    def evaluate_again(self, tokens: Sequence[int]) -> None:
        """The sequence has lost its last tokens, which come before those that are pending."""
        self.pending, self.n_again = [*tokens, *self.pending], len(tokens)

    def rest(self) -> str:
        """The text that was still held back; to be called once, after the last token."""
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


def _bits(words: NDArray[np.uint32], n: int) -> NDArray[np.bool_]:
    """The first n bits, [n]; those beyond the words are False."""
    bits = np.zeros(n, bool)
    found = np.unpackbits(words.view(np.uint8), count=min(n, 32 * len(words)), bitorder="little")
    bits[: len(found)] = found
    return bits


def shift(state: SequenceState, pending: Sequence[int], keep: int) -> list[int]:
    """Forget the older half of the tokens after the first `keep`. Returns the tokens to evaluate
    next, `pending` last.

    The tokens that stay move to earlier positions and are evaluated again there. llama.cpp rotates
    their keys by the difference of positions instead. That is faster, but the result differs: the
    keys and values of all layers but the first depend on the forgotten tokens, and each shift would
    round a cache of 16 or 8 bits once more.
    """
    tokens = [*state.tokens, *pending]
    forgotten = (len(tokens) - keep) // 2
    left = tokens[:keep] + tokens[keep + forgotten :]
    return left[state.keep_shared(left) :]
