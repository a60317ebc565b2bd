"""Weights that memory has no room for: written to disk as they arrive, streamed for every step.

Some segments are kept; the matrices of the others are read and packed by the backend's stream, one
or two segments ahead of the one that computes, as the local engine's layers are. What is computed
is the same bit for bit, as the same bytes are packed in the same way.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor, Stream
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node import roles
from airllm.cluster.spill import Spill
from airllm.cluster.weights import TYPES, assemble, matrix_shape, plane_role, prepare
from airllm.cluster.wire import Size
from airllm.graph.graph import Role
from airllm.weights.budget import BudgetError
from airllm.weights.plan import ALIGNMENT, READ_BYTES, READ_DEPTH

_READS = READ_DEPTH * (READ_BYTES + (8 << 10))  # bytes of reads under way, whole pages each
_STREAMED: frozenset[Role] = frozenset(["matrix", "experts"])  # other roles are small, or rows


@dataclass(frozen=True, slots=True)
class Residence:
    """kept: numbers of the segments whose weights stay in memory. slots: of the ring that the
    others pass through, of `slot_bytes` each. streamed_bytes: that every step reads."""

    kept: frozenset[int]
    slots: int
    slot_bytes: int
    streamed_bytes: int


def plan_residence(
    lowered: Lowered, sizes: Mapping[WeightKey, Size], backend: Backend, budget: int
) -> Residence:
    """How to run a program's segments with so many bytes for weights, so that the least is read for
    a step. BudgetError where not even streaming fits."""
    role = roles(lowered)
    always = sum(size.nbytes for key, size in sizes.items() if role[key] not in _STREAMED)
    nbytes = [
        sum(
            sizes[key].z * _room(backend, sizes[key])
            for key in segment.weights.values()
            if role[key] in _STREAMED
        )
        for segment in lowered.segments
    ]
    residence = residence_of(nbytes, budget - always)
    if residence is None:
        minimum = always + max(nbytes, default=0) + _READS
        raise BudgetError(f"to stream takes {minimum} bytes for weights, not {budget}", minimum)
    return residence


def residence_of(nbytes: Sequence[int], budget: int) -> Residence | None:
    """Of segments of so many bytes, as the backend packs them; None where nothing fits.

    A slot holds the largest segment that streams, so it may be better to keep the largest ones.
    Two slots let the disk work while a segment is computed; one is the last resort.
    """
    total = sum(nbytes)
    if total <= budget:
        return Residence(frozenset(range(len(nbytes))), 0, 0, 0)
    for slots in (2, 1):
        fitting = []
        for largest in sorted(set(nbytes)):
            kept = {index for index, n in enumerate(nbytes) if n > largest}
            room = budget - _READS - slots * largest - sum(nbytes[index] for index in kept)
            if room >= 0:
                kept |= _spread(nbytes, kept, room)
                streamed = total - sum(nbytes[index] for index in kept)
                fitting.append(Residence(frozenset(kept), slots, largest, streamed))
        if fitting:
            return min(fitting, key=lambda residence: residence.streamed_bytes)
    return None


def _spread(nbytes: Sequence[int], kept: set[int], room: int) -> set[int]:
    """More segments that fit in `room`, evenly spread: while one of them computes, the disk reads
    for the next that streams."""
    others = [index for index in range(len(nbytes)) if index not in kept]
    share = min(room / max(sum(nbytes[index] for index in others), 1), 1.0)
    more: set[int] = set()
    credit = 0.0
    for index in others:
        credit += share * nbytes[index]
        if nbytes[index] <= min(credit, room):
            more.add(index)
            credit -= nbytes[index]
            room -= nbytes[index]
    for index in others:  # what is left of the room
        if index not in more and nbytes[index] <= room:
            more.add(index)
            room -= nbytes[index]
    return more


class StreamedWeights:
    """Takes weights as ResidentWeights does."""

    def __init__(
        self,
        lowered: Lowered,
        sizes: Mapping[WeightKey, Size],
        backend: Backend,
        spill: Spill,
        residence: Residence,
    ) -> None:
        self._lowered, self._sizes, self._backend, self._spill = lowered, sizes, backend, spill
        self._residence = residence
        self._roles = roles(lowered)
        self._streamed = {
            key
            for number, segment in enumerate(lowered.segments)
            for key in segment.weights.values()
            if number not in residence.kept and self._roles[key] in _STREAMED
        }
        # What is kept, and the places of what is not, by plane.
        self._planes: dict[WeightKey, list[Any]] = {key: [None] * s.z for key, s in sizes.items()}
        largest = max((size.plane_bytes for size in sizes.values()), default=0)
        self._staging = np.empty(largest, np.uint8)
        self._bound: dict[int, list[Any]] = {}  # of each segment, in each slot
        self._section: dict[int, int] = {}  # of the stream, by segment
        self._stream: Stream | None = None
        self._holds_section = False
        self.waited_seconds = 0.0

    def memory(self, key: WeightKey) -> NDArray[np.uint8]:
        """Where the next plane of a weight is to be read to."""
        n = self._sizes[key].plane_bytes
        keeps = plane_role(self._roles[key]) in self._backend.keeps
        return np.empty(n, np.uint8) if keeps and key not in self._streamed else self._staging[:n]

    def put(self, key: WeightKey, plane: int, data: NDArray[np.uint8]) -> None:
        if key in self._streamed:
            self._planes[key][plane] = self._spill.store(data)
        else:
            self._planes[key][plane] = prepare(
                self._backend, self._roles[key], data, self._sizes[key]
            )

    def finish(self, executors: Sequence[Executor]) -> None:
        """All planes are there: bind them, and begin to read."""
        self._staging = np.empty(0, np.uint8)
        slots = [
            self._backend.memory(self._residence.slot_bytes) for _ in range(self._residence.slots)
        ]
        sections: list[list[tuple[int, int, int, list[Any]]]] = []
        for number, segment in enumerate(self._lowered.segments):
            keys = segment.weights
            kept = {
                slot: assemble(self._roles[key], self._planes[key])
                for slot, key in keys.items()
                if key not in self._streamed
            }
            streamed = {slot: key for slot, key in keys.items() if key in self._streamed}
            if not streamed:
                self._bound[number] = [executors[number].bind(kept)]
                continue
            filled = [self._rooms(streamed, memory) for memory in slots]
            self._bound[number] = [executors[number].bind(kept | rooms) for rooms, _ in filled]
            self._section[number] = len(sections)
            ranges = zip(*(ranges for _, ranges in filled), strict=True)
            sections.append(
                [(0, *of_slots[0][:2], [target for *_, target in of_slots]) for of_slots in ranges]
            )
        if sections:
            files = [(self._spill.descriptor, self._spill.name)]
            self._stream = self._backend.stream(files, sections)

    def _rooms(
        self, keys: Mapping[str, WeightKey], memory: Any
    ) -> tuple[dict[str, Any], list[tuple[int, int, Any]]]:
        """Weights by graph's slot, one after the other in `memory`; and (place in the file, bytes,
        target) of what fills them."""
        weights: dict[str, Any] = {}
        ranges: list[tuple[int, int, Any]] = []
        offset = 0
        for slot, key in keys.items():
            size, rooms = self._sizes[key], []
            for place in self._planes[key]:
                room, target = self._backend.matrix_in(
                    memory, offset, TYPES[size.type], matrix_shape(size)
                )
                rooms.append(room)
                ranges.append((place, size.plane_bytes, target))
                offset += _room(self._backend, size)
            weights[slot] = assemble(self._roles[key], rooms)
        return weights, ranges

    def stays(self, index: int) -> bool:
        return False  # asking for a segment gives back the slot of the one before

    def segment(self, index: int) -> Any:
        """A segment's bound weights, until the next call. OSError where they cannot be read."""
        if self._stream is not None and self._holds_section:
            self._stream.release()
            self._holds_section = False
        if index not in self._section:
            return self._bound[index][0]
        assert self._stream is not None
        began = time.perf_counter()
        section, slot = self._stream.take()
        self._holds_section = True
        self.waited_seconds += time.perf_counter() - began
        assert section == self._section[index], "every step needs the segments in the same order"
        return self._bound[index][slot]

    @property
    def read_bytes(self) -> int:
        return 0 if self._stream is None else int(self._stream.stats()["bytes_read"])

    def close(self) -> None:
        """Ends the reading; what it has on disk is given back."""
        if self._stream is not None:
            self._stream.close()
        self._bound.clear()
        self._planes.clear()
        self._spill.close()


def _room(backend: Backend, size: Size) -> int:
    """Bytes of a plane in memory."""
    packed = backend.packed_bytes(TYPES[size.type], matrix_shape(size))
    return -(-packed // ALIGNMENT) * ALIGNMENT
