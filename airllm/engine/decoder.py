"""The forward pass: tokens through embedding, layers and head, one layer at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airllm.backends import MOST_THREADS, Executor
from airllm.backends.profiling import Profile
from airllm.engine.last_hidden import LastHidden
from airllm.engine.pieces import MOST_ROUNDED_TO_16_BITS, Kinds, even_batches
from airllm.models.rope_rows import RopeRows
from airllm.state.layout import StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import CHECKPOINTS, SequenceState
from airllm.util.progress import OnProgress, part_of
from airllm.weights.open_weights import layer_executor, open_weights
from airllm.weights.plan_model import PlannedModel

Logits = NDArray[np.float32]


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
        self._rounds = planned.activations == "auto"
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
        self._rope_of = [  # of each kind: the index of a table, by the graph's buffer
            {name: index[id(each)] for name, each in kind.rotations.items()} for kind in model.kinds
        ]
        self._embedded = model.carried_to(model.embed)
        self._carried_to = [model.carried_to(kind.graph) for kind in model.kinds]
        self._carried_to_head = model.carried_to(model.head)
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
            on_progress=on_progress,
        )

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
    def kinds(self) -> Kinds:
        """Which batches give the same bits."""
        return Kinds(self._batch_size, self.backend.any_batch, self._rounds)

    def state_bytes(self, n_tokens: int) -> int:
        """The most bytes that a sequence of up to n_tokens takes."""
        n_checkpoints = 0 if self.layout.can_be_cut else CHECKPOINTS
        size = min(self._batch_size, n_tokens)
        together = n_tokens if self.streams else size
        return self.layout.nbytes(n_tokens, size, n_checkpoints, together)

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
        parts = self._batches(tokens, state, self._last_row if logits is None else logits)
        passes = [parts] if self.streams else [[part] for part in parts]
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
        self._pass(self._single_tokens(tokens, sequences, logits), on_progress)
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
        self._pass(self._single_tokens(tokens, sequences, logits), on_progress, ahead=True)
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
        steps: Sequence["Step"],
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
        parts = []
        if singles:
            ids = np.array([token for step in singles for token in step.tokens], np.int32)
            sequences = [
                (1, step.state.length + at, step.state)
                for step in singles
                for at in range(len(step.tokens))
            ]
            parts += self._single_tokens(ids, sequences, logits, MOST_ROUNDED_TO_16_BITS)
        for index in order[len(singles) :]:
            step, rows = steps[index], found[index]
            batches = step.batches(self._batch_size)
            of_step = self._batches(np.array(step.tokens, np.int32), step.state, rows, batches)
            if step.wanted == "hidden":
                found[index] = np.empty((len(step.tokens), self._hidden.width), np.float32)
                of_step = [
                    replace(part, hidden=found[index][start:stop])
                    for part, (start, stop) in zip(of_step, batches, strict=True)
                ]
            parts += of_step
        self._pass(parts, on_progress)
        return [found[index] for index in range(len(steps))]

    def _batches(
        self,
        tokens: NDArray[np.int32],
        state: SequenceState,
        logits: Logits,
        batches: Sequence[tuple[int, int]] | None = None,
    ) -> list["_Part"]:
        """Cuts the tokens of one sequence into batches. logits: of the last len(logits) tokens.
        batches: (start, stop) of each; even ones unless given."""
        parts, n = [], len(tokens)
        for start, stop in batches or even_batches(n, self._batch_size):
            # The batch's rows of the logits, which belong to the tokens from n - len(logits) on.
            own = logits[max(start + len(logits) - n, 0) : max(stop + len(logits) - n, 0)]
            sequence = stop - start, state.length + start, state
            parts.append(_Part(tokens[start:stop], [sequence], own))
        return parts

    def _single_tokens(
        self,
        tokens: NDArray[np.int32],
        sequences: Sequence["_Sequence"],
        logits: Logits,
        most: int | None = None,
    ) -> list["_Part"]:
        """Cuts sequences of one token each into batches of up to `most`. logits: the first rows are
        used."""
        most = min(self._batch_size, most or self._batch_size)
        return [
            _Part(tokens[start:stop], sequences[start:stop], logits[start:stop])
            for start, stop in even_batches(len(sequences), most)
        ]

    def _pass(
        self, parts: Sequence["_Part"], on_layer: OnProgress | None, *, ahead: bool = False
    ) -> None:
        """Run all parts through a layer before the next layer, so that streamed layers are read
        once for all of them. Each part has the same numbers as alone.

        on_layer: called with (done, total) layers; a call then runs one layer only. ahead: the
        tokens are guesses, which do not belong to their sequence yet.
        An exception leaves the sequences as they were, or shorter if they cannot be cut there.
        """
        if self._closed:
            raise RuntimeError("the engine is closed")
        appended: dict[int, tuple[SequenceState, list[int]]] = {}
        for part in parts:
            ids, first = part.tokens.tolist(), 0
            for count, _, state in part.sequences:
                appended.setdefault(id(state), (state, []))[1].extend(ids[first : first + count])
                first += count
        try:
            for state, _ in appended.values():
                state.begin(ahead=ahead)
            self._run(parts, on_layer)
        except BaseException:
            for state, _ in appended.values():
                state.recover()
            raise
        if not ahead:
            for state, tokens in appended.values():
                state.advance(tokens)

    def _run(self, parts: Sequence["_Part"], on_layer: OnProgress | None) -> None:
        n = sum(len(part.tokens) for part in parts)
        # Several batches in one pass need rows for all of their tokens.
        all_rows = self._carried if n <= self._batch_size else self._carried_rows(n)
        carried: list[_Buffers] = []
        first = 0
        for part in parts:
            end = first + len(part.tokens)
            carried.append({name: rows[first:end] for name, rows in all_rows.items()})
            first = end
        threads = self._decode_threads if n == 1 else 0
        with self.weights.embed() as bound:
            for part, rows in zip(parts, carried, strict=True):
                buffers = {"tokens": part.tokens} | {name: rows[name] for name in self._embedded}
                _run_whole(self._embed, bound, buffers, part, len(part.tokens), threads)
        self._run_layers(parts, carried, threads, on_layer)
        for part, rows in zip(parts, carried, strict=True):
            if part.hidden is not None:
                self._hidden.run(rows, part.hidden, threads)
        if any(len(part.logits) for part in parts):
            with self.weights.head() as bound:
                for part, rows in zip(parts, carried, strict=True):
                    self._run_head(bound, part, rows, threads)

    @cached_property
    def _hidden(self) -> LastHidden:
        return LastHidden(self._planned, self._batch_size)

    def _carried_rows(self, n: int) -> "_Buffers":
        """Memory for what passes from graph to graph: the residual, [n, hidden_size], which each
        layer changes in place, and others."""
        widths = self._model.carried
        return {name: np.empty((n, width), np.float32) for name, width in widths.items()}

    def _run_layers(
        self,
        parts: Sequence["_Part"],
        carried: Sequence["_Buffers"],
        threads: int,
        on_layer: OnProgress | None,
    ) -> None:
        """carried: for each part, see _carried_rows."""
        n_layers, kind_of_layer = self._model.config.n_layers, self._model.kind_of_layer
        runs = []
        for part, rows in zip(parts, carried, strict=True):
            positions = [(past, count) for count, past, _ in part.sequences]
            angles = [table.rows(positions) for table in self._rope]  # [n, rope_dims] each
            buffers = [  # for each kind of layer
                {name: rows[name] for name in names}
                | {name: angles[index] for name, index in rope.items()}
                for names, rope in zip(self._carried_to, self._rope_of, strict=True)
            ]
            runs.append((buffers, part.sequences, _backings(part.sequences)))
        # Ctrl-C waits for the end of a call, so a call runs several layers only for few tokens.
        few = on_layer is None and sum(len(part.tokens) for part in parts) <= 64
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

    def _run_head(self, bound: Any, part: "_Part", carried: "_Buffers", threads: int) -> None:
        n = len(part.logits)
        buffers = {name: carried[name][len(part.tokens) - n :] for name in self._carried_to_head}
        buffers["logits"] = part.logits
        if n:
            _run_whole(self._head, bound, buffers, part, n, threads)


_Sequence = tuple[int, int, SequenceState]
_Buffers = dict[str, NDArray[np.float32]]
Wanted = Literal["nothing", "last", "all", "hidden"]


@dataclass(frozen=True, slots=True)
class Step:
    """Tokens to append to a sequence.

    sizes: of their batches; even ones if it is empty. wanted: nothing; the logits of the last token
    or of all tokens; or the last hidden states of all tokens. one_by_one: each token has the
    numbers that it has in a batch by itself; all logits are wanted.
    """

    tokens: Sequence[int]
    state: SequenceState
    sizes: Sequence[int] = ()
    wanted: Wanted = "last"
    one_by_one: bool = False

    @property
    def n_logits(self) -> int:
        """Of how many of the last tokens the logits are wanted."""
        if self.one_by_one or self.wanted == "all":
            return len(self.tokens)
        return int(self.wanted == "last")

    def batches(self, most: int) -> list[tuple[int, int]]:
        """(start, stop) of each batch. most: tokens of an even batch."""
        if not self.sizes:
            return even_batches(len(self.tokens), most)
        stops = list(accumulate(self.sizes))
        return list(zip([0, *stops], stops, strict=False))


@dataclass(frozen=True, slots=True)
class _Part:
    """A batch: tokens that run through a graph together.

    tokens: int32 [n], those of the first sequence first. sequences: for each the number of its
    tokens, the number of tokens before them, and its state. logits: float32
    [m, vocab], memory for the logits of the last m tokens; m = n if there are several sequences.
    hidden: float32 [n, hidden_size], memory for the last hidden states, or None.
    """

    tokens: NDArray[np.int32]
    sequences: Sequence[_Sequence]
    logits: Logits
    hidden: NDArray[np.float32] | None = None


def _run_whole(
    executor: Executor,
    bound: Any,
    buffers: dict[str, NDArray[Any]],
    part: _Part,
    n_tokens: int,
    threads: int,
) -> None:
    """Runs a graph that is no layer's. Sequences of one token each stay apart: the numbers of each
    then do not depend on the others."""
    if len(part.sequences) > 1:
        executor.run_layers([bound], buffers, _backings(part.sequences), threads=threads)
    else:
        executor.run(bound, buffers, n_tokens, threads=threads)


def _backings(sequences: Sequence[_Sequence]) -> list[tuple[int, int, Any]]:
    """(n_tokens, past, state) of each sequence, for Executor.run_layers."""
    return [(count, past, state.backing) for count, past, state in sequences]


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
