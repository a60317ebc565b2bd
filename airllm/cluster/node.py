"""A node of a cluster at work: executors, buffers and caches for its program, without sockets.

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
from airllm.cluster.wire import FloatType, Size
from airllm.graph import Graph, Role
from airllm.graph_rewrite import fuse, fusion_wanted
from airllm.numpy_ops import rope_table

_EXECUTOR_BYTES = 2 << 20  # of an executor, apart from its buffers


Call = tuple[Callable[[], None], tuple[Sync, ...]]


class SegmentWeights(Protocol):
    """waited_seconds: that `segment` waited for the disk, so far; read_bytes: from there."""

    waited_seconds: float

    @property
    def read_bytes(self) -> int: ...

    def stays(self, index: int) -> bool:
        """Whether a segment's weights are the same for every step."""

    def segment(self, index: int) -> Any:
        """A segment's weights as its executor bound them, until the next call."""


class Node:
    """pipes: [rows, bytes of a row] each, uint8."""

    def __init__(
        self, lowered: Lowered, program: Program, backend: Backend, threads: int = 0
    ) -> None:
        """Allocates all but the weights. threads: at most so many; 0 for all."""
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
        self._caches = [
            tuple(np.zeros((c.n_kv_heads, c.length, c.head_dim), np.float32) for _ in "kv")
            for c in lowered.caches
        ]
        self._angles = [
            (angles.frequencies(), np.empty((self.rows, angles.head_dim), np.float32))
            for angles in lowered.angles
        ]
        self._tokens = {
            index: np.zeros(self.rows, np.int32)
            for index in {int(name.split(".")[1]) for name in _externals(lowered, "tokens.")}
        }
        self._positions = self.pipes[0].view(np.float32)[:, 0]
        self.executors = self._make_executors()
        self._buffers: dict[int, list[dict[str, NDArray[Any]]]] = {}  # of segments, by rows

    def _make_executors(self) -> list[Executor]:
        """One for each segment, fused as the local engine's graphs are; those of equal graphs, such
        as all layers', share one."""
        fused = fusion_wanted(None)
        made: list[tuple[Graph, Executor]] = []
        executors = []
        for segment in self._lowered.segments:
            graph = fuse(segment.graph) if fused else segment.graph
            executor = next((e for known, e in made if known == graph), None)
            if executor is None:
                executor = self._backend.executor(graph, self.rows)
                made.append((graph, executor))
            executors.append(executor)
        return executors

    def step(self, position: int, rows: int) -> Sequence[Call]:
        """For each segment in order: what computes it, and the syncs that follow.

        May be called before the step begins, when the last one is over: from what others have sent
        to the executor it is then one call.
        """
        self._positions[:rows] = np.arange(position, position + rows)
        for frequencies, table in self._angles:
            table[:rows] = rope_table(np.arange(position, position + rows), frequencies)
        return [
            (self._call(index, position, rows), segment.syncs)
            for index, segment in enumerate(self._lowered.segments)
        ]

    def _call(self, index: int, position: int, rows: int) -> Callable[[], None]:
        segment = self._lowered.segments[index]
        if not segment.graph.ops:
            return _nothing
        if rows not in self._buffers:
            self._buffers[rows] = [
                self._externals(one.graph, rows) for one in self._lowered.segments
            ]
        buffers, run = self._buffers[rows][index], self.executors[index].run
        k, v = (None, None) if segment.cache is None else self._caches[segment.cache]
        arguments = buffers, rows, position, k, v, self._threads
        tokens = [
            (self.pipes[pipe].view(np.float32)[:rows, 0], array[:rows])
            for pipe, array in self._tokens.items()
            if f"tokens.{pipe}" in buffers
        ]
        if self.weights.stays(index) and not tokens:
            return partial(run, self.weights.segment(index), *arguments)
        return partial(self._run, index, run, arguments, tokens)

    def _run(
        self,
        index: int,
        run: Callable[..., None],
        arguments: tuple[Any, ...],
        tokens: list[tuple[NDArray[np.float32], NDArray[np.int32]]],
    ) -> None:
        for floats, ids in tokens:
            with np.errstate(invalid="ignore"):
                ids[...] = floats  # what is no token of the table, the executor refuses
        run(self.weights.segment(index), *arguments)

    def _externals(self, graph: Graph, rows: int) -> dict[str, NDArray[Any]]:
        return {
            buffer.name: self._external(buffer.name, rows)
            for buffer in graph.buffers
            if buffer.external
        }

    def _external(self, name: str, rows: int) -> NDArray[Any]:
        kind, number = name.split(".")
        if kind == "buffer":
            return self._carried[name][:rows]
        index = int(number)
        if kind == "angles":
            return self._angles[index][1][:rows]
        if kind == "tokens":
            return self._tokens[index][:rows]
        pipe = self.pipes[index][:rows]
        return pipe if self._types[index] is FloatType.Q80 else pipe.view(np.float32)


def _nothing() -> None:
    pass


def roles(lowered: Lowered) -> Mapping[WeightKey, Role]:
    """What each weight of the program is used as."""
    return {
        key: segment.graph.roles[slot]
        for segment in lowered.segments
        for slot, key in segment.weights.items()
    }


def buffer_bytes(lowered: Lowered, program: Program) -> int:
    """At most so much will Node allocate, apart from the KV cache."""
    rows = program.net.rows
    pipes = sum(pipe.size.nbytes for pipe in program.net.pipes)
    carried = 4 * rows * sum(lowered.carried.values())
    angles = 4 * rows * sum(angles.head_dim for angles in lowered.angles)
    distinct: list[Graph] = []
    for segment in lowered.segments:
        if segment.graph not in distinct:
            distinct.append(segment.graph)
    # What a product quantises, and one expert's rows, are no wider than the buffers they are of.
    internal = sum(2 * rows * graph.row_bytes + _EXECUTOR_BYTES for graph in distinct)
    return pipes + carried + angles + internal


def cache_bytes(lowered: Lowered) -> int:
    return sum(cache.nbytes for cache in lowered.caches)


def weight_bytes(sizes: Mapping[WeightKey, Size]) -> int:
    return sum(size.nbytes for size in sizes.values())


def _externals(lowered: Lowered, prefix: str) -> Iterator[str]:
    for segment in lowered.segments:
        for buffer in segment.graph.buffers:
            if buffer.name.startswith(prefix):
                yield buffer.name
