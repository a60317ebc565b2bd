"""A request that runs in a scheduler: its prompt in pieces, then its answers."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import numpy as np

from airllm.engine.continuation import Continuation
from airllm.engine.decoder import Logits, Step
from airllm.engine.pieces import Kinds
from airllm.engine.requests import Event, Finished, Handle, Piece, PromptProgress
from airllm.engine.settings import Limits
from airllm.state.prefix_tree import Keys, PrefixTree, keys_of
from airllm.state.sequence import SequenceState
from airllm.text.tokenizer import Tokenizer

__all__ = ["Choice", "Job"]

# Of sequences that cannot be cut at any length, the tree keeps snapshots inside a prompt: this many
# tokens apart, or further so that a prompt has at most so many.
SNAPSHOT_TOKENS, MOST_SNAPSHOTS = 512, 8


class Choice:
    """One answer of a job: the batches of its next tokens, and what was not told yet."""

    def __init__(self, index: int, answer: Continuation, kinds: Kinds, reused: Keys) -> None:
        """reused: the keys of the tokens that the answer's state holds."""
        self.index, self.answer = index, answer
        self._all_kinds = kinds
        self._reused = reused
        self._evaluated: list[list[int]] = []  # [kind, number of tokens], after the reused ones
        self._sizes: deque[int] = deque()  # of the batches of the pending tokens
        self._start: float | None = None  # of the evaluation of the pending tokens
        self._n_told = 0  # tokens of the answer
        self.ended = False

    @property
    def state(self) -> SequenceState:
        return self.answer.state

    @property
    def knows_its_keys(self) -> bool:
        """Not after a shift, nor after a pass that failed."""
        n_known = len(self._reused) + sum(n for _, n in self._evaluated)
        return not self.answer.n_shifted and 0 < n_known == self.state.length

    def keys(self) -> Keys:
        """Of the tokens of the state; only if knows_its_keys."""
        n = len(self._reused)
        kinds = np.repeat(*np.array(self._evaluated, np.int64).reshape(-1, 2).T)
        return np.concatenate([self._reused, keys_of(self.state.tokens[n:], kinds)])

    @property
    def is_before_last_piece(self) -> bool:
        """Whether one more batch evaluates all pending tokens."""
        return len(self._sizes) == 1

    # ---- evaluating ----------------------------------------------------------------------------

    def cut(self, sizes: Sequence[int]) -> None:
        """The batches of the pending tokens, in place of those that `next_step` would choose."""
        self._sizes = deque(sizes)

    def next_step(self, most: int, *, whole: bool) -> Step:
        """What to evaluate next. most: tokens of a batch. whole: all batches of what is pending."""
        pending = self.answer.pending
        if self._start is None:
            self._start = perf_counter()
        if not self._sizes:
            n = len(pending)
            self._sizes = deque([1] if n == 1 else self._all_kinds.pieces_after(0, n, most))
        sizes = list(self._sizes) if whole else [self._sizes[0]]
        n = sum(sizes)
        return Step(pending[:n], self.state, sizes, wants_logits=n == len(pending))

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

    def take(self, logits: Logits) -> Iterator[Event]:
        """Choose the next token. logits: after the pending tokens."""
        assert self._start is not None
        text = self.answer.take(logits, self._start)
        self._start = None
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
            yield Piece(self.index, text, tokens)

    def sibling(self, index: int, state: SequenceState) -> "Choice":
        """Another answer to the same prompt, which has been evaluated. state: without tokens."""
        state.restore(self.state.snapshot())
        sampling = self.answer.sampling
        if sampling.seed is not None:
            sampling = replace(sampling, seed=sampling.seed + index - self.index)
        other = Choice(index, self.answer.sibling(state, sampling), self._all_kinds, self.keys())
        other._start = self._start
        return other


class Job:
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

    # ---- the prompt ----------------------------------------------------------------------------

    def begin(
        self, tokenizer: Tokenizer, kinds: Kinds, tree: PrefixTree, most: int
    ) -> Iterator[Event]:
        """Before the prompt is evaluated: take from the tree what may be reused. most: tokens of a
        batch."""
        handle, state = self.handle, self.states[0]
        self.begun, handle.started, handle.stage = True, perf_counter(), "prompt"
        reused = self._reuse(kinds, tree)
        answer = Continuation(handle.prompt, state, tokenizer, self.request.sampling, self._limits)
        choice = Choice(0, answer, kinds, reused)
        if self.request.reuses == "exact":
            choice.cut(kinds.pieces_after(state.length, len(handle.prompt), most))
        self.choices = [choice]
        handle.reused_tokens = self._n_kept = state.length
        for event in choice.end_if_due():  # no tokens are wanted: all answers are the same
            yield event
            if isinstance(event, Finished):
                for index in range(1, self.request.n):
                    yield replace(event, choice=index)
                self.choices = []

    def _reuse(self, kinds: Kinds, tree: PrefixTree) -> Keys:
        """Puts the longest beginning of the prompt that may be reused into the first lane."""
        prompt, state = self.handle.prompt, self.states[0]
        state.clear()
        n, found = len(prompt), None
        if self.request.reuses == "exact":
            keys = keys_of(prompt, kinds.by_token(n))
            found = tree.find(keys, lambda most: kinds.reusable(most, n))
        elif self.request.reuses == "any":
            found = tree.find(keys_of(prompt, 0), lambda most: min(most, n - 1), any_kind=True)
        if found is None:
            return keys_of([], 0)
        snapshot, keys = found
        state.restore(snapshot)
        state.trim(len(keys))
        return keys

    def evaluated(self, choice: Choice, step: Step, tree: PrefixTree) -> Iterator[Event]:
        """A step of the choice has been evaluated. If it has logits, `take` follows."""
        complete = choice.evaluated(step)
        if self.handle.stage == "prompt":
            done, total = choice.state.length, len(self.handle.prompt)
            apart = max(SNAPSHOT_TOKENS, total // MOST_SNAPSHOTS)
            if complete:
                self.keep(choice, tree)
            elif not choice.state.layout.can_be_cut and (
                done - self._n_kept >= apart or choice.is_before_last_piece
            ):
                self.keep(choice, tree)
                self._n_kept = done
            yield PromptProgress(done, total, self.handle.reused_tokens)

    def within_prompt(self, step: Step, share: float) -> Iterator[Event]:
        """A share of a pass over the step is done."""
        if self.handle.stage == "prompt" and share < 1.0:
            done = step.state.length + int(share * len(step.tokens))
            yield PromptProgress(done, len(self.handle.prompt), self.handle.reused_tokens)

    def keep(self, choice: Choice, tree: PrefixTree) -> None:
        """Keep the sequence of a choice as it is now, for later prompts."""
        if choice.knows_its_keys and tree.most_bytes:
            tree.add(choice.keys(), choice.state.snapshot())

    # ---- the answers ---------------------------------------------------------------------------

    def take(self, choice: Choice, logits: Logits, tree: PrefixTree) -> Iterator[Event]:
        """Choose the next token of an answer; after the prompt, the first one of each answer."""
        chosen = [choice]
        if self.handle.stage == "prompt":
            self.handle.stage, self.handle.first_token = "answer", perf_counter()
            others = enumerate(self.states[1:], 1)
            chosen += [choice.sibling(index, state) for index, state in others]
            self.choices = list(chosen)
        for each in chosen:
            yield from each.take(logits)
            self.handle.answer_tokens += 1
            yield from each.end_if_due()
            if each.ended:
                self.keep(each, tree)
                self.choices.remove(each)
                self.states.remove(each.state)
                self.freed.append(each.state)
