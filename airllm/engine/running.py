"""A request that runs in a scheduler: its prompt in pieces, then its answers."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from airllm.engine.batches import Logits
from airllm.engine.continuation import Continuation
from airllm.engine.pieces import Kinds
from airllm.engine.pooling import Pooler
from airllm.engine.requests import (
    Embedded,
    Event,
    Finished,
    Handle,
    Piece,
    PromptProgress,
    Request,
    TokenLogprob,
)
from airllm.engine.sampling import log_probabilities
from airllm.engine.settings import Limits
from airllm.engine.steps import Step, Wanted
from airllm.state.prefix_tree import Keys, PrefixTree, keys_of
from airllm.state.sequence import SequenceState, Snapshot
from airllm.text.tokenizer import Tokenizer

__all__ = ["Choice", "RunningRequest"]

# Of sequences that cannot be cut at any length, the tree keeps snapshots inside a prompt: this many
# tokens apart, or further so that a prompt has at most so many.
SNAPSHOT_TOKENS, MOST_SNAPSHOTS = 512, 8
# The most memory for the logits of all tokens of a piece.
_LOGITS_BYTES = 64 << 20


class Choice:
    """One answer of a job: the batches of its next tokens, and what was not told yet."""

    def __init__(
        self, index: int, answer: Continuation, request: Request, kinds: Kinds, reused: Keys
    ) -> None:
        """reused: the keys of the tokens that the answer's state holds."""
        self.index, self.answer = index, answer
        self._request, self._all_kinds, self._reused = request, kinds, reused
        self._evaluated: list[list[int]] = []  # [kind, number of tokens], after the reused ones
        self._sizes: deque[int] = deque()  # of the batches of the pending tokens
        self._start: float | None = None  # of the evaluation of the pending tokens
        self._n_told = 0  # tokens of the answer
        self._logprobs: list[TokenLogprob] = []  # that were not told
        self._sum, self._n_summed = 0.0, 0  # of the logprobs of all chosen tokens
        self.ended = False

    @property
    def state(self) -> SequenceState:
        return self.answer.state

    @property
    def n_pending(self) -> int:
        """Tokens that are evaluated next, beside which those of others are; a token of an answer,
        with what must follow it, counts as one."""
        return 1 if self._in_answer else len(self.answer.pending)

    @property
    def _in_answer(self) -> bool:
        """Whether the pending tokens were chosen, or forced, since the last pass."""
        return self.answer.n_fresh == len(self.answer.pending)

    @property
    def mean_logprob(self) -> float:
        """Of the tokens of the answer, with its end token."""
        return self._sum / max(self._n_summed, 1)

    @property
    def is_before_last_piece(self) -> bool:
        """Whether one more batch evaluates all pending tokens."""
        return len(self._sizes) == 1

    # ---- evaluating ----------------------------------------------------------------------------

    def cut(self, sizes: Sequence[int]) -> None:
        """The batches of the pending tokens, in place of those that `next_step` would choose."""
        self._sizes = deque(sizes)

    def next_step(self, most: int, wanted: Wanted, *, whole: bool) -> Step:
        """What to evaluate next. most: tokens of a batch. wanted: of each piece; "last": only of
        the last one. whole: all batches of what is pending."""
        pending = self.answer.pending
        if self._in_answer or (len(pending) == 1 and wanted == "last"):
            self._sizes = deque([1] * len(pending))
            return Step(pending, self.state, list(self._sizes), one_by_one=True)
        if not self._sizes:
            self._sizes = deque(self._all_kinds.pieces_after(0, len(pending), most))
        sizes = list(self._sizes) if whole else [self._sizes[0]]
        n = sum(sizes)
        if wanted == "last" and n < len(pending):
            wanted = "nothing"
        return Step(pending[:n], self.state, sizes, wanted)

    def start(self) -> None:
        """The evaluation of the pending tokens begins, unless it has begun already."""
        if self._start is None:
            self._start = perf_counter()

    def evaluated(self, step: Step) -> bool:
        """The step has been evaluated. Returns whether nothing is pending any more."""
        for size in step.sizes:
            self._sizes.popleft()
            kind = self._all_kinds.of(size)
            if self._evaluated and self._evaluated[-1][0] == kind:
                self._evaluated[-1][1] += size
            else:
                self._evaluated.append([kind, size])
        self.answer.pending = self.answer.pending[len(step.tokens) :]
        return not self.answer.pending

    @property
    def knows_its_keys(self) -> bool:
        """Not after a shift, nor after a pass that failed: more was evaluated than is left."""
        n_known = len(self._reused) + sum(n for _, n in self._evaluated)
        return 0 < n_known == self.state.length

    def keys(self) -> Keys:
        """Of the tokens of the state; only if knows_its_keys."""
        n = len(self._reused)
        kinds = np.repeat(*np.array(self._evaluated, np.int64).reshape(-1, 2).T)
        return np.concatenate([self._reused, keys_of(self.state.tokens[n:], kinds)])

    # ---- choosing ------------------------------------------------------------------------------

    def take(self, logits: Logits) -> Iterator[Event]:
        """Choose the next token. logits: float32 [vocab], after the pending tokens."""
        assert self._start is not None
        start, self._start = self._start, None
        text = self.answer.take(logits, start)
        token = self.answer.last_token
        assert token is not None
        request = self._request
        if request.logprobs or request.best_of is not None:
            found = _logprob(logits, token, request.top_logprobs or 0)
            self._sum, self._n_summed = self._sum + found.logprob, self._n_summed + 1
            if request.logprobs and not self.answer.ended_by_token:
                self._logprobs.append(found)
        yield from self._told(text, at_end=False)

    def end_if_due(self) -> Iterator[Event]:
        """If no other token is wanted, tells what is left, and last that it has ended.
        ContextFullError if the context is full and on_full is "error"."""
        if not self.answer.goes_on():
            self.ended = True
            yield from self._told(self.answer.rest(), at_end=True)
            yield Finished(self.index, self.answer.result())

    def _told(self, text: str, *, at_end: bool) -> Iterator[Event]:
        tokens = self.answer.tokens_from(self._n_told)
        if text or (tokens and at_end):
            self._n_told += len(tokens)
            logprobs, self._logprobs = tuple(self._logprobs), []
            yield Piece(self.index, text, tokens, logprobs)

    def sibling(self, index: int, state: SequenceState) -> "Choice":
        """Another answer to the same prompt, which has been evaluated. state: without tokens."""
        state.restore(self.state.snapshot())
        sampling = self.answer.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index - self.index)
        answer = self.answer.sibling(state, sampling)
        other = Choice(index, answer, self._request, self._all_kinds, self.keys())
        other._start = self._start
        return other


class RunningRequest:
    """A request that has lanes: the states of sequences, one for each answer."""

    def __init__(
        self, handle: Handle, limits: Limits, states: Sequence[SequenceState], n_bytes: int
    ) -> None:
        """limits: for the prompt, from Limits.for_prompt. n_bytes: that the lanes may take."""
        self.handle, self.request, self.n_bytes = handle, handle.request, n_bytes
        self.begun = False
        self.states, self._limits = list(states), limits
        self.freed: list[SequenceState] = []  # lanes whose answers have ended
        self.choices: list[Choice] = []  # that have not ended
        self._n_kept = 0  # tokens of the last snapshot in the prompt
        self._ranked: list[tuple[float, list[Event]]] | None = None  # of answers, for best_of
        self._held: dict[int, list[Event]] = {}  # events of answers that are ranked later
        if self.request.n_generated > self.request.n:
            self._ranked = []
        embedding = self.request.embedding
        self._pooler = Pooler(embedding) if embedding and embedding != "model" else None

    # ---- the prompt ----------------------------------------------------------------------------

    def begin(
        self, tokenizer: Tokenizer, kinds: Kinds, tree: PrefixTree, most: int
    ) -> Iterator[Event]:
        """Before the prompt is evaluated: take from the tree what may be reused. most: tokens of a
        batch."""
        handle, state = self.handle, self.states[0]
        self.begun, handle.started = True, perf_counter()
        handle.reach("prompt")
        reused = self._reuse(kinds, tree)
        answer = Continuation(
            handle.prompt,
            state,
            tokenizer,
            self.request.sampling,
            self._limits,
            self.request.grammar,
            # A forced token has a logprob, too, which takes its logits.
            forces=not (self.request.logprobs or self.request.best_of),
            shown=self.request.shown,
        )
        choice = Choice(0, answer, self.request, kinds, reused)
        if self.request.reuses == "exact":
            most = self._piece(choice, most)
            choice.cut(kinds.pieces_after(state.length, len(handle.prompt), most))
        self.choices = [choice]
        handle.reused_tokens = self._n_kept = state.length
        if self._wanted == "last" and not self._limits.max_new_tokens:
            yield from self._end_without_tokens()

    def _end_without_tokens(self) -> Iterator[Event]:
        for event in self.choices[0].end_if_due():
            if isinstance(event, Finished):
                for index in range(self.request.n):
                    yield replace(event, choice=index)
                self.choices = []

    @property
    def _wanted(self) -> Wanted:
        """Of each piece of the prompt."""
        if self._pooler is not None:
            return "hidden"
        return "all" if self.request.prompt_logprobs else "last"

    def _reuse(self, kinds: Kinds, tree: PrefixTree) -> Keys:
        """Puts the longest beginning of the prompt that may be reused into the first lane."""
        state = self.states[0]
        state.clear()
        found = self._reusable(kinds, tree)
        if found is None:
            return keys_of([], 0)
        snapshot, keys = found
        state.restore(snapshot)
        state.trim(len(keys))
        return keys

    def n_reusable_now(self, kinds: Kinds, tree: PrefixTree) -> int:
        """Tokens of the prompt that need not be evaluated if it begins now."""
        found = self._reusable(kinds, tree)
        return 0 if found is None else len(found[1])

    def n_reusable(self, most: int, kinds: Kinds) -> int:
        """Tokens of the prompt that may be reused where the first `most` of them were evaluated, in
        the way that this prompt wants."""
        n = len(self.handle.prompt)
        return kinds.reusable(most, n) if self.request.reuses == "exact" else min(most, n - 1)

    def _reusable(self, kinds: Kinds, tree: PrefixTree) -> tuple[Snapshot, Keys] | None:
        """The longest beginning of the prompt that may be reused, if there is one: a sequence that
        has it, and its keys."""
        prompt, reuses = self.handle.prompt, self.request.reuses
        if reuses == "none" or (self._wanted != "last" and self.request.embedding != "last"):
            return None  # something of all tokens is wanted
        any_kind = reuses == "any"
        keys = keys_of(prompt, 0 if any_kind else kinds.by_token(len(prompt)))
        return tree.find(keys, lambda most: self.n_reusable(most, kinds), any_kind=any_kind)

    def next_step(self, choice: Choice, most: int, *, whole: bool) -> Step:
        """See Choice.next_step."""
        if self.handle.stage != "prompt":
            return choice.next_step(most, "last", whole=whole)
        whole = whole and self._wanted != "all"
        return choice.next_step(self._piece(choice, most), self._wanted, whole=whole)

    def _piece(self, choice: Choice, most: int) -> int:
        """The most tokens of a batch; few if the logits of all of them are wanted."""
        if self._wanted != "all":
            return most
        return min(most, max(1, _LOGITS_BYTES // (4 * choice.answer.vocab_size)))

    def evaluated(
        self, choice: Choice, step: Step, found: NDArray[np.float32], tree: PrefixTree
    ) -> Iterator[Event]:
        """A step of the choice has been evaluated. found: what it wanted."""
        complete = choice.evaluated(step)
        if self.handle.stage == "prompt":
            yield self._progress(choice, step, found)
            self._keep_in_prompt(choice, tree, complete=complete)
            if self._pooler is not None:
                self._pooler.add(found)
                if complete:
                    self.choices = []
                    n, n_reused = len(self.handle.prompt), self.handle.reused_tokens
                    yield Embedded(self._pooler.embedding(), n, n_reused)
                return
        if complete:
            yield from self._take(choice, found[-1], tree)

    def _progress(self, choice: Choice, step: Step, found: NDArray[np.float32]) -> PromptProgress:
        prompt, done = self.handle.prompt, choice.state.length
        logprobs: list[TokenLogprob] = []
        if self._wanted == "all":
            following = prompt[done - len(step.tokens) + 1 : done + 1]
            for token, logits in zip(following, found, strict=False):
                logprobs.append(_logprob(logits, token, self.request.top_logprobs or 0))
        return PromptProgress(done, len(prompt), self.handle.reused_tokens, tuple(logprobs))

    def _keep_in_prompt(self, choice: Choice, tree: PrefixTree, *, complete: bool) -> None:
        """At the end of a prompt, and inside a prompt that cannot be cut later."""
        done = choice.state.length
        if not complete:
            apart = max(SNAPSHOT_TOKENS, len(self.handle.prompt) // MOST_SNAPSHOTS)
            is_due = done - self._n_kept >= apart or choice.is_before_last_piece
            if choice.state.layout.can_be_cut or not is_due:
                return
        self.keep(choice, tree)
        self._n_kept = done

    def within_prompt(self, step: Step, share: float) -> Iterator[Event]:
        """A share of a pass over the step is done."""
        if self.handle.stage == "prompt" and share < 1.0:
            done = step.state.length + int(share * len(step.tokens))
            yield PromptProgress(done, len(self.handle.prompt), self.handle.reused_tokens)

    def keep(self, choice: Choice, tree: PrefixTree) -> None:
        """Keep the sequence of a choice as it is now, for later prompts, if there is memory."""
        if choice.knows_its_keys and tree.most_bytes:
            with suppress(MemoryError):
                tree.add(choice.keys(), choice.state.snapshot())

    # ---- the answers ---------------------------------------------------------------------------

    def _take(self, choice: Choice, logits: Logits, tree: PrefixTree) -> Iterator[Event]:
        """Choose the next token of an answer; after the prompt, the first one of each answer."""
        chosen = [choice]
        if self.handle.stage == "prompt":
            if not self._limits.max_new_tokens:
                yield from self._end_without_tokens()
                return
            self.handle.first_token = perf_counter()
            self.handle.reach("answer")
            others = enumerate(self.states[1:], 1)
            chosen += [choice.sibling(index, state) for index, state in others]
            self.choices = list(chosen)
        for each in chosen:
            n_before = each.answer.n_answer
            yield from self._ranked_later(each, each.take(logits))
            self.handle.answer_tokens += each.answer.n_answer - n_before
            yield from self._ranked_later(each, each.end_if_due())
            if each.ended:
                self.keep(each, tree)
                self.choices.remove(each)
                self.states.remove(each.state)
                self.freed.append(each.state)
        if not self.choices and self._ranked is not None:
            yield from self._best(self._ranked)

    def _ranked_later(self, choice: Choice, events: Iterator[Event]) -> Iterator[Event]:
        """The events, but with best_of only when it is known which answers are the best."""
        if self._ranked is None:
            yield from events
            return
        held = self._held.setdefault(choice.index, [])
        held += events
        if choice.ended:
            self._ranked.append((choice.mean_logprob, self._held.pop(choice.index)))

    def _best(self, ranked: list[tuple[float, list[Event]]]) -> Iterator[Event]:
        ranked.sort(key=lambda each: -each[0])
        for index, (_, events) in enumerate(ranked[: self.request.n]):
            for event in events:
                if isinstance(event, Piece | Finished):
                    yield replace(event, choice=index)


def _logprob(logits: Logits, token: int, n_top: int) -> TokenLogprob:
    logprobs = log_probabilities(logits)
    top: list[tuple[int, float]] = []
    if n_top:
        n_top = min(n_top, len(logprobs))
        least = -np.partition(-logprobs, n_top - 1)[n_top - 1]
        ids = np.flatnonzero(logprobs >= least)  # more than n_top if some are equally likely
        ids = ids[np.argsort(-logprobs[ids], kind="stable")][:n_top]
        top = list(zip(ids.tolist(), logprobs[ids].tolist(), strict=True))
    return TokenLogprob(token, float(logprobs[token]), tuple(top))
