"""Weights that do not fit in memory: written to disk as they arrive, streamed for every step.

Some segments stay in memory. The matrices of the other segments pass through a ring, like the local
engine's layers. The results are the same bit for bit, because the packed bytes are the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node import roles
from airllm.cluster.spill import Spill
from airllm.cluster.weights import (
    TYPES,
    assemble,
    matrix_shape,
    plane_memory,
    plane_role,
    prepare,
    staging_bytes,
)
from airllm.cluster.wire import Size
from airllm.graph.graph import Role
from airllm.weights.budget import BudgetError
from airllm.weights.residency import Residency, least_bytes, read_buffer_bytes, reside
from airllm.weights.ring import Matrix, Ring

_STREAMED: frozenset[Role] = frozenset(["matrix", "experts"])  # other roles are small, or rows


def plan_residency(
    lowered: Lowered, sizes: Mapping[WeightKey, Size], backend: Backend, budget: int
) -> Residency:
    """Chooses the segments that stay in memory, so that a step reads the fewest bytes.

    budget: bytes for weights. BudgetError if not even streaming all segments fits.
    """
    role = roles(lowered)
    always = sum(size.nbytes for key, size in sizes.items() if role[key] not in _STREAMED)
    nbytes, longest = [], 0
    for segment in lowered.segments:
        streamed = [sizes[key] for key in segment.weights.values() if role[key] in _STREAMED]
        nbytes.append(sum(size.z * plane_memory(backend, size) for size in streamed))
        longest = max([longest, *(size.plane_bytes for size in streamed)])
    reads = read_buffer_bytes(longest)
    residency = reside(nbytes, budget - always, reads)
    if residency is None:
        minimum = always + least_bytes(nbytes, reads)
        raise BudgetError(f"streaming needs {minimum} bytes for weights, not {budget}", minimum)
    return residency


class StreamedWeights:
    """Has the methods of ResidentWeights."""

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
        # By plane: the prepared weight if it stays in memory, otherwise its offset in the file.
        self._planes: dict[WeightKey, list[Any]] = {key: [None] * s.z for key, s in sizes.items()}
        staging = staging_bytes(lowered, sizes, backend, self._streamed)
        self._staging = np.empty(staging, np.uint8)
        self._bound: dict[int, Any] = {}  # by segment, of those that stay in memory
        self._ring: Ring | None = None
        self._taken = False

    def memory(self, key: WeightKey) -> NDArray[np.uint8]:
        """The memory into which the next plane of a weight is read."""
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
        """Binds the weights and starts to stream; call it after all planes have come."""
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
        type, shape = TYPES[size.type], matrix_shape(size)
        nbytes = plane_memory(self._backend, size)
        return [
            Matrix(slot, role, key[0], type, shape, 0, place, size.plane_bytes, nbytes)
            for place in self._planes[key]
        ]

    def stays(self, index: int) -> bool:
        return False  # `segment` gives back the slot of the segment before

    def segment(self, index: int) -> Any:
        """A segment's bound weights, valid until the next call. OSError if they cannot be read."""
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
        """Ends the reading and closes the file."""
        if self._ring is not None:
            self._ring.close()
        self._bound.clear()
        self._planes.clear()
        self._spill.close()
