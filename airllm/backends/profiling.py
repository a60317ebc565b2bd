"""Where the time goes: seconds, bytes and FLOPs of each op, while a Profile is switched on.

    with engine.profile() as profile:
        engine.forward([token])
    for op in profile.ops(): print(op.name, op.seconds, op.gbytes_per_second)

A profile wraps the executors, so nothing is measured, or slower, without one. With a profile the
threads wait for each other after each op, and a token takes a few percent longer.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Executor
from airllm.graph.graph import Graph, Op
from airllm.graph.ops import SIGNATURES
from airllm.graph.state import first_seen

RowBytes = Callable[[int], int]


@dataclass
class OpProfile:
    """The sums over all calls of an op. The same op of all layers is one entry."""

    name: str  # "linear ffn_down"
    calls: int = 0
    seconds: float = 0.0
    nbytes: int = 0  # the least that it must read and write, weights and KV cache included
    flops: int = 0  # additions and multiplications, exp and tanh counting as one

    @property
    def gbytes_per_second(self) -> float:
        return self.nbytes / self.seconds / 1e9 if self.seconds else 0.0

    @property
    def gflops_per_second(self) -> float:
        return self.flops / self.seconds / 1e9 if self.seconds else 0.0


@dataclass(frozen=True)
class _Run:
    """How many tokens each sequence had before a run, and in it."""

    bound: Any
    counts: Sequence[tuple[int, int]]  # (n_tokens, past)


class ProfiledExecutor:
    """An executor that measures its ops; see Profile."""

    def __init__(self, executor: Executor, graph: Graph, kv_row_bytes: RowBytes) -> None:
        self._executor, self.graph, self._kv_row_bytes = executor, graph, kv_row_bytes
        self.op_seconds = np.zeros(len(graph.ops))
        self.call_seconds = 0.0  # of run, its ops included
        self._runs: list[_Run] = []
        self.bind, self.weight_bytes = executor.bind, executor.weight_bytes

    def run(
        self,
        bound: Any,
        buffers: dict[str, NDArray[Any]],
        n_tokens: int,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        start = perf_counter()
        self._executor.run(bound, buffers, n_tokens, threads, self.op_seconds)
        self.call_seconds += perf_counter() - start
        self._runs.append(_Run(bound, [(n_tokens, 0)]))

    def run_layers(
        self,
        bound: Sequence[Any],
        buffers: dict[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, Any]],
        first_layer: int = 0,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        start = perf_counter()
        self._executor.run_layers(bound, buffers, sequences, first_layer, threads, self.op_seconds)
        self.call_seconds += perf_counter() - start
        counts = [(n_tokens, past) for n_tokens, past, _ in sequences]
        self._runs += [_Run(weights, counts) for weights in bound]

    def add_to(self, found: dict[str, OpProfile]) -> None:
        """Add the measurements to the totals by name."""
        for index, op in enumerate(self.graph.ops):
            name = " ".join([op.kind, *op.weights])
            total = found.setdefault(name, OpProfile(name))
            total.calls += len(self._runs)
            total.seconds += float(self.op_seconds[index])
            for run in self._runs:
                weight_bytes = self._executor.weight_bytes(run.bound)
                total.nbytes += _nbytes(self.graph, op, run, weight_bytes, self._kv_row_bytes)
                total.flops += _flops(self.graph, op, run)


class Profile:
    """Profiled executors in the order in which a forward pass runs them."""

    def __init__(self, kv_row_bytes: RowBytes) -> None:
        """kv_row_bytes: of a key or value of a width, see StateLayout.row_bytes."""
        self._kv_row_bytes = kv_row_bytes
        self._executors: dict[int, ProfiledExecutor] = {}

    def wrap(self, executor: Executor, graph: Graph) -> ProfiledExecutor:
        """The executor, profiled; the same each time."""
        profiled = ProfiledExecutor(executor, graph, self._kv_row_bytes)
        return self._executors.setdefault(id(executor), profiled)

    def ops(self) -> list[OpProfile]:
        found: dict[str, OpProfile] = {}
        for executor in self._executors.values():
            executor.add_to(found)
        return list(found.values())

    @property
    def op_seconds(self) -> float:
        return sum(float(executor.op_seconds.sum()) for executor in self._executors.values())

    @property
    def call_seconds(self) -> float:
        """Seconds of the executors' calls: ops, checks of arguments, waking of threads."""
        return sum(executor.call_seconds for executor in self._executors.values())


# ---- the work of an op ---------------------------------------------------------------------------

_ATTENDS_GROUPS = ("group_attention", "sparse_group_attention")
_ATTENDS = ("attention", "sparse_attention", "block_attention", *_ATTENDS_GROUPS)


def _flops(graph: Graph, op: Op, run: _Run) -> int:
    n_tokens = sum(n for n, _ in run.counts)
    if op.kind in _ATTENDS:
        dims = int(op.attrs["head_dim"]) + int(op.attrs.get("value_dim", op.attrs["head_dim"]))
        per_position = 2 * int(op.attrs["n_heads"]) * dims
        return per_position * _seen(graph, op, run, each_token=True)
    if op.kind == "index_select":  # a product, its maximum with 0, and the weighted sum
        per_position = int(op.attrs["n_heads"]) * (2 * int(op.attrs["head_dim"]) + 3)
        return per_position * _scored(op, run, each_token=True)
    if op.kind == "choose_blocks":  # a product, its maximum and, if pooled, the sum of the heads
        per_key = int(op.attrs["n_heads"]) * (2 * int(op.attrs["head_dim"]) + 1 + _pooled(op))
        return per_key * sum(_keys_scored(op, run))
    signature = SIGNATURES[op.kind]
    names = dict(zip(signature.inputs, op.inputs, strict=True)) | {"out": op.output}
    widths = {buffer.name: buffer.width for buffer in graph.buffers}
    counted = names.get(signature.per)
    flops = signature.flops * widths[counted] if counted else 0
    if signature.state is not None:
        flops = signature.flops * graph.recurrent_floats(op)
    shapes = {weight.name: weight.shape for weight in graph.weights}
    for name, role in zip(op.weights, signature.roles(op), strict=True):
        if role == "matrix":
            flops += 2 * shapes[name][0] * shapes[name][1]
        elif role == "heads":
            flops += 2 * math.prod(shapes[name])
        elif role == "experts":
            flops += 2 * int(op.attrs["n_used"]) * shapes[name][1] * shapes[name][2]
    return flops * n_tokens


def _nbytes(
    graph: Graph, op: Op, run: _Run, weight_bytes: Mapping[str, int], kv_row_bytes: RowBytes
) -> int:
    n_tokens = sum(n for n, _ in run.counts)
    widths = {buffer.name: buffer.width for buffer in graph.buffers}
    total = 4 * n_tokens * sum(widths[name] for name in (*op.inputs, *op.outputs))
    shapes = {weight.name: weight.shape for weight in graph.weights}
    for name, role in zip(op.weights, SIGNATURES[op.kind].roles(op), strict=True):
        of_all = weight_bytes[name]
        if role == "rows":
            total += of_all * n_tokens // shapes[name][0]
        elif "n_used" in op.attrs and role != "vector":  # at most: tokens may share experts
            n_experts = shapes[name][0]
            total += of_all * min(n_tokens * int(op.attrs["n_used"]), n_experts) // n_experts
        else:
            total += of_all
    total += 2 * 4 * graph.recurrent_floats(op) * len(run.counts)  # read and written
    if op.kind in ("kv_append", "rope_append", "latent_append"):
        n_kv_heads = int(op.attrs["n_kv_heads"])
        for name in op.inputs[: 1 if op.kind == "latent_append" else 2]:
            total += n_tokens * n_kv_heads * kv_row_bytes(widths[name] // n_kv_heads)
    elif op.kind in ("index_append", "group_append"):
        total += _groups(op, run) * kv_row_bytes(int(op.attrs["head_dim"]))
    elif op.kind == "pool_groups":  # what is kept of each token, and of the tokens of whole groups
        total += 2 * 4 * widths[op.inputs[0]] * (n_tokens + _groups(op, run) * _every(op))
    elif op.kind == "index_select":
        scored = _scored(op, run, each_token=False)
        total += scored * kv_row_bytes(int(op.attrs["head_dim"]))
    elif op.kind == "choose_blocks":
        scored = max(_keys_scored(op, run), default=0)
        total += scored * kv_row_bytes(int(op.attrs["head_dim"]))
    elif op.kind in _ATTENDS:
        positions = _seen(graph, op, run, each_token=False)
        dims = [int(op.attrs["head_dim"]), int(op.attrs.get("value_dim", 0))]
        if any(each.kind == "latent_append" for each in graph.ops):
            dims = dims[:1]  # the values are in the keys
        total += positions * int(op.attrs.get("n_kv_heads", 1)) * sum(map(kv_row_bytes, dims))
    return total


def _every(op: Op) -> int:
    """Positions of a group."""
    return int(op.attrs.get("every", 1))


def _groups(op: Op, run: _Run) -> int:
    """The groups whose last tokens are in a run."""
    return sum((past + n) // _every(op) - past // _every(op) for n, past in run.counts)


def _seen(graph: Graph, op: Op, run: _Run, *, each_token: bool) -> int:
    """Positions that attention sees, counted for each token that sees them, or once; with groups, a
    group as one."""
    if op.kind in _ATTENDS_GROUPS:
        return _window_and_groups(graph, op, run, each_token=each_token)
    if op.kind == "sparse_attention":
        most = graph.call(op).inputs[1].width
        selected = sum(min(past + t + 1, most) for n, past in run.counts for t in range(n))
        return selected if each_token else min(selected, sum(past + n for n, past in run.counts))
    if op.kind == "block_attention":
        ends = [past + t + 1 for n, past in run.counts for t in range(n)]
        chosen = sum(_seen_of_blocks(graph, op, end) for end in ends)
        return chosen if each_token else min(chosen, sum(past + n for n, past in run.counts))
    window, chunked = int(op.attrs["window"]), bool(op.attrs["chunked"])

    def seen(position: int, end: int) -> int:
        return end - first_seen(window, chunked, position)

    if each_token:
        return sum(seen(past + t, past + t + 1) for n, past in run.counts for t in range(n))
    return sum(seen(past, past + n) for n, past in run.counts)


def _window_and_groups(graph: Graph, op: Op, run: _Run, *, each_token: bool) -> int:
    window, every = int(op.attrs["window"]), _every(op)
    most = graph.call(op).inputs[1].width if op.kind == "sparse_group_attention" else None
    total = 0
    for n, past in run.counts:
        near = [min(past + t + 1, window) for t in range(n)]
        groups = [(past + t + 1) // every for t in range(n)]
        seen = groups if most is None else [min(each, most) for each in groups]
        if each_token:
            total += sum(near) + sum(seen)
        else:  # the first token's window and the batch; no more groups than there are
            total += min(past + n, window + n - 1) + min(sum(seen), groups[-1])
    return total


def _scored(op: Op, run: _Run, *, each_token: bool) -> int:
    """Positions, or groups, that index_select scores, likewise: none for a token that sees them
    all."""
    selected, every = int(op.attrs["n_selected"]), _every(op)
    of_tokens = [
        [seen for t in range(n) if (seen := (past + t + 1) // every) > selected]
        for n, past in run.counts
    ]
    return sum(sum(seen) if each_token else max(seen, default=0) for seen in of_tokens)


def _pooled(op: Op) -> bool:
    """Whether the keys that choose_blocks reads are those of blocks."""
    return bool(op.attrs["pooled"])


def _keys_scored(op: Op, run: _Run) -> list[int]:
    """How many keys choose_blocks scores for each token: none if the token sees all blocks."""
    size, n_chosen = int(op.attrs["block_size"]), int(op.attrs["n_chosen"])
    found = []
    for end in (past + t + 1 for n, past in run.counts for t in range(n)):
        if _pooled(op):
            others, wanted = end // size, n_chosen
        else:
            n_local = min(int(op.attrs["n_local"]), -(-end // size))
            others, wanted = -(-end // size) - n_local, n_chosen - n_local
        keys = others if _pooled(op) else min(others * size, end)
        found.append(keys if others > wanted else 0)
    return found


def _seen_of_blocks(graph: Graph, op: Op, end: int) -> int:
    """Positions that block_attention sees, of a token with `end` positions up to its own. Its own
    block is among them."""
    size, n_choices = int(op.attrs["block_size"]), int(op.attrs["n_choices"])
    n_blocks = graph.call(op).inputs[1].width // n_choices
    makes = next((each for each in graph.ops if op.inputs[1] in each.outputs), None)
    if makes is not None and makes.kind == "choose_blocks" and _pooled(makes):
        return min(end, (n_blocks - 1) * size + end % size)
    return min(end, (n_blocks - 1) * size + (end - 1) % size + 1)
