"""Runs graphs op by op in NumPy: the fallback, and the second opinion in tests."""

import math
from collections.abc import Mapping, Sequence
from itertools import permutations
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends import check_supported
from airllm.backends.experts import Experts
from airllm.backends.numpy_batch import Buffers, TokenBatch, TokenSequence
from airllm.backends.numpy_kernels import OPS
from airllm.backends.numpy_state import NumpyState
from airllm.backends.numpy_temporaries import rows_at_once, temporary_bytes
from airllm.backends.plain_stream import PlainStream
from airllm.graph.graph import MANY, Graph, Role
from airllm.graph.state import LayerArgument, recurrent_places
from airllm.numpy_ops import checks
from airllm.numpy_ops.quants import row_bytes


class NumpyBackend:
    """Keeps weights in the file's bytes; each use decodes them to float32, a few MB at a time."""

    name = "numpy"
    any_batch = False  # BLAS sums in an order of its own for each shape
    keeps: frozenset[Role] = frozenset(["rows", "matrix", "experts", "heads"])

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        if role in ("vector", "vectors"):
            rows = numpy_ops.PackedMatrix(data, type, (math.prod(shape[:-1]), shape[-1]))
            return rows.dequantize().reshape(shape)
        if role in MANY:
            matrix_shape = shape[1], shape[2]
            parts = data.reshape(*shape[:2], -1)  # a file may have them below each other
            return Experts(numpy_ops.PackedMatrix(part, type, matrix_shape) for part in parts)
        kind = numpy_ops.RawRows if role == "rows" else numpy_ops.PackedMatrix
        return kind(data, type, (shape[0], shape[1]))

    def supports(self, op_kind: str) -> bool:
        return op_kind in OPS

    def executor(self, graph: Graph, max_tokens: int) -> "NumpyExecutor":
        check_supported(self, graph)
        return NumpyExecutor(graph, max_tokens)

    def executor_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        return max_tokens * graph.row_bytes

    def temporary_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        return temporary_bytes(graph, max_tokens, positions)

    def packed_bytes(self, type: str, shape: tuple[int, int]) -> int:
        return shape[0] * row_bytes(type, shape[1])

    def memory(self, nbytes: int) -> NDArray[np.uint8]:
        return np.empty(nbytes, np.uint8)

    def matrix_in(
        self, memory: NDArray[np.uint8], offset: int, type: str, shape: tuple[int, int]
    ) -> tuple[Any, Any]:
        rows = memory[offset : offset + self.packed_bytes(type, shape)]
        return numpy_ops.PackedMatrix(rows, type, shape), (memory, offset)

    def fill(self, target: Any, data: NDArray[Any]) -> None:
        memory, offset = target
        memory[offset : offset + data.size] = data

    def stream(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[tuple[int, int, int, Sequence[Any]]]],
        *,
        endless: bool = True,
    ) -> PlainStream:
        return PlainStream(files, sections, endless=endless)

    def sequence_state(
        self, tables: Sequence[tuple[int, int]], layers: Sequence[LayerArgument]
    ) -> NumpyState:
        return NumpyState(tables, layers)


class NumpyExecutor:
    def __init__(self, graph: Graph, max_tokens: int) -> None:
        self.graph = graph
        self.max_tokens = max_tokens
        self._internal = {
            buffer.name: np.empty((max_tokens, buffer.width), np.float32)
            for buffer in graph.buffers
            if not buffer.external
        }
        self._widths = {buffer.name: buffer.width for buffer in graph.buffers}
        self._external = [buffer for buffer in graph.buffers if buffer.external]
        self._written = {output for op in graph.ops for output in op.outputs}
        firsts = recurrent_places(graph)
        self._recurrent_first = {id(op): first for op, first in zip(graph.ops, firsts, strict=True)}

    def bind(self, weights: Mapping[str, Any]) -> Mapping[str, Any]:
        self.graph.check_bound({name: weight.shape for name, weight in weights.items()})
        return dict(weights)

    def weight_bytes(self, bound: Any) -> Mapping[str, int]:
        return {name: weight.nbytes for name, weight in bound.items()}

    def run(
        self,
        bound: Any,
        buffers: Mapping[str, NDArray[Any]],
        n_tokens: int,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        self._run(bound, buffers, n_tokens, [TokenSequence(0, n_tokens)], seconds)

    def run_layers(
        self,
        bound: Sequence[Any],
        buffers: Mapping[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, Any]],
        first_layer: int = 0,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        for index, weights in enumerate(bound, first_layer):
            parts, n_tokens = [], 0
            for n, past, state in sequences:
                parts.append(TokenSequence(n_tokens, n, past, state, index))
                n_tokens += n
            self._run(weights, buffers, n_tokens, parts, seconds, index)

    def _run(
        self,
        bound: Any,
        buffers: Mapping[str, NDArray[Any]],
        n_tokens: int,
        sequences: Sequence[TokenSequence],
        seconds: NDArray[np.float64] | None,
        layer: int = 0,
    ) -> None:
        if not 0 <= n_tokens <= self.max_tokens:
            raise ValueError(f"n_tokens is {n_tokens}; expected 0 to {self.max_tokens}")
        values = {name: array[:n_tokens] for name, array in self._internal.items()}
        values |= self._external_arrays(buffers, n_tokens)
        batch = TokenBatch(values, bound, n_tokens, sequences, layer, self._recurrent_first)
        with np.errstate(all="ignore"):  # infinities and NaN are values here, as in C++
            for index, op in enumerate(self.graph.ops):
                start = perf_counter()
                step = rows_at_once(op, self._widths, n_tokens)
                if step >= n_tokens:
                    OPS[op.kind](op, batch)
                else:
                    for first in range(0, n_tokens, step):
                        OPS[op.kind](op, batch.part(op, first, min(first + step, n_tokens)))
                if seconds is not None:
                    seconds[index] += perf_counter() - start

    def _external_arrays(self, buffers: Mapping[str, NDArray[Any]], n_tokens: int) -> Buffers:
        """The external buffers, checked. ValueError where they do not fit, or overlap and an op
        writes one of them."""
        if buffers.keys() != {buffer.name for buffer in self._external}:
            expected = ", ".join(buffer.name for buffer in self._external)
            raise ValueError(
                f"graph {self.graph.name!r}: buffers are {', '.join(buffers)}; expected {expected}"
            )
        arrays = {}
        for buffer in self._external:
            array = checks.plain("Executor.run", buffer.name, buffers[buffer.name])
            arrays[buffer.name] = array
            shape, dtype = {
                "float32": ((n_tokens, buffer.width), "float32"),
                "int32": ((n_tokens,), "int32"),
                "q8_0": ((n_tokens, buffer.width // 32 * 34), "uint8"),
            }[buffer.dtype]
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"graph {self.graph.name!r}: buffer {buffer.name!r} is {array.dtype} "
                    f"{list(array.shape)}; expected {dtype} {list(shape)}"
                )
        for name, other in permutations(arrays, 2):
            if other not in self._written or not np.may_share_memory(arrays[name], arrays[other]):
                continue
            # All of its memory another may share: elementwise ops then write over what they read.
            if _place(arrays[name]) != _place(arrays[other]):
                raise ValueError(
                    f"graph {self.graph.name!r}: buffers {name!r} and {other!r} overlap, and "
                    f"{other!r} is written; expected separate arrays"
                )
        return arrays


def _place(array: NDArray[Any]) -> tuple[int, int]:
    return array.ctypes.data, array.nbytes
