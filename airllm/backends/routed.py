"""Layers whose experts are fetched after the router has chosen them.

The layer's graph runs in two halves. The first ends with the router, so that the experts of the
batch are known; the second runs once they have been fetched. The halves share the layer's buffers,
so the results equal those of the whole graph, bit for bit.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend
from airllm.graph.graph import Graph, Op

_ROUTES = "route", "route_to"

# From the numbers of experts to the weights of the slots with the role "experts".
FetchExperts = Callable[[Sequence[int]], Mapping[str, Any]]


def split_at_route(graph: Graph) -> tuple[Graph, Graph]:
    """Splits a graph after its only op that makes a route. Buffers that the second half reads from
    the first are external to both."""
    [end] = [index + 1 for index, op in enumerate(graph.ops) if op.kind in _ROUTES]
    first, second = graph.ops[:end], graph.ops[end:]
    crossing = _names(first) & _names(second)
    return (
        _half(f"{graph.name} up to the route", graph, first, crossing),
        _half(f"{graph.name} after the route", graph, second, crossing),
    )


def _names(ops: Sequence[Op]) -> set[str]:
    """The names of the buffers that the ops read and write."""
    return {name for op in ops for name in (*op.inputs, *op.outputs)}


def _half(name: str, graph: Graph, ops: Sequence[Op], crossing: set[str]) -> Graph:
    names, slots = _names(ops), {slot for op in ops for slot in op.weights}
    buffers = (
        replace(buffer, external=buffer.external or buffer.name in crossing)
        for buffer in graph.buffers
        if buffer.name in names
    )
    weights = tuple(weight for weight in graph.weights if weight.name in slots)
    return Graph(name, tuple(buffers), weights, tuple(ops))


def has_experts(graph: Graph) -> bool:
    """Whether a RoutedExecutor can run the graph."""
    return "experts" in graph.roles.values()


def routed_bytes(backend: Backend, graph: Graph, max_tokens: int, positions: int) -> int:
    """The executor_bytes of a RoutedExecutor, see Backend."""
    halves = split_at_route(graph)
    of_halves = sum(backend.executor_bytes(half, max_tokens, positions) for half in halves)
    return of_halves + sum(4 * max_tokens * width for width in _crossing(graph, halves[0]).values())


def _crossing(graph: Graph, first: Graph) -> dict[str, int]:
    """The widths of the internal buffers of a graph that its first half hands to the second."""
    own = {buffer.name for buffer in graph.buffers if not buffer.external}
    return {b.name: b.width for b in first.buffers if b.external and b.name in own}


@dataclass
class RoutedWeights:
    """The result of RoutedExecutor.bind."""

    first: Any  # bound
    kept: Mapping[str, Any]  # weights of the second half, without experts
    fetch: FetchExperts
    second: Any = None  # bound in the last run


class RoutedExecutor:
    """An Executor for a graph with experts, which `bind_routed` takes from a function."""

    def __init__(self, backend: Backend, graph: Graph, max_tokens: int) -> None:
        self._graphs = split_at_route(graph)
        self._first, self._second = (backend.executor(half, max_tokens) for half in self._graphs)
        self._crossing = {
            name: np.empty((max_tokens, width), np.float32)
            for name, width in _crossing(graph, self._graphs[0]).items()
        }
        route = self._graphs[0].ops[-1]
        assert route.output is not None
        self._route, self._n_used = route.output, int(route.attrs["n_used"])

    def bind(self, weights: Mapping[str, Any]) -> RoutedWeights:
        """Binds a layer whose experts are all in memory."""
        slots = {slot for slot, role in self._graphs[1].roles.items() if role == "experts"}
        experts = {slot: weight for slot, weight in weights.items() if slot in slots}
        kept = {slot: weight for slot, weight in weights.items() if slot not in slots}
        return self.bind_routed(kept, lambda _: experts)

    def bind_routed(self, weights: Mapping[str, Any], fetch: FetchExperts) -> RoutedWeights:
        """weights: all but the experts. fetch: each run calls it with the numbers of the experts
        that its tokens use; it may return anything for the others."""
        roles = self._graphs[0].roles
        return RoutedWeights(
            self._first.bind({slot: weight for slot, weight in weights.items() if slot in roles}),
            {slot: weight for slot, weight in weights.items() if slot not in roles},
            fetch,
        )

    def weight_bytes(self, bound: RoutedWeights) -> Mapping[str, int]:
        return {
            **self._first.weight_bytes(bound.first),
            **self._second.weight_bytes(bound.second),
        }

    def run(
        self,
        bound: RoutedWeights,
        buffers: dict[str, NDArray[Any]],
        n_tokens: int,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        of_halves, times = self._buffers(buffers, n_tokens), self._seconds(seconds)
        self._first.run(bound.first, of_halves[0], n_tokens, threads, times[0])
        self._bind_second(bound, n_tokens)
        self._second.run(bound.second, of_halves[1], n_tokens, threads, times[1])

    def run_layers(
        self,
        bound: Sequence[RoutedWeights],
        buffers: dict[str, NDArray[Any]],
        sequences: Sequence[tuple[int, int, Any]],
        first_layer: int = 0,
        threads: int = 0,
        seconds: NDArray[np.float64] | None = None,
    ) -> None:
        n_tokens = sum(count for count, *_ in sequences)
        of_halves, times = self._buffers(buffers, n_tokens), self._seconds(seconds)
        for layer, weights in enumerate(bound, first_layer):
            self._first.run_layers(
                [weights.first], of_halves[0], sequences, layer, threads, times[0]
            )
            self._bind_second(weights, n_tokens)
            self._second.run_layers(
                [weights.second], of_halves[1], sequences, layer, threads, times[1]
            )

    def _bind_second(self, bound: RoutedWeights, n_tokens: int) -> None:
        """Binds the second half with the experts that the first half has chosen."""
        experts = np.unique(self._crossing[self._route][:n_tokens, : self._n_used])
        fetched = bound.fetch(experts.astype(np.int64).tolist())
        bound.second = self._second.bind({**bound.kept, **fetched})

    def _buffers(
        self, buffers: Mapping[str, NDArray[Any]], n_tokens: int
    ) -> list[dict[str, NDArray[Any]]]:
        """The external buffers of each half."""
        crossing = {name: array[:n_tokens] for name, array in self._crossing.items()}
        everything = {**buffers, **crossing}
        return [
            {buffer.name: everything[buffer.name] for buffer in half.buffers if buffer.external}
            for half in self._graphs
        ]

    def _seconds(
        self, seconds: NDArray[np.float64] | None
    ) -> tuple[NDArray[np.float64] | None, NDArray[np.float64] | None]:
        if seconds is None:
            return None, None
        n_first = len(self._graphs[0].ops)
        return seconds[:n_first], seconds[n_first:]
