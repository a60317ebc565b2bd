"""The experts of a mixture that were used last; the others are read from the disk, one by one."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from airllm.backends import Backend, Stream
from airllm.backends.experts import Experts
from airllm.weights.ring import Matrix

Expert = Sequence[Matrix]  # the matrices of one


class ExpertCache:
    """Places in memory for experts of any layer; the one that was not used for longest makes room.

    All that a call asks for and that is not there is read at once, and packed on the way.
    """

    def __init__(
        self, backend: Backend, files: Sequence[tuple[int, str]], places: int, place_bytes: int
    ) -> None:
        """places: at least the experts of a layer. place_bytes: of the largest."""
        self._backend, self._files, self._place_bytes = backend, files, place_bytes
        self._memory = backend.memory(places * place_bytes)
        self._free = list(range(places))
        self._places: OrderedDict[tuple[int, int], int] = OrderedDict()  # of (layer, expert)
        self._rooms: dict[tuple[object, ...], list[tuple[Any, Any]]] = {}
        self._stream: Stream | None = None
        self.hits = self.misses = 0

    def fetch(
        self, layer: int, experts: Sequence[Expert], wanted: Sequence[int]
    ) -> Mapping[str, Experts]:
        """The weights of each slot. experts: all of the layer; wanted: numbers of those that must
        be there: in the others' places stand some of these. OSError where the disk fails."""
        for number in wanted:
            if (layer, number) in self._places:
                self._places.move_to_end((layer, number))
        missing = [number for number in wanted if (layer, number) not in self._places]
        self.hits += len(wanted) - len(missing)
        self.misses += len(missing)
        if missing:
            self._read(layer, experts, missing)
        rooms = {
            number: self._rooms_of(self._places[layer, number], experts[number])
            for number in wanted
        }
        some = rooms[wanted[0]]
        return {
            matrix.slot: Experts(
                rooms.get(number, some)[index][0] for number in range(len(experts))
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
                        experts[number], self._rooms_of(place, experts[number]), strict=True
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
        """Never one that is wanted now: those were moved to the end, and there is room for all."""
        return self._places.popitem(last=False)[1]

    def _rooms_of(self, place: int, expert: Expert) -> list[tuple[Any, Any]]:
        """The matrices of an expert as they are in a place, and their targets."""
        key = (place, *((matrix.type, matrix.shape) for matrix in expert))
        if key not in self._rooms:
            offset, rooms = place * self._place_bytes, []
            for matrix in expert:
                rooms.append(
                    self._backend.matrix_in(self._memory, offset, matrix.type, matrix.shape)
                )
                offset += matrix.nbytes
            self._rooms[key] = rooms
        return self._rooms[key]
