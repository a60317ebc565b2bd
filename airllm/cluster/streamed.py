"""Weights that memory has no room for: written to disk as they arrive, streamed for every step.

Some segments are kept; the matrices of the others pass through a ring, as the local engine's layers
do. What is computed is the same bit for bit, as the same bytes are packed in the same way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node import roles
from airllm.cluster.spill import Spill
from airllm.cluster.weights import TYPES, assemble, matrix_shape, plane_role, prepare
from airllm.cluster.wire import Size
from airllm.graph.graph import Role
from airllm.weights.budget import BudgetError
from airllm.weights.residency import Residency, least_bytes, read_buffer_bytes, reside
from airllm.weights.ring import Matrix, Ring, aligned_bytes

_STREAMED: frozenset[Role] = frozenset(["matrix", "experts"])  # other roles are small, or rows


def plan_residency(
    lowered: Lowered, sizes: Mapping[WeightKey, Size], backend: Backend, budget: int
) -> Residency:
    """How to run a program's segments with so many bytes for weights, so that the least is read for
    a step. BudgetError where not even streaming fits."""
    role = roles(lowered)
    always = sum(size.nbytes for key, size in sizes.items() if role[key] not in _STREAMED)
    nbytes, longest = [], 0
    for segment in lowered.segments:
        streamed = [sizes[key] for key in segment.weights.values() if role[key] in _STREAMED]
        nbytes.append(sum(size.z * _room(backend, size) for size in streamed))
        longest = max([longest, *(size.plane_bytes for size in streamed)])
    reads = read_buffer_bytes(longest)
    residency = reside(nbytes, budget - always, reads)
    if residency is None:
        minimum = always + least_bytes(nbytes, reads)
        raise BudgetError(f"to stream takes {minimum} bytes for weights, not {budget}", minimum)
    return residency


class StreamedWeights:
    """Takes weights as ResidentWeights does."""

    def __init__(
        self,
        lowered: Lowered,
        sizes: Mapping[WeightKey, Size],
        backend: Backend,
        spill: Spill,
        residency: Residency,
    ) -> None:
        self._lowered, self._sizes, self._backend, self._spill = lowered, sizes, backend, spill
        self._residency = residency
        self._roles = roles(lowered)
        self._streamed = {
            key
            for number, segment in enumerate(lowered.segments)
            for key in segment.weights.values()
            if number not in residency.pinned and self._roles[key] in _STREAMED
        }
        # What is kept, and the places of what is not, by plane.
        self._planes: dict[WeightKey, list[Any]] = {key: [None] * s.z for key, s in sizes.items()}
        largest = max((size.plane_bytes for size in sizes.values()), default=0)
        self._staging = np.empty(largest, np.uint8)
        self._bound: dict[int, Any] = {}  # of each segment that is kept
        self._ring: Ring | None = None
        self._taken = False

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
        ring = Ring(
            self._backend,
            [(self._spill.descriptor, self._spill.name)],
            self._residency.slots,
            self._residency.slot_bytes,
        )
        for number, segment in enumerate(self._lowered.segments):
            keys = segment.weights
            kept = {
                slot: assemble(self._roles[key], self._planes[key])
                for slot, key in keys.items()
                if key not in self._streamed
            }
            streamed = [(slot, key) for slot, key in keys.items() if key in self._streamed]
            if streamed:
                matrices = [each for slot, key in streamed for each in self._matrices(slot, key)]
                ring.add(number, executors[number], kept, matrices)
            else:
                self._bound[number] = executors[number].bind(kept)
        if self._streamed:
            ring.start()
            self._ring = ring

    def _matrices(self, slot: str, key: WeightKey) -> list[Matrix]:
        """A weight's planes, and their places in the file."""
        size, role = self._sizes[key], self._roles[key]
        type, shape, nbytes = TYPES[size.type], matrix_shape(size), _room(self._backend, size)
        return [
            Matrix(slot, role, key[0], type, shape, 0, place, size.plane_bytes, nbytes)
            for place in self._planes[key]
        ]

    def stays(self, index: int) -> bool:
        return False  # asking for a segment gives back the slot of the one before

    def segment(self, index: int) -> Any:
        """A segment's bound weights, until the next call. OSError where they cannot be read."""
        if self._ring is not None and self._taken:
            self._ring.release()
            self._taken = False
        if self._ring is None or index not in self._ring:
            return self._bound[index]
        bound = self._ring.take(index)
        self._taken = True
        return bound

    @property
    def waited_seconds(self) -> float:
        return 0.0 if self._ring is None else float(self._ring.stats()["waited_for_disk_seconds"])

    @property
    def read_bytes(self) -> int:
        return 0 if self._ring is None else int(self._ring.stats()["bytes_read"])

    def close(self) -> None:
        """Ends the reading; what it has on disk is given back."""
        if self._ring is not None:
            self._ring.close()
        self._bound.clear()
        self._planes.clear()
        self._spill.close()


def _room(backend: Backend, size: Size) -> int:
    """Bytes of a plane in memory."""
    return aligned_bytes(backend.packed_bytes(TYPES[size.type], matrix_shape(size)))
