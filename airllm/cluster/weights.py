"""A node's weights, prepared for the backend as they come from the wire.

One plane (a matrix, or an expert's matrix) at a time is read into memory that all planes share, and
prepared from there, so that no weight is in memory twice.
"""

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend, Executor
from airllm.backends.experts import Experts
from airllm.cluster.lowered import Lowered, WeightKey
from airllm.cluster.node import roles
from airllm.cluster.protocol import WeightHeader
from airllm.cluster.wire import Fields, FloatType, ProtocolError, Size
from airllm.graph.graph import Role
from airllm.weights.ring import aligned_bytes

TYPES = {FloatType.F32: "f32", FloatType.Q40: "q4_0"}


class Arrivals:
    """Which weights a program needs, and which planes of them have come."""

    def __init__(self, sizes: Mapping[WeightKey, Size]) -> None:
        self._sizes = sizes
        self._missing = {key: set(range(size.z)) for key, size in sizes.items()}

    def expect(self, header: WeightHeader) -> Iterator[int]:
        """The planes that follow a header, in order. ProtocolError for other bytes."""
        f = Fields(lambda n: b"", f"weight {header.name!r} {header.index}")
        size = self._sizes.get((header.name, header.index))
        if size is None:
            raise ProtocolError(f"{f.message}: no op of this node has that name and index")
        plane = size.plane_bytes
        if header.nbytes == 0 or header.nbytes % plane:
            raise f.fault("the number of its bytes", header.nbytes, f"a multiple of {plane}")
        if header.offset % plane or header.offset + header.nbytes > size.nbytes:
            whole = f"a multiple of {plane} that leaves room in its {size.nbytes} bytes"
            raise f.fault("its offset", header.offset, whole)
        first = header.offset // plane
        for index in range(first, first + header.nbytes // plane):
            if index not in self._missing[header.name, header.index]:
                raise ProtocolError(f"{f.message}: its bytes at {index * plane} came already")
            yield index
            self._missing[header.name, header.index].discard(index)

    def finish(self) -> None:
        """ProtocolError unless everything has come."""
        for (name, index), missing in self._missing.items():
            if missing:
                size = self._sizes[name, index]
                n = len(missing) * size.plane_bytes
                raise ProtocolError(
                    f"weight {name!r} {index}: {n} of {size.nbytes} bytes are missing"
                )


class ResidentWeights:
    """All weights in memory."""

    def __init__(self, lowered: Lowered, sizes: Mapping[WeightKey, Size], backend: Backend) -> None:
        self._lowered, self._sizes, self._backend = lowered, sizes, backend
        self._roles = roles(lowered)
        self._planes: dict[WeightKey, list[Any]] = {key: [None] * s.z for key, s in sizes.items()}
        self._staging = np.empty(staging_bytes(lowered, sizes, backend), np.uint8)
        self._bound: list[Any] = []

    def memory(self, key: WeightKey) -> NDArray[np.uint8]:
        """The memory into which the next plane of a weight is read."""
        n = self._sizes[key].plane_bytes
        keeps = plane_role(self._roles[key]) in self._backend.keeps
        return np.empty(n, np.uint8) if keeps else self._staging[:n]

    def put(self, key: WeightKey, plane: int, data: NDArray[np.uint8]) -> None:
        self._planes[key][plane] = prepare(self._backend, self._roles[key], data, self._sizes[key])

    def finish(self, executors: Sequence[Executor]) -> None:
        """Binds the weights to the segments; call it after all planes have come."""
        self._staging = np.empty(0, np.uint8)
        self._bound = [
            executor.bind(
                {
                    slot: assemble(self._roles[key], self._planes[key])
                    for slot, key in segment.weights.items()
                }
            )
            for segment, executor in zip(self._lowered.segments, executors, strict=True)
        ]

    def stays(self, index: int) -> bool:
        return True

    def segment(self, index: int) -> Any:
        return self._bound[index]

    waited_seconds, read_bytes = 0.0, 0  # no disk is used

    def close(self) -> None:
        self._bound.clear()
        self._planes.clear()


def prepare(backend: Backend, role: Role, data: NDArray[np.uint8], size: Size) -> Any:
    """One plane as a weight of the backend."""
    type = TYPES[size.type]
    if role == "vector":
        return backend.weight(role, data, type, (size.x,))
    if role == "rows":
        return backend.weight(role, data, type, (size.y, size.x))
    return backend.weight(plane_role(role), data, type, matrix_shape(size))


def assemble(role: Role, planes: list[Any]) -> Any:
    return Experts(planes) if role == "experts" else planes[0]


def memory_bytes(lowered: Lowered, sizes: Mapping[WeightKey, Size], backend: Backend) -> int:
    """Bytes of all weights in memory."""
    role = roles(lowered)
    return sum(
        size.z * plane_memory(backend, size) if plane_role(role[key]) == "matrix" else size.nbytes
        for key, size in sizes.items()
    )


def staging_bytes(
    lowered: Lowered,
    sizes: Mapping[WeightKey, Size],
    backend: Backend,
    streamed: Container[WeightKey] = (),
) -> int:
    """Bytes of the memory into which planes are read one after another: those that the backend
    packs, and those of streamed weights. Others are read to where they stay."""
    role = roles(lowered)
    passing = (
        size.plane_bytes
        for key, size in sizes.items()
        if key in streamed or plane_role(role[key]) not in backend.keeps
    )
    return max(passing, default=0)


def plane_memory(backend: Backend, size: Size) -> int:
    """Bytes of a plane of a matrix in memory."""
    return aligned_bytes(backend.packed_bytes(TYPES[size.type], matrix_shape(size)))


def matrix_shape(size: Size) -> tuple[int, int]:
    """(n, k) of a plane: x outputs of y inputs each."""
    return size.x, size.y


def plane_role(role: Role) -> Role:
    return "matrix" if role == "experts" else role
