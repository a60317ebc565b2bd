"""Keeps a mixture's most recently used experts in memory and reads the others from the disk."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.backends import Backend, Stream
from airllm.backends.experts import Experts
from airllm.weights.ring import Matrix

Expert = Sequence[Matrix]  # the matrices of one expert


class ExpertCache:
    """An LRU cache: places in memory, each for an expert of any layer.

    A call reads all of its missing experts together; they are packed while they are read.
    """

    def __init__(
        self, backend: Backend, files: Sequence[tuple[int, str]], places: int, place_bytes: int
    ) -> None:
        """places: at least the number of experts of a layer. place_bytes: of the largest expert."""
        self._backend, self._files, self._place_bytes = backend, files, place_bytes
        self._memory = backend.memory(places * place_bytes)
        self._free = list(range(places))
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()  # of (layer, expert)
        self._matrices: dict[tuple[object, ...], list[tuple[Any, Any]]] = {}
        self._stream: Stream | None = None
        self.hits = self.misses = 0

    def fetch(
        self, layer: int, experts: Sequence[Expert], wanted: Sequence[int]
    ) -> Mapping[str, Experts]:
        """The weights of each slot. experts: all experts of the layer. wanted: the numbers of the
        experts to fetch; a fetched expert stands in for each of the others. OSError if the disk
        fails."""
        for number in wanted:
            if (layer, number) in self._places:
                self._places.move_to_end((layer, number))
        missing = [number for number in wanted if (layer, number) not in self._places]
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        if missing:
            self._read(layer, experts, missing)
        fetched = {
            number: self._matrices_at(self._places[layer, number], experts[number])
            for number in wanted
        }
        stand_in = fetched[wanted[0]]
        return {
            matrix.slot: Experts(
                fetched.get(number, stand_in)[index][0] for number in range(len(experts))
            )
            for index, matrix in enumerate(experts[wanted[0]])
        }

    def stats(self) -> dict[str, Any]:
        stream = self._stream or self._open()
        return {**stream.stats(), "expert_hits": self.hits, "expert_misses": self.misses}

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _open(self) -> Stream:
        self._stream = self._backend.stream(self._files, [], endless=False)
        return self._stream

    def _read(self, layer: int, experts: Sequence[Expert], missing: Sequence[int]) -> None:
        stream = self._stream or self._open()
        places = [self._free.pop() if self._free else self._evict() for _ in missing]
        try:
            stream.push(
                [
                    (matrix.file, matrix.offset, matrix.file_bytes, [target])
                    for number, place in zip(missing, places, strict=True)
                    for matrix, (_, target) in zip(
                        experts[number], self._matrices_at(place, experts[number]), strict=True
                    )
                ]
            )
            stream.take()
            stream.release()
        except BaseException:
            stream.close()
            self._stream = None
            self._free += places
            raise
        for number, place in zip(missing, places, strict=True):
            self._places[layer, number] = place

    def _evict(self) -> int:
        """Frees the place of the least recently used expert. It is never one that the call wants:
        `fetch` moved those to the end, and there are places for all of them."""
        return self._places.popitem(last=False)[1]

    def _matrices_at(self, place: int, expert: Expert) -> list[tuple[Any, Any]]:
        """For each matrix of an expert: the matrix in that place, and the stream's target for it.
        Made once for each place and list of shapes."""
        key = (place, *((matrix.type, matrix.shape) for matrix in expert))
        if key not in self._matrices:
            offset, matrices = place * self._place_bytes, []
            for matrix in expert:
                matrices.append(
                    self._backend.matrix_in(self._memory, offset, matrix.type, matrix.shape)
                )
                offset += matrix.nbytes
            self._matrices[key] = matrices
        return self._matrices[key]
