"""Backends: what prepares weights and runs graphs. C++ where it is built, NumPy everywhere."""

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.graph.graph import Graph, Role
from airllm.util.arguments import check_count
from airllm.util.shown import shown

__all__ = ["MOST_THREADS", "Backend", "Executor", "Stream", "load_backend"]

MOST_THREADS = 1024  # that the kernels may be given

_log = logging.getLogger("airllm")


class Executor(Protocol):
    """Runs one graph; owns its internal buffers. For one thread at a time."""

    def bind(self, weights: Mapping[str, Any]) -> Any:
        """Put weights, as Backend.weight gives them, in the graph's slots; `run` takes the result.

        Cheap, and keeps references. GraphError when a slot is missing or a shape is wrong.
        """

    def weight_bytes(self, bound: Any) -> Mapping[str, int]:
        """Bytes of each slot's weight, as the backend keeps it."""

    def run(
        self,
        bound: Any,
        buffers: dict[str, NDArray[Any]],
        n_tokens: int,
        past: int = 0,
        k_cache: NDArray[Any] | None = None,
        v_cache: NDArray[Any] | None = None,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        """Run all ops over the external buffers, [n_tokens, width] each.

        k_cache, v_cache: [n_kv_heads, capacity, head_dim], float32 or float16, or uint8 with rows
        of Q8_0, of the layer whose weights are bound; they hold `past` tokens, and the batch is
        appended to them. threads: at most so many, 0 for all; NumPy's BLAS decides for itself.
        seconds: float64 [n_ops], to which the time of each op is added.
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
        """run with one layer's weights after another's, on the same buffers, and for several
        sequences at once, each with caches of its own.

        sequences: (n_tokens, past, what Backend.kv_layers made of its caches) of each; the rows of
        the first one come first in the buffers. first_layer: where in the caches `bound` begins.
        """


class Stream(Protocol):
    """Byte ranges of files, handed over section by section; see tensor_ops_cpp.Stream."""

    def take(self) -> tuple[int, int]:
        """The next section, and the slot that it is in, until `release`. OSError where it cannot be
        read, or its file was changed; after that `rewind` tries again."""

    def push(self, section: Sequence[tuple[int, int, int, Sequence[Any]]]) -> None:
        """Another section, of a stream that is not endless."""

    def release(self) -> None: ...
    def rewind(self) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> dict[str, Any]: ...


class Backend(Protocol):
    name: str
    # Whether a token's numbers are the same, bit for bit, in any batch of more than 64.
    any_batch: bool
    keeps: frozenset[Role]  # roles of weights that go on reading the data they were made from

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        """A weight prepared for an executor; it has `shape` and `nbytes`.

        data: a tensor's bytes as the file has them, of the GGML type `type` ("q4_1"). For a role
        in `keeps` it must stay as it is as long as the weight is used.
        """

    def executor(self, graph: Graph, max_tokens: int) -> Executor:
        """An executor for batches of up to max_tokens."""

    def packed_bytes(self, type: str, shape: tuple[int, int]) -> int:
        """Bytes that a matrix takes in memory."""

    def memory(self, nbytes: int) -> Any:
        """Memory for matrices; a buffer."""

    def matrix_in(
        self, memory: Any, offset: int, type: str, shape: tuple[int, int]
    ) -> tuple[Any, Any]:
        """A matrix `offset` bytes, a multiple of 64, into `memory`, and what a stream's range goes
        to so that it is filled; until then its values are undefined."""

    def stream(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[tuple[int, int, int, Sequence[Any]]]],
        *,
        endless: bool = True,
    ) -> Stream:
        """See tensor_ops_cpp.Stream. A target is one of matrix_in, or (memory, offset)."""

    def kv_layers(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Any:
        """A sequence's caches, k_cache and v_cache of each layer, checked once for all runs."""


def load_backend(name: str | None = None, threads: int | None = None) -> Backend:
    """The backend of that name: "cpp", "numpy", or (None, "auto") what tensor_ops_hybrid chose.

    threads: how many the C++ kernels use, for the whole process; None: what cpu_budget() says.
    ImportError when "cpp" is asked for and the extension is not there; ValueError for a bad name,
    or a number of threads that is not 1 to 1024, TypeError for another thing than a number.
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
