"""Runs graphs on the C++ executor of tensor_ops_cpp: translates a Graph, and adds nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from airllm.backends.experts import Experts
from airllm.graph import Graph, Role

try:
    import tensor_ops_cpp
except ImportError as error:
    raise ImportError(
        f"the C++ extension cannot be imported ({error}); build it with `python -m pip install .`, "
        "or use the NumPy backend"
    ) from error


class CppBackend:
    """Matrices are packed once into the layout that the CPU wants; embeddings stay in the map."""

    name = "cpp"
    keeps: frozenset[Role] = frozenset(["rows"])

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None:
            tensor_ops_cpp.set_num_threads(threads)

    def weight(self, role: Role, data: NDArray[Any], type: str, shape: tuple[int, ...]) -> Any:
        if role == "vector":
            return tensor_ops_cpp.PackedMatrix(data, type, (1, shape[0])).dequantize()[0]
        if role == "experts":
            return Experts(tensor_ops_cpp.PackedMatrix(part, type, shape[1:]) for part in data)
        kind = tensor_ops_cpp.RawRows if role == "rows" else tensor_ops_cpp.PackedMatrix
        return kind(data, type, shape)

    def executor(self, graph: Graph, max_tokens: int) -> "CppExecutor":
        return CppExecutor(graph, max_tokens)

    def kv_layers(self, layers: Sequence[tuple[NDArray[Any], NDArray[Any]]]) -> Any:
        return tensor_ops_cpp.KvLayers(layers)


class CppExecutor:
    def __init__(self, graph: Graph, max_tokens: int) -> None:
        self._graph = graph
        self._executor = tensor_ops_cpp.Executor(
            buffers=[(buffer.name, buffer.width, buffer.external) for buffer in graph.buffers],
            weights=[weight.name for weight in graph.weights],
            ops=[
                (op.kind, list(op.inputs), list(op.outputs), list(op.weights), dict(op.attrs))
                for op in graph.ops
            ],
            max_tokens=max_tokens,
        )
        self.run = self._executor.run  # no Python between the engine's loop and C++
        self.run_layers = self._executor.run_layers

    def bind(self, weights: Mapping[str, Any]) -> Any:
        self._graph.check_bound({name: weight.shape for name, weight in weights.items()})
        return self._executor.bind(dict(weights))

    def weight_bytes(self, bound: tensor_ops_cpp.BoundWeights) -> Mapping[str, int]:
        return bound.nbytes
