"""The forward pass: tokens through embedding, layers and head, one layer at a time."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import MOST_THREADS, Executor
from airllm.backends.profiling import Profile
from airllm.engine.batches import (
    Buffers,
    DecoderBatch,
    Logits,
    cut_sequence,
    cut_single_tokens,
    tokens_by_state,
)
from airllm.engine.last_hidden import LastHidden
from airllm.engine.next_tokens import NextTokens
from airllm.engine.pieces import MOST_ROUNDED_TO_16_BITS, Kinds, even_batches
from airllm.engine.steps import Step
from airllm.models.ngrams import TABLE, row_numbers
from airllm.models.rope_rows import RopeRows
from airllm.state.layout import StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import SequenceState
from airllm.util.progress import OnProgress, part_of
from airllm.weights.open_weights import layer_executor, open_weights
from airllm.weights.plan_model import PlannedModel
from airllm.weights.row_table import RowTable


class Decoder:
    """A model ready to run: executors, weights, a sequence's state, buffers between the graphs.

    The constructor allocates all of it but the state's pages, which come as the sequence grows. The
    only other allocation of an evaluation that grows with the model is the residual of a pass over
    several batches, and what else the layers read of each token; if layers are streamed, the plan
    counts it.
    """

    def __init__(
        self,
        planned: PlannedModel,
        *,
        decode_threads: int = 0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """decode_threads: the most threads for a pass of a single token; 0 for all."""
        model, backend, plan = planned.model, planned.backend, planned.plan
        config, batch_size = model.config, plan.batch_size
        self._model, self.backend, self.plan, self._batch_size = model, backend, plan, batch_size
        self._decode_threads = min(int(decode_threads), MOST_THREADS)
        self._planned = planned
        self.layout = StateLayout(model.states, planned.kv_type)
        self.state = self.new_state(plan.context, self.new_pool())
        kinds = [layer_executor(backend, kind.graph, batch_size, plan) for kind in model.kinds]
        self._layers: list[Executor] = [kinds[kind] for kind in model.kind_of_layer]
        self._embed: Executor = backend.executor(model.embed, batch_size)
        self._head: Executor = backend.executor(model.head, batch_size)
        self._carried = self._carried_rows(batch_size)
        self._last_logits = np.empty(config.vocab_size, np.float32)
        self._last_row = self._last_logits[np.newaxis]
        self._rope = [RopeRows(each, plan.context) for each in model.rotations]
        index = {id(each): number for number, each in enumerate(model.rotations)}
        # What guesses by the model's next-token head, for `self.state`; None without.
        self.next_tokens: NextTokens | None = None
        if model.next_head is not None:
            self.next_tokens = NextTokens(
                model, backend, planned.kv_type, plan.context, self._decode_threads
            )
        self._rope_of = [  # of each kind: the index of a table, by the graph's buffer
            {name: index[id(each)] for name, each in kind.rotations.items()} for kind in model.kinds
        ]
        self._embedded = model.carried_to(model.embed)
        self._carried_to = [model.carried_to(kind.graph) for kind in model.kinds]
        self._carried_to_head = model.carried_to(model.head)
        self._ngrams = RowTable(planned.file, TABLE) if config.ngrams is not None else None
        self._closed = False
        self.weights = open_weights(
            planned.file,
            model,
            backend,
            plan,
            planned.parts,
            embed=self._embed,
            layers=self._layers,
            head=self._head,
            next_head=self.next_tokens.executors if self.next_tokens else (),
            on_progress=on_progress,
        )
        if self.next_tokens is not None:
            tables = {id(each): self._rope[at] for at, each in enumerate(model.rotations)}
            self.next_tokens.use(self.weights, tables)

    def close(self) -> None:
        """Stop reading ahead. From now on an evaluation raises RuntimeError."""
        self._closed = True
        self.weights.close()

    @property
    def streams(self) -> bool:
        """Whether each pass waits for the disk."""
        return self.weights.streams

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffers between and inside the graphs."""
        return self.plan.buffer_bytes

    @property
    def kv_bytes(self) -> int:
        """Bytes of what is kept of the sequence so far, also by the next-token head."""
        return self.state.nbytes + (self.next_tokens.nbytes if self.next_tokens else 0)

    @property
    def kinds(self) -> Kinds:
        """Which batches give the same bits."""
        return Kinds(self._batch_size, self.backend.any_batch)

    def state_bytes(self, n_tokens: int) -> int:
        """The most bytes that a sequence of up to n_tokens takes."""
        together = n_tokens if self.streams else 0
        return self.layout.nbytes(n_tokens, self._batch_size, together)

    def memory_for_sequences(self) -> int | None:
        """Bytes that further sequences may take within the budget: what the plan leaves, and what
        it has for `self.state` and that one does not use. None without a budget."""
        plan = self.plan
        if plan.budget_bytes is None:
            return None
        left = plan.budget_bytes - plan.total_bytes + plan.kv_cache_bytes - self.state.nbytes
        return max(left, plan.kv_cache_bytes)

    @property
    def batch_size(self) -> int:
        """The most tokens in one batch."""
        return self._batch_size

    @contextmanager
    def profile(self) -> Iterator[Profile]:
        """Inside the `with`, record the time of each op; see Profile."""
        profile = Profile(self.layout.row_bytes)
        before = (self._embed, self._layers, self._head)
        model = self._model
        self._embed = profile.wrap(self._embed, model.embed)
        self._layers = [
            profile.wrap(layer, model.kinds[kind].graph)
            for layer, kind in zip(self._layers, model.kind_of_layer, strict=True)
        ]
        self._head = profile.wrap(self._head, model.head)
        try:
            with self.next_tokens.profile(profile) if self.next_tokens else nullcontext():
                yield profile
        finally:
            self._embed, self._layers, self._head = before

    def new_pool(self) -> PagePool:
        """Pages for sequences, which may share them."""
        return PagePool(self.backend.memory, self.layout.page_bytes)

    def new_state(self, capacity: int, pool: PagePool) -> SequenceState:
        """A further sequence, without tokens. MemoryError if there is no room."""
        return SequenceState(self.layout, pool, self.backend.sequence_state, capacity)

    def evaluate(
        self,
        tokens: NDArray[np.int32],
        logits: Logits | None = None,
        on_progress: OnProgress | None = None,
        state: SequenceState | None = None,
    ) -> Logits:
        """Append tokens to a sequence, a batch at a time, and compute logits.

        tokens: int32 [n], at least one, valid ids that fit the context; this is not checked.
        logits: float32 [n, vocab], filled and returned; if None, only the last row is computed and
            returned, float32 [vocab], in a buffer that the next call overwrites.
        on_progress: called with (done, total) after each step: one layer for one batch of tokens.
        state: `self.state` unless given.

        If layers are streamed, all batches go through a layer before the next layer is read, so
        that a prompt of any length reads the layers once.

        After an exception, also KeyboardInterrupt, the sequence has the batches of complete passes,
        or fewer tokens if it cannot be cut there; see SequenceState.trim.
        FormatError if the file has changed since it was opened.
        """
        state = self.state if state is None else state
        wanted = self._last_row if logits is None else logits
        spans = even_batches(len(tokens), self._batch_size)
        batches = cut_sequence(tokens, state, wanted, spans)
        passes = [batches] if self.streams else [[batch] for batch in batches]
        for index, together in enumerate(passes):
            n_layers = self._model.config.n_layers
            before, total = n_layers * index, n_layers * len(passes)
            self._pass(together, part_of(on_progress, before, n_layers, total))
        return self._last_logits if logits is None else logits

    def evaluate_batch(
        self,
        tokens: NDArray[np.int32],
        states: Sequence[SequenceState],
        logits: Logits,
        on_progress: OnProgress | None = None,
    ) -> Logits:
        """Append one token to each of several sequences, in one pass through the layers.

        tokens: int32 [n], not checked, as in `evaluate`.
        logits: float32 [n, vocab], filled and returned.
        on_progress: called with (done, total) layers.
        """
        sequences = [(1, state.length, state) for state in states]
        self._pass(cut_single_tokens(tokens, sequences, logits, self._batch_size), on_progress)
        return logits

    def evaluate_ahead(
        self,
        tokens: NDArray[np.int32],
        logits: Logits,
        on_progress: OnProgress | None = None,
    ) -> Logits:
        """Evaluate tokens after those of `self.state`, of which the first ones may turn out to
        belong to it: see SequenceState.accept, which must follow. Each token has the same numbers
        as if it came alone.

        tokens: int32 [n], not checked, as in `evaluate`. logits: float32 [n, vocab], filled and
        returned. on_progress: called with (done, total) layers.
        """
        sequences = [(1, self.state.length + i, self.state) for i in range(len(tokens))]
        batches = cut_single_tokens(tokens, sequences, logits, self._batch_size)
        self._pass(batches, on_progress, ahead=True)
        return logits

    def evaluate_one_by_one(self, tokens: Sequence[int]) -> Logits:
        """Append tokens to `self.state` in one pass, each with the numbers that it has alone.
        Returns the logits of the last one, float32 [vocab]."""
        memory = np.empty((len(tokens), len(self._last_logits)), np.float32)
        (logits,) = self.evaluate_each([Step(tokens, self.state, one_by_one=True)], memory)
        last: Logits = logits[-1]
        return last

    def evaluate_each(
        self,
        steps: Sequence[Step],
        logits: Logits,
        on_progress: OnProgress | None = None,
    ) -> list[NDArray[np.float32]]:
        """Append tokens to each of several sequences, in one pass: all go through a layer before
        the next layer is read. Tokens one by one share batches, as in evaluate_batch. The others
        get batches of their own, so that the numbers of a prompt do not depend on the other
        sequences.

        steps: of different sequences. logits: float32 [n, vocab], memory for the logits of all
        steps, see Step.n_logits. Returns what each step wants: the logits, [n_logits, vocab], as a
        view of that memory, or the hidden states.
        on_progress: called with (done, total) layers.
        """
        order = sorted(range(len(steps)), key=lambda index: not steps[index].one_by_one)
        stops = [0, *accumulate(steps[index].n_logits for index in order)]
        found = {index: logits[stops[at] : stops[at + 1]] for at, index in enumerate(order)}
        singles = [step for step in steps if step.one_by_one]
        batches: list[DecoderBatch] = []
        if singles:
            ids = np.array([token for step in singles for token in step.tokens], np.int32)
            sequences = [
                (1, step.state.length + at, step.state)
                for step in singles
                for at in range(len(step.tokens))
            ]
            most = min(self._batch_size, MOST_ROUNDED_TO_16_BITS)
            batches += cut_single_tokens(ids, sequences, logits, most)
        for index in order[len(singles) :]:
            step, rows = steps[index], found[index]
            spans = step.batches(self._batch_size)
            of_step = cut_sequence(np.array(step.tokens, np.int32), step.state, rows, spans)
            if step.wanted == "hidden":
                found[index] = np.empty((len(step.tokens), self._hidden.width), np.float32)
                of_step = [
                    replace(batch, hidden=found[index][start:stop])
                    for batch, (start, stop) in zip(of_step, spans, strict=True)
                ]
            batches += of_step
        self._pass(batches, on_progress)
        return [found[index] for index in range(len(steps))]

    def _pass(
        self, batches: Sequence[DecoderBatch], on_layer: OnProgress | None, *, ahead: bool = False
    ) -> None:
        """Run all batches through a layer before the next layer, so that streamed layers are read
        once for all of them. Each batch has the same numbers as alone.

        on_layer: called with (done, total) layers; a call then runs one layer only. ahead: the
        tokens are guesses, which do not belong to their sequence yet.
        An exception leaves the sequences as they were, or shorter if they cannot be cut there.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        appended = tokens_by_state(batches)
        try:
            for state, _ in appended.values():
                state.begin(ahead=ahead)
            self._run(batches, on_layer, {key: tokens for key, (_, tokens) in appended.items()})
        except BaseException:
            for state, _ in appended.values():
                state.recover()
            raise
        if not ahead:
            for state, tokens in appended.values():
                state.advance(tokens)

    def _run(
        self,
        batches: Sequence[DecoderBatch],
        on_layer: OnProgress | None,
        appended: Mapping[int, Sequence[int]],
    ) -> None:
        """appended: the tokens of the pass, by the id() of their sequence's state."""
        n = sum(len(batch.tokens) for batch in batches)
        carried: list[Buffers] = []
        room, first = self._carried, 0
        for batch in batches:
            end = first + len(batch.tokens)
            if end > self._batch_size and room is self._carried:
                # The other batches need rows of their own.
                room, end = self._carried_rows(n - first), end - first
                first = 0
            carried.append({name: rows[first:end] for name, rows in room.items()})
            first = end
        threads = self._decode_threads if n == 1 else 0
        with self.weights.embed() as bound:
            for batch, rows in zip(batches, carried, strict=True):
                buffers = {"tokens": batch.tokens} | {name: rows[name] for name in self._embedded}
                if self._model.embed.has("positions"):
                    buffers["positions"] = batch.positions
                batch.run_whole(self._embed, bound, buffers, len(batch.tokens), threads)
        for batch, rows in zip(batches, carried, strict=True):
            self._look_up(batch, rows, appended)
        self._run_layers(batches, carried, threads, on_layer)
        if self.next_tokens is not None and batches[0].sequences[0][2] is self.state:
            # Such a pass has no other sequence, and its tokens are neighbours.
            self.next_tokens.follow(
                self.state.tokens,
                [
                    (batch.tokens, batch.sequences[0][1], rows["residual"])
                    for batch, rows in zip(batches, carried, strict=True)
                ],
            )
        for batch, rows in zip(batches, carried, strict=True):
            if batch.hidden is not None:
                self._hidden.run(rows, batch.hidden, threads)
        if any(len(batch.logits) for batch in batches):
            with self.weights.head() as bound:
                for batch, rows in zip(batches, carried, strict=True):
                    self._run_head(bound, batch, rows, threads)

    def _look_up(
        self, batch: DecoderBatch, rows: Buffers, appended: Mapping[int, Sequence[int]]
    ) -> None:
        """Reads the rows of a table that the n-grams of the batch's tokens choose."""
        if self._ngrams is None:
            return
        found = self._model.config.ngrams
        assert found is not None
        before = len(found.multipliers) - 1
        numbers = []
        for count, past, state in batch.sequences:
            following = appended[id(state)]
            tokens = state.tokens_between(past - before, past + count, following)
            numbers.append(row_numbers(found, tokens))  # [count, n_heads]
        looked_up = self._ngrams.rows(np.concatenate(numbers))  # [n_tokens, n_heads, row_width]
        rows["ngrams"][...] = looked_up.reshape(len(batch.tokens), found.width)

    @cached_property
    def _hidden(self) -> LastHidden:
        return LastHidden(self._planned, self._batch_size)

    def _carried_rows(self, n: int) -> Buffers:
        """Memory for what passes from graph to graph: the residual, [n, hidden_size], which each
        layer changes in place, and others."""
        widths = self._model.carried
        return {name: np.empty((n, width), np.float32) for name, width in widths.items()}

    def _run_layers(
        self,
        batches: Sequence[DecoderBatch],
        carried: Sequence[Buffers],
        threads: int,
        on_layer: OnProgress | None,
    ) -> None:
        """carried: for each batch, see _carried_rows."""
        n_layers, kind_of_layer = self._model.config.n_layers, self._model.kind_of_layer
        runs = []
        for batch, rows in zip(batches, carried, strict=True):
            positions = [(past, count) for count, past, _ in batch.sequences]
            angles = [table.rows(positions) for table in self._rope]  # [n, rope_dims] each
            buffers = [  # for each kind of layer
                {name: rows[name] for name in names}
                | {name: angles[index] for name, index in rope.items()}
                for names, rope in zip(self._carried_to, self._rope_of, strict=True)
            ]
            runs.append((buffers, batch.sequences, batch.backings))
        # Ctrl-C waits for the end of a call, so a call runs several layers only for few tokens.
        few = on_layer is None and sum(len(batch.tokens) for batch in batches) <= 64
        at_once = self.weights.layers_at_once if few else 1
        for start, stop in _runs_of_one_kind(kind_of_layer, at_once):
            with self.weights.layers(start, stop) as bound:
                for buffers, sequences, backings in runs:
                    for count, past, state in sequences:
                        state.make_room(start, stop, past, count)
                    self._layers[start].run_layers(
                        bound, buffers[kind_of_layer[start]], backings, start, threads=threads
                    )
                    for count, past, state in sequences:
                        if count > 1:
                            state.let_go(start, stop, past + count)
            if on_layer is not None:
                on_layer(stop, n_layers)

    def _run_head(self, bound: Any, batch: DecoderBatch, carried: Buffers, threads: int) -> None:
        n = len(batch.logits)
        buffers = {name: carried[name][len(batch.tokens) - n :] for name in self._carried_to_head}
        buffers["logits"] = batch.logits
        if n:
            batch.run_whole(self._head, bound, buffers, n, threads)


@lru_cache
def _runs_of_one_kind(kind_of_layer: tuple[int, ...], most: int) -> list[tuple[int, int]]:
    """(start, stop) of runs of at most `most` consecutive layers of one kind."""
    runs, start = [], 0
    for index in range(1, len(kind_of_layer) + 1):
        at_end = index == len(kind_of_layer)
        if at_end or kind_of_layer[index] != kind_of_layer[start] or index - start == most:
            runs.append((start, index))
            start = index
    return runs
