"""Runs graphs on the C++ executor of tensor_ops_cpp. It only translates."""

import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from airllm.backends import Stream, check_supported
from airllm.backends.experts import Experts
from airllm.graph.graph import MANY, Graph, Role
from airllm.graph.state import LayerArgument

try:
    import tensor_ops_cpp
    from tensor_ops_cpp import graph_ops
except ImportError as error:
    raise ImportError(
        f"the C++ extension cannot be imported ({error}); build it with `python -m pip install .`, "
        "or use the NumPy backend"
    ) from error

_OPS = graph_ops()


class CppBackend:
    """Packs matrices once, into the layout of the CPU's kernels; embeddings stay memory-mapped."""

    name = "cpp"
    any_batch = True
    keeps: frozenset[Role] = frozenset(["rows"])

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            tensor_ops_cpp.set_num_threads(threads)

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        if role in ("vector", "vectors"):
            rows = tensor_ops_cpp.PackedMatrix(data, type, (math.prod(shape[:-1]), shape[-1]))
            return rows.dequantize().reshape(shape)
        if role in MANY:
            parts = data.reshape(*shape[:2], -1)  # a file may have them below each other
            return Experts(tensor_ops_cpp.PackedMatrix(part, type, shape[1:]) for part in parts)
        kind = tensor_ops_cpp.RawRows if role == "rows" else tensor_ops_cpp.PackedMatrix
        return kind(data, type, shape)

    def supports(self, op_kind: str) -> bool:
        return op_kind in _OPS

    def executor(self, graph: Graph, max_tokens: int) -> "CppExecutor":
        check_supported(self, graph)
        return CppExecutor(graph, max_tokens)

    def executor_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        return tensor_ops_cpp.executor_bytes(
            **_arguments(graph), max_tokens=max_tokens, positions=positions
        )

    def temporary_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        return 0

    def packed_bytes(self, type: str, shape: tuple[int, int]) -> int:
        return tensor_ops_cpp.packed_bytes(type, shape)

    def memory(self, nbytes: int) -> tensor_ops_cpp.Memory:
        return tensor_ops_cpp.Memory(nbytes)

    def matrix_in(
        self, memory: tensor_ops_cpp.Memory, offset: int, type: str, shape: tuple[int, int]
    ) -> tuple[Any, Any]:
        matrix = tensor_ops_cpp.packed_room(memory, offset, type, shape)
        return matrix, matrix

    def fill(self, target: Any, data: NDArray[Any]) -> None:
        target.fill(data)

    def stream(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[tuple[int, int, int, Sequence[Any]]]],
        *,
        endless: bool = True,
    ) -> Stream:
        io, direct = _stream_settings()
        return tensor_ops_cpp.Stream(files, sections, endless=endless, io=io, direct=direct)

    def sequence_state(
        self, tables: Sequence[tuple[int, int]], layers: Sequence[LayerArgument]
    ) -> tensor_ops_cpp.SequenceState:
        return tensor_ops_cpp.SequenceState(tables, layers)


class CppExecutor:
    def __init__(self, graph: Graph, max_tokens: int) -> None:
        self._graph = graph
        self._executor = tensor_ops_cpp.Executor(**_arguments(graph), max_tokens=max_tokens)
        self.run = self._executor.run  # no Python between the engine's loop and C++
        self.run_layers = self._executor.run_layers

    def bind(self, weights: Mapping[str, Any]) -> Any:
        self._graph.check_bound({name: weight.shape for name, weight in weights.items()})
        return self._executor.bind(dict(weights))

    def weight_bytes(self, bound: tensor_ops_cpp.BoundWeights) -> Mapping[str, int]:
        return bound.nbytes


def _arguments(graph: Graph) -> dict[str, Any]:
    """A graph as the extension takes it."""
    return {
        "buffers": [(buffer.name, buffer.width, buffer.external) for buffer in graph.buffers],
        "weights": [weight.name for weight in graph.weights],
        "ops": [
            (op.kind, list(op.inputs), list(op.outputs), list(op.weights), dict(op.attrs))
            for op in graph.ops
        ],
    }


def _stream_settings() -> tuple[str, bool]:
    """How a C++ stream reads: AIRLLM_STREAM_IO ("auto": io_uring if the kernel has it; "threads"),
    and whether it bypasses the page cache (AIRLLM_STREAM_DIRECT: "1", "0").

    ValueError for other values.
    """
    io = os.environ.get("AIRLLM_STREAM_IO") or "auto"
    direct = os.environ.get("AIRLLM_STREAM_DIRECT") or "1"
    if io not in ("auto", "threads"):
        raise ValueError(f"AIRLLM_STREAM_IO is {io!r}; expected 'auto' or 'threads'")
    if direct not in ("0", "1"):
        raise ValueError(f"AIRLLM_STREAM_DIRECT is {direct!r}; expected '0' or '1'")
    return io, direct == "1"
