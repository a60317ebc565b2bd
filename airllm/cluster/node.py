"""Runs the program of a cluster's node: its executors, buffers and caches, without sockets.

node = Node(lowered, program, backend, threads=0)
node.weights = ...                       # see weights.py
for run, syncs in node.step(position, rows):
    run()                                # one segment, in one call
    ... exchange the pipes of syncs ...
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.cluster.checks import Program
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node_config import Sync
from airllm.cluster.rope import Turns
from airllm.cluster.wire import FloatType, Size
from airllm.graph.graph import Graph, Role
from airllm.graph.rewrite import fuse, fusion_wanted
from airllm.graph.state import KeysValues, LayerState
from airllm.state.layout import StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import SequenceState

Call = tuple[Callable[[], None], tuple[Sync, ...]]

# How to run a segment for a number of rows: the function (None: the segment has no ops), its
# buffers, the number of its cache, and the syncs that follow.
_Call = tuple[Callable[..., None] | None, dict[str, NDArray[Any]], int | None, tuple[Sync, ...]]


class SegmentWeights(Protocol):
    """waited_seconds: how long `segment` has waited for the disk. read_bytes: read from it."""

    @property
    def waited_seconds(self) -> float: ...
    @property
    def read_bytes(self) -> int: ...

    def stays(self, index: int) -> bool:
        """Whether a segment's weights are the same for every step."""

    def segment(self, index: int) -> Any:
        """A segment's weights, bound by its executor. They stay valid until the next call."""


class Node:
    """pipes: a uint8 array [rows, bytes of a row] for each pipe."""

    def __init__(
        self, lowered: Lowered, program: Program, backend: Backend, threads: int = 0
    ) -> None:
        """Allocates everything but the weights. threads: the most to use, 0 for all."""
        self._lowered, self._backend, self._threads = lowered, backend, threads
        self.rows = program.net.rows
        self.positions = lowered.positions
        self.weights: SegmentWeights
        self.pipes = [
            np.zeros((self.rows, pipe.size.row_bytes), np.uint8) for pipe in program.net.pipes
        ]
        self._types = [pipe.size.type for pipe in program.net.pipes]
        self._carried = {
            f"buffer.{index}": np.zeros((self.rows, width), np.float32)
            for index, width in lowered.carried.items()
        }
        self._state = _new_state(lowered, backend)
        self._turns = [Turns(angles, self.rows) for angles in lowered.angles]
        self._tokens = {
            index: np.zeros(self.rows, np.int32)
            for index in {int(name.split(".")[1]) for name in _externals(lowered, "tokens.")}
        }
        self._positions = self.pipes[0].view(np.float32)[:, 0]
        self.executors = self._make_executors()
        self._calls: dict[int, list[_Call]] = {}  # by rows

    def _make_executors(self) -> list[Executor]:
        """An executor for each segment, fused like the local engine's graphs. Segments with equal
        graphs, such as those of all layers, share an executor."""
        made: list[tuple[Graph, Executor]] = []
        executors = []
        for graph in _graphs(self._lowered):
            executor = next((e for known, e in made if known == graph), None)
            if executor is None:
                executor = self._backend.executor(graph, self.rows)
                made.append((graph, executor))
            executors.append(executor)
        return executors

    def step(self, position: int, rows: int) -> Sequence[Call]:
        """For each segment in order: a function that computes it, and the syncs that follow.

        May be called as soon as the last step is over, before this step begins. Only one call then
        lies between the arrival of the others' data and the executor.
        """
        self._positions[:rows] = np.arange(position, position + rows)
        for turns in self._turns:
            turns.fill(position, rows)
        self._state.make_room(0, len(self._lowered.caches), 0, position + rows)
        sequences = [(rows, position, self._state.backing)]
        if rows not in self._calls:
            self._calls[rows] = [self._call(index, rows) for index in range(len(self.executors))]

        def call(
            run: Callable[..., None] | None, buffers: Any, cache: int | None
        ) -> Callable[..., None]:
            if run is None:
                return _nothing
            if cache is None:
                return partial(run, buffers, rows, self._threads)
            return partial(run, buffers, sequences, cache, self._threads)

        return [
            (call(run, buffers, cache), syncs) for run, buffers, cache, syncs in self._calls[rows]
        ]

    def _call(self, index: int, rows: int) -> _Call:
        segment = self._lowered.segments[index]
        if not segment.graph.ops:
            return None, {}, None, segment.syncs
        buffers = {
            buffer.name: self._external(buffer.name, rows)
            for buffer in segment.graph.buffers
            if buffer.external
        }
        tokens = [
            (self.pipes[pipe].view(np.float32)[:rows, 0], array[:rows])
            for pipe, array in self._tokens.items()
            if f"tokens.{pipe}" in buffers
        ]
        if self.weights.stays(index) and not tokens:
            executor_run, bound = self._bound(index)
            run = partial(executor_run, bound)
        else:
            run = partial(self._run, index, tokens)
        return run, buffers, segment.cache, segment.syncs

    def _bound(self, index: int) -> tuple[Callable[..., None], Any]:
        """What runs a segment, and its weights as that takes them."""
        executor, weights = self.executors[index], self.weights.segment(index)
        if self._lowered.segments[index].cache is None:
            return executor.run, weights
        return executor.run_layers, [weights]

    def _run(
        self,
        index: int,
        tokens: list[tuple[NDArray[np.float32], NDArray[np.int32]]],
        *arguments: Any,
    ) -> None:
        for floats, ids in tokens:
            with np.errstate(invalid="ignore"):
                ids[...] = floats  # the executor refuses ids that the table does not have
        run, weights = self._bound(index)
        run(weights, *arguments)

    def _external(self, name: str, rows: int) -> NDArray[Any]:
        kind, number = name.split(".")
        if kind == "buffer":
            return self._carried[name][:rows]
        index = int(number)
        if kind == "angles":
            return self._turns[index].table[:rows]
        if kind == "tokens":
            return self._tokens[index][:rows]
        pipe = self.pipes[index][:rows]
        return pipe if self._types[index] is FloatType.Q80 else pipe.view(np.float32)


def _nothing() -> None:
    pass


def _graphs(lowered: Lowered) -> list[Graph]:
    """The graph of each segment, as executors run it."""
    fused = fusion_wanted(None)
    return [fuse(each.graph) if fused else each.graph for each in lowered.segments]


def _layout(lowered: Lowered) -> StateLayout:
    """Where the keys and values of all caches lie."""
    caches = [KeysValues(c.n_kv_heads, c.head_dim, c.head_dim) for c in lowered.caches]
    return StateLayout([LayerState(keys) for keys in caches], "f32")


def _new_state(lowered: Lowered, backend: Backend) -> SequenceState:
    layout = _layout(lowered)

    def zeros(n_bytes: int) -> NDArray[np.uint8]:
        """A root that skips positions must not see what the memory held before."""
        return np.zeros(n_bytes, np.uint8)

    pool = PagePool(zeros, layout.page_bytes)
    return SequenceState(layout, pool, backend.sequence_state, lowered.positions)


def roles(lowered: Lowered) -> Mapping[WeightKey, Role]:
    """The role of each weight of the program."""
    return {
        key: segment.graph.roles[slot]
        for segment in lowered.segments
        for slot, key in segment.weights.items()
    }


def buffer_bytes(lowered: Lowered, program: Program, backend: Backend) -> int:
    """The bytes that Node allocates, without the KV cache, and those that a step takes and gives
    back."""
    rows = program.net.rows
    pipes = sum(pipe.size.nbytes for pipe in program.net.pipes)
    carried = 4 * rows * sum(lowered.carried.values())
    angles = sum(Turns.bytes_of(angles, rows) for angles in lowered.angles)
    distinct: list[Graph] = []
    for graph in _graphs(lowered):
        if graph not in distinct:
            distinct.append(graph)
    internal = sum(backend.executor_bytes(graph, rows, lowered.positions) for graph in distinct)
    passing = [backend.temporary_bytes(graph, rows, lowered.positions) for graph in distinct]
    return pipes + carried + angles + internal + max(passing, default=0)


def cache_bytes(lowered: Lowered, program: Program) -> int:
    return _layout(lowered).nbytes(lowered.positions, program.net.rows)


def weight_bytes(sizes: Mapping[WeightKey, Size]) -> int:
    return sum(size.nbytes for size in sizes.values())


def _externals(lowered: Lowered, prefix: str) -> Iterator[str]:
    for segment in lowered.segments:
        for buffer in segment.graph.buffers:
            if buffer.name.startswith(prefix):
                yield buffer.name
