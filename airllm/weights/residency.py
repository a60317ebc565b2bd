"""What stays in memory, and what passes through it, of parts that are needed one after the other.

Parts are a model's layers and its head, or the segments of a cluster's program. Those that do not
fit are read from the disk for each pass, in their order, into a ring of two slots: one is computed
with while the other fills.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["READ_BYTES", "READ_DEPTH", "Residency", "least_bytes", "read_buffer_bytes", "reside"]

# Reads under way or being packed, and bytes of each: little memory, and enough for a solid-state
# disk: more than the 8 that it wants, as some are packed meanwhile; of 512 KB it gave 0.8 times as
# much.
READ_DEPTH = 10
READ_BYTES = 1 << 20
_PAGE_BYTES = 4096  # that direct reads begin and end at


@dataclass(frozen=True, slots=True)
class Residency:
    """pinned: numbers of the parts that stay in memory, pinned_bytes together. slots: of the ring
    that the others pass through, of slot_bytes each; 0 where there are no others. ring_bytes: of
    the slots, and of the reads under way. streamed_bytes: of memory, that every pass fills."""

    pinned: frozenset[int]
    pinned_bytes: int
    slots: int = 0
    slot_bytes: int = 0
    ring_bytes: int = 0
    streamed_bytes: int = 0


def reside(nbytes: Sequence[int], budget: int, reads: int) -> Residency | None:
    """What stays of parts of so many bytes in memory, so that the least is read for a pass; None
    where they cannot even stream.

    budget: for parts, slots and reads together. reads: bytes of the reads under way, as
    read_buffer_bytes has them.

    A slot holds the largest part that streams, so it may be better to keep the largest ones. Two
    slots let the disk work while a part is computed with; one is the last resort.
    """
    total = sum(nbytes)
    if total <= budget:
        return Residency(frozenset(range(len(nbytes))), total)
    for slots in (2, 1):
        fitting = []
        for largest in sorted(set(nbytes)):
            pinned = {index for index, n in enumerate(nbytes) if n > largest}
            ring = slots * largest + reads
            room = budget - ring - sum(nbytes[index] for index in pinned)
            if room >= 0:
                pinned |= _spread(nbytes, pinned, room)
                stay = sum(nbytes[index] for index in pinned)
                fitting.append(
                    Residency(frozenset(pinned), stay, slots, largest, ring, total - stay)
                )
        if fitting:
            return min(fitting, key=lambda residency: residency.streamed_bytes)
    return None


def least_bytes(nbytes: Sequence[int], reads: int) -> int:
    """The smallest budget that `reside` finds something for."""
    return min(sum(nbytes), max(nbytes, default=0) + reads)


def read_buffer_bytes(longest: int) -> int:
    """Of the reads under way, where no range has more bytes than `longest`: whole pages, and one
    more for a beginning within a page."""
    pages = -(-min(longest, READ_BYTES) // _PAGE_BYTES) + 2
    return READ_DEPTH * pages * _PAGE_BYTES


def _spread(nbytes: Sequence[int], pinned: set[int], room: int) -> set[int]:
    """More parts that fit in `room`, evenly spread: while one of them is computed with, the disk
    reads for the next that streams. Were they the first ones, the disk would fill the ring while
    they are computed and then wait: of twenty layers of 2 ms, half of them read in 3 ms each, a
    pass took 48 ms in place of 40."""
    others = [index for index in range(len(nbytes)) if index not in pinned]
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
