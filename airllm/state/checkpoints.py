"""Earlier states of a sequence that cannot be cut at any length, for the way back to them.

A checkpoint keeps the recurrent memory, and the pages of windows that the next token sees. Without
recurrent memory it lies at a multiple of PAGE_ROWS: its pages are full, so that nobody writes to
them again, and they are the sequence's own for as long as its window has them.
"""

from collections.abc import Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from airllm.state.layout import StateLayout
from airllm.state.pages import Page, PagePool
from airllm.state.table import CHECKPOINT_TOKENS, CHECKPOINTS, PAGE_ROWS, checkpoint_pages

__all__ = ["Checkpoint", "Checkpoints"]


class Checkpoint:
    """A sequence at an earlier time. It shares the pages of the sequence: whoever writes to what it
    has of a page copies the page first."""

    def __init__(
        self,
        length: int,
        pages: Mapping[int, Mapping[int, Page]],
        recurrent: NDArray[np.float32],
        pool: PagePool,
    ) -> None:
        """pages: by table and number; the checkpoint holds them."""
        self.length, self.pages, self.recurrent, self._pool = length, pages, recurrent, pool

    @property
    def nbytes(self) -> int:
        """Bytes of its pages and recurrent memory; it may share the pages with others."""
        return self.recurrent.nbytes + sum(len(page.memory) for page in self.all_pages())

    def all_pages(self) -> Iterator[Page]:
        for table in self.pages.values():
            yield from table.values()

    def __del__(self) -> None:
        for page in self.all_pages():
            self._pool.release(page)


class Checkpoints:
    """Those of one sequence, oldest first."""

    def __init__(self, layout: StateLayout, capacity: int) -> None:
        """capacity: the most tokens of the sequence."""
        self.all: list[Checkpoint] = []
        self._recurrent = layout.recurrent_floats > 0
        self._windows = {i: table for i, table in enumerate(layout.tables) if table.window}
        # Tables with equal windows have equal pages: one of them speaks for all.
        kinds = {(t.page_rows, t.window, t.chunked): t for t in self._windows.values()}
        whole = not self._recurrent
        self._most = [  # pages of each kind
            (table, CHECKPOINTS * checkpoint_pages(table, capacity, whole_pages=whole))
            for table in kinds.values()
        ]

    def due(self, length: int) -> int | None:
        """Where the next checkpoint of a sequence of `length` tokens is to lie; None if it has one
        that is near."""
        at = length if self._recurrent else length - length % PAGE_ROWS
        last = self.all[-1].length if self.all else 0
        return at if at >= last + CHECKPOINT_TOKENS else None

    def needed_pages(self, length: int) -> dict[int, range]:
        """By table, the numbers of the pages that a checkpoint there keeps."""
        return {index: table.needed_pages(length) for index, table in self._windows.items()}

    def make_room(self, length: int) -> None:
        """Before a checkpoint is added there: without those that leave the smallest gaps, for the
        way back to a gap's end."""
        while self._would_be_too_many(length):
            at = [0, *(checkpoint.length for checkpoint in self.all), length]
            gaps = [
                (at[i + 1] - at[i - 1]) / (length - at[i + 1] + CHECKPOINT_TOKENS)
                for i in range(1, len(at) - 1)
            ]
            del self.all[gaps.index(min(gaps))]

    def _would_be_too_many(self, length: int) -> bool:
        """Whether they would take more than CHECKPOINTS that share no page."""
        if self._recurrent:
            return len(self.all) >= CHECKPOINTS
        lengths = [length, *(checkpoint.length for checkpoint in self.all)]
        return any(
            len(set().union(*map(table.needed_pages, lengths))) > most for table, most in self._most
        )

    def forget_after(self, length: int) -> None:
        """Without those of more than `length` tokens."""
        while self.all and self.all[-1].length > length:
            self.all.pop()
