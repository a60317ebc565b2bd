"""Backends prepare weights and run graphs: C++ where the extension is built, NumPy everywhere.

Knows graphs and the hybrid ops; not models, files or text.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.graph.graph import Graph, GraphError, Role
from airllm.graph.state import LayerArgument
from airllm.util.arguments import check_count
from airllm.util.shown import shown

__all__ = [
    "MOST_THREADS",
    "Backend",
    "Executor",
    "Stream",
    "check_supported",
    "load_backend",
]

MOST_THREADS = 1024  # that the kernels may be given

_log = logging.getLogger("airllm")


class Executor(Protocol):
    """Runs one graph; owns its internal buffers. For one thread at a time."""

    def bind(self, weights: Mapping[str, Any]) -> Any:
        """Puts weights, which Backend.weight made, into the graph's slots; `run` takes the result.

        The call is cheap and keeps references. GraphError if a slot is missing or a shape is wrong.
        """

    def weight_bytes(self, bound: Any) -> Mapping[str, int]:
        """Bytes of each slot's weight, as the backend keeps it."""

    def run(
        self,
        bound: Any,
        buffers: dict[str, NDArray[Any]],
        n_tokens: int,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        """Run all ops of a graph that keeps nothing of a sequence, over the external buffers,
        [n_tokens, width] each.

        threads: the most to use, 0 for all; NumPy's BLAS ignores it. seconds: float64 [n_ops]; the
        run adds the time of each op.
        """

    def run_layers(
        self,
        bound: Sequence[Any],
        buffers: dict[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, Any]],
        first_layer: int = 0,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        """Runs the graph for several layers in turn, on the same buffers, for several sequences.

        bound: the weights of each layer. sequences: for each (n_tokens, past, state), the state
        made by Backend.sequence_state, which holds `past` tokens and has room for the others; the
        buffers hold the rows of the first sequence first. A state may come several times, with
        more tokens each time. first_layer: the number of the first layer of `bound`: its
        index in the states, and that of its columns for the op layer_columns.
        """


class Stream(Protocol):
    """Byte ranges of files, handed over section by section; see tensor_ops_cpp.Stream."""

    def take(self) -> tuple[int, int]:
        """The number of the next section and its slot, which stay valid until `release`.

        OSError if the section cannot be read or its file was changed; `rewind` then starts anew.
        """

    def push(self, section: Sequence[tuple[int, int, int, Sequence[Any]]]) -> None:
        """Adds a section to a stream that is not endless."""

    def release(self) -> None: ...
    def rewind(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...


class Backend(Protocol):
    name: str
    # Whether a token's numbers are the same, bit for bit, in any batch of more than 64 tokens.
    any_batch: bool
    keeps: frozenset[Role]  # roles of weights that refer to their data after `weight` returns

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        """Prepares a weight for an executor; the result has `shape` and `nbytes`.

        data: the tensor's bytes in the file, of the GGML type `type` ("q4_1"). For a role in
        `keeps` they must not change while the weight is in use.
        """

    def supports(self, op_kind: str) -> bool:
        """Whether the executors run ops of this kind, a key of graph.ops.SIGNATURES."""

    def executor(self, graph: Graph, max_tokens: int) -> Executor:
        """An executor for batches of up to max_tokens. GraphError for an op that the backend does
        not support."""

    def executor_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        """Bytes that such an executor keeps once it has run batches of max_tokens of a sequence, up
        to `positions`. Nothing is allocated."""

    def temporary_bytes(self, graph: Graph, max_tokens: int, positions: int) -> int:
        """Bytes that such a run takes beside what the executor keeps, and gives back."""

    def packed_bytes(self, type: str, shape: tuple[int, int]) -> int:
        """Bytes that a matrix takes in memory."""

    def memory(self, nbytes: int) -> Any:
        """Memory for matrices; a buffer."""

    def matrix_in(
        self, memory: Any, offset: int, type: str, shape: tuple[int, int]
    ) -> tuple[Any, Any]:
        """A matrix at byte `offset` of `memory`, a multiple of 64, and the target with which a
        stream, or `fill`, fills it. The values are undefined until then."""

    def fill(self, target: Any, data: NDArray[Any]) -> None:
        """Puts a matrix, the bytes of its rows in a file, into its place. target: of matrix_in."""

    def stream(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[tuple[int, int, int, Sequence[Any]]]],
        *,
        endless: bool = True,
    ) -> Stream:
        """See tensor_ops_cpp.Stream. A target is one of matrix_in, or (memory, offset)."""

    def sequence_state(
        self, tables: Sequence[tuple[int, int]], layers: Sequence[LayerArgument]
    ) -> Any:
        """What executors take as the state of a sequence; see tensor_ops_cpp.SequenceState. It
        gets its pages, and its recurrent memory, from airllm.state.sequence.SequenceState."""


def check_supported(backend: Backend, graph: Graph) -> None:
    """GraphError, which names them, if the graph has ops that the backend does not support."""
    missing = {op.kind: None for op in graph.ops if not backend.supports(op.kind)}
    if missing:
        raise GraphError(
            f"graph {graph.name!r}: the {backend.name} backend has no op {', '.join(missing)}; "
            f"choose another backend"
        )


def load_backend(name: str | None = None, threads: int | None = None) -> Backend:
    """The backend "cpp" or "numpy"; for None or "auto" the choice of tensor_ops_hybrid.

    threads: of the C++ kernels, for the whole process; None: the number that cpu_budget() gives.
    ImportError for "cpp" if the extension is missing. ValueError for an unknown name, or threads
    outside 1 to 1024; TypeError if threads is no integer.
    """
    if threads is not None:
        threads = check_count("threads", threads, most=MOST_THREADS)
    if name in (None, "auto"):
        from airllm import tensor_ops_hybrid

        name = tensor_ops_hybrid.backend
    if name == "cpp":
        from airllm.backends.cpp_backend import CppBackend

        return CppBackend(threads)
    if name == "numpy":
        from airllm.backends.numpy_backend import NumpyBackend

        if threads is not None:
            _log.warning(
                "threads=%d changes nothing on the NumPy backend: its BLAS reads "
                "OPENBLAS_NUM_THREADS when Python starts",
                threads,
            )
        return NumpyBackend()
    raise ValueError(f"backend is {shown(name)}; expected 'auto', 'cpp' or 'numpy'")
