"""Weights of a model whose tokens go several times through the same layers."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

from airllm.weights.layer_weights import WeightSource

__all__ = ["LoopedWeights"]


class LoopedWeights:
    """A WeightSource whose layers repeat another's. Each layer is in memory, or passes through it,
    as it is there. A streamed head follows the last layer there: what is read of it after other
    loops is read in vain."""

    def __init__(self, source: WeightSource, n_layers: int) -> None:
        """n_layers: of source."""
        self._source, self._n = source, n_layers
        self.streams, self.layers_at_once = source.streams, source.layers_at_once

    def embed(self) -> AbstractContextManager[Any]:
        return self._source.embed()

    def layer(self, index: int) -> AbstractContextManager[Any]:
        return self._source.layer(index % self._n)

    @contextmanager
    def layers(self, start: int, stop: int) -> Iterator[Sequence[Any]]:
        bound: list[Any] = []
        with ExitStack() as held:
            while start < stop:
                first = start % self._n
                end = min(first + stop - start, self._n)
                bound += held.enter_context(self._source.layers(first, end))
                start += end - first
            yield bound

    def head(self) -> AbstractContextManager[Any]:
        return self._source.head()

    def next_head(self) -> AbstractContextManager[Sequence[Any]]:
        return self._source.next_head()

    @property
    def nbytes(self) -> int:
        return self._source.nbytes

    def stream_stats(self) -> dict[str, Any] | None:
        return self._source.stream_stats()

    def close(self) -> None:
        self._source.close()
