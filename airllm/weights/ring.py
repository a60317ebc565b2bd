"""Matrices that pass through a few slots of memory, read and packed ahead of need.

ring = Ring(backend, files, slots=2, slot_bytes=...)
for number in ...: ring.add(number, executor, kept, matrices)
ring.start()
bound = ring.take(number)     # in the order of `add`, pass after pass
ring.release()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from airllm.backends import Backend, Executor, Stream
from airllm.backends.experts import Experts
from airllm.graph.graph import MANY, Role

__all__ = ["Matrix", "Ring", "Section", "aligned_bytes", "bind_in", "rooms_in"]

ALIGNMENT = 64  # of each matrix in its memory

# File, offset, bytes, and a target for each slot.
Section = list[tuple[int, int, int, list[Any]]]


@dataclass(frozen=True)
class Matrix:
    """A matrix, or the matrix of one expert or head, and its place on the disk."""

    slot: str  # of the graph
    role: Role
    name: str  # of its tensor
    type: str  # "q4_1"
    shape: tuple[int, int]
    file: int  # the number of the file
    offset: int  # in the file
    file_bytes: int
    nbytes: int  # in memory, with padding to align the next matrix


def aligned_bytes(packed: int) -> int:
    """Bytes of a matrix in memory, with padding to align the next matrix."""
    return -(-packed // ALIGNMENT) * ALIGNMENT


def rooms_in(
    backend: Backend, memory: Any, matrices: Sequence[Matrix]
) -> tuple[dict[str, Any], Section]:
    """Lays matrices out in `memory`, one after the other. Returns the weights by the graph's slots,
    and the section that fills them."""
    weights: dict[str, Any] = {}
    many: dict[str, list[Any]] = {}
    section: Section = []
    offset = 0
    for matrix in matrices:
        weight, target = backend.matrix_in(memory, offset, matrix.type, matrix.shape)
        if matrix.role in MANY:
            many.setdefault(matrix.slot, []).append(weight)
        else:
            weights[matrix.slot] = weight
        section.append((matrix.file, matrix.offset, matrix.file_bytes, [target]))
        offset += matrix.nbytes
    weights |= {slot: Experts(of_each) for slot, of_each in many.items()}
    return weights, section


def bind_in(
    backend: Backend,
    executor: Executor,
    kept: Mapping[str, Any],
    matrices: Sequence[Matrix],
    memories: Sequence[Any],
) -> tuple[list[Any], Section]:
    """Binds the matrices once in each memory. Returns the bound weights, one for each memory, and
    the section that fills any of them. kept: the other weights, by slot; they stay in memory."""
    bound, sections = [], []
    for memory in memories:
        weights, section = rooms_in(backend, memory, matrices)
        bound.append(executor.bind({**kept, **weights}))
        sections.append(section)
    merged = [
        (file, at, n, [target for *_, targets in of_memories for target in targets])
        for of_memories in zip(*sections, strict=True)
        for file, at, n, _ in of_memories[:1]
    ]
    return bound, merged


class Ring:
    """For one thread at a time. The constructor allocates all memory.

    `take` raises OSError if the disk fails; the next pass begins anew, and may succeed.
    """

    def __init__(
        self, backend: Backend, files: Sequence[tuple[int, str]], slots: int, slot_bytes: int
    ) -> None:
        """files: the descriptor and name of each file."""
        self._backend, self._files = backend, files
        self._slots = [backend.memory(slot_bytes) for _ in range(slots)]
        self._bound: list[list[Any]] = []  # of each section, in each slot
        self._at: dict[int, int] = {}  # section by number
        self._sections: list[Section] = []
        self._next = self._held = 0
        self._stream: Stream | None = None

    def add(
        self,
        number: int,
        executor: Executor,
        kept: Mapping[str, Any],
        matrices: Sequence[Matrix],
    ) -> None:
        """Adds the weights that `take(number)` returns; only before `start`. kept: the weights that
        stay in memory."""
        bound, section = bind_in(self._backend, executor, kept, matrices, self._slots)
        self._at[number] = len(self._sections)
        self._bound.append(bound)
        self._sections.append(section)

    def start(self) -> None:
        """Begin to read. OSError if a file cannot be used."""
        self._stream = self._backend.stream(self._files, self._sections)
        self._sections = []

    def __contains__(self, number: int) -> bool:
        return number in self._at

    def take(self, number: int) -> Any:
        """The bound weights of `number`, valid until `release`. Numbers may come in any order; only
        the next one in the order of `add` has been read ahead."""
        stream = self._started()
        wanted = self._at[number]
        if wanted < self._next:  # the last pass was left early
            self._next = 0
            stream.rewind()
        try:
            while True:
                section, slot = stream.take()
                self._held = section
                if section == wanted:
                    return self._bound[section][slot]
                stream.release()
                self._next = section + 1
        except BaseException:
            self._next = len(self._at)  # so that the next `take` rewinds
            raise

    def release(self) -> None:
        self._started().release()
        self._next = (self._held + 1) % len(self._at)

    def stats(self) -> dict[str, Any]:
        """See tensor_ops_cpp.Stream.stats."""
        return self._started().stats()

    def close(self) -> None:
        """End all reading."""
        if self._stream is not None:
            self._stream.close()

    def _started(self) -> Stream:
        if self._stream is None:
            raise RuntimeError("the ring was not started")
        return self._stream
