"""The pages that keys and values of all sequences lie in."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Page", "PagePool"]


class Page:
    """memory: uint8 [page_bytes of its table]. holders: the number of sequences and snapshots that
    have the page. writer: stands for the sequence that may append to it; None if that has gone.
    fixed: while there are several holders, nobody writes to the rows of earlier positions.
    """

    __slots__ = ("fixed", "holders", "memory", "table", "writer")

    def __init__(self, table: int, memory: NDArray[np.uint8]) -> None:
        self.table, self.memory, self.holders = table, memory, 1
        self.writer: object | None = None
        self.fixed = 0

    def takes(self, writer: object, position: int) -> bool:
        """Whether a sequence that has the page may write rows from `position` on. Several may begin
        with the same rows, but the rows after these belong to the first that comes."""
        if self.holders == 1:
            return True
        return position >= self.fixed and (self.writer is None or self.writer is writer)


# Pages are allocated together, so that large pools lie in huge pages of the system. With 4 KiB
# pages, attention over 8,192 positions took 1.1 to 1.4 times as long. Memory that nothing was
# written to yet takes no room.
MOST_AT_ONCE = 16


class PagePool:
    """Allocates pages, and hands those that nobody holds any more out again."""

    def __init__(self, memory: Callable[[int], Any], page_bytes: Sequence[int]) -> None:
        """memory: allocates bytes, see Backend.memory. page_bytes: of a page of each table."""
        self.memory, self._page_bytes = memory, tuple(page_bytes)
        # Tables of equal pages share them: what the window of a layer lets go, the next one takes.
        self._free: dict[int, list[NDArray[np.uint8]]] = {n: [] for n in page_bytes}
        self._n_pages = dict.fromkeys(page_bytes, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all pages, also of those that nobody holds."""
        return sum(n_bytes * count for n_bytes, count in self._n_pages.items())

    def take(self, table: int) -> Page:
        """A page with undefined contents. MemoryError, with the size, if there is no memory."""
        n_bytes = self._page_bytes[table]
        free = self._free[n_bytes]
        if not free:
            count = min(max(self._n_pages[n_bytes], 1), MOST_AT_ONCE)
            try:
                memory = np.frombuffer(self.memory(count * n_bytes), np.uint8)
            except MemoryError:
                raise MemoryError(
                    f"the keys and values have {self.nbytes / 2**20:,.0f} MiB, and there is no "
                    f"memory for {count * n_bytes / 2**20:,.1f} MiB more; ask for a smaller context"
                ) from None
            self._n_pages[n_bytes] += count
            free += [memory[i * n_bytes : (i + 1) * n_bytes] for i in reversed(range(count))]
        return Page(table, free.pop())

    def shrink(self) -> None:
        """Give memory back of which nobody holds a page."""
        for n_bytes, free in self._free.items():
            of_one: dict[int, list[NDArray[np.uint8]]] = {}
            for memory in free:
                of_one.setdefault(id(memory.base), []).append(memory)
            self._free[n_bytes] = []
            for pages in of_one.values():
                together = pages[0].base
                if together is not None and len(pages) * n_bytes == together.nbytes:
                    self._n_pages[n_bytes] -= len(pages)
                else:
                    self._free[n_bytes] += pages

    def hold(self, page: Page) -> Page:
        page.holders += 1
        return page

    def release(self, page: Page) -> None:
        page.holders -= 1
        if not page.holders:
            self._free[len(page.memory)].append(page.memory)
