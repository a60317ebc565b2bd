"""Decides which parts stay in memory and which pass through it. A pass uses the parts in order.

Parts are a model's layers and its head, or the segments of a cluster's program. The parts that do
not fit are read from the disk in each pass, in order, into a ring of two slots: one slot is used
while the other fills.
"""

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["READ_BYTES", "READ_DEPTH", "Residency", "least_bytes", "read_buffer_bytes", "reside"]

# The number of reads under way or being packed, and the bytes of each. A solid-state disk wants 8
# reads at a time, and some of the 10 are being packed. Reads of 512 KB had 0.8 times the
# throughput. The buffers take little memory.
READ_DEPTH = 10
READ_BYTES = 1 << 20
_PAGE_BYTES = 4096  # direct reads begin and end at multiples of it


@dataclass(frozen=True, slots=True)
class Residency:
    """pinned: the numbers of the parts that stay in memory; pinned_bytes: their sum. slots: the
    slots of the ring for the other parts, slot_bytes each; 0 if all parts stay. ring_bytes: of the
    slots and the reads under way. streamed_bytes: in memory, of the parts that every pass reads."""

    pinned: frozenset[int]
    pinned_bytes: int
    slots: int = 0
    slot_bytes: int = 0
    ring_bytes: int = 0
    streamed_bytes: int = 0


def reside(nbytes: Sequence[int], budget: int, reads: int) -> Residency | None:
    """Chooses the parts to keep so that a pass reads the least; None if not even one slot fits.

    nbytes: of each part in memory. budget: bytes for parts, slots and reads together. reads: bytes
    of the reads under way, from read_buffer_bytes.

    A slot holds the largest streamed part, so that it can pay to keep the largest parts. With two
    slots the disk reads while a part is computed; one slot is the last resort.
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
    """The smallest budget for which `reside` finds a Residency."""
    return min(sum(nbytes), max(nbytes, default=0) + reads)


def read_buffer_bytes(longest: int) -> int:
    """Bytes of the buffers of the reads under way, if no range has more than `longest` bytes.

    A buffer has two pages more than a read, as a range may begin and end within a page.
    """
    pages = -(-min(longest, READ_BYTES) // _PAGE_BYTES) + 2
    return READ_DEPTH * pages * _PAGE_BYTES


def _spread(nbytes: Sequence[int], pinned: set[int], room: int) -> set[int]:
    """Further parts to keep that fit in `room`, evenly spread over the pass: while a kept part is
    computed, the disk reads the next streamed part. If the first parts were kept, the disk would
    fill the ring while they are computed and then wait: with twenty layers of 2 ms, ten of them
    read in 3 ms each, a pass took 48 ms in place of 40."""
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
    for index in others:  # fill the rest of the room
        if index not in more and nbytes[index] <= room:
            more.add(index)
            room -= nbytes[index]
    return more
