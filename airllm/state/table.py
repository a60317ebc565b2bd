"""A table: the pages of one or more layers by position, and how many of them there are at the most.

A layer with a window keeps SLACK positions beyond it. A sequence with windows has checkpoints, see
airllm.state.sequence, which keep the pages of earlier windows. They lie at multiples of PAGE_ROWS,
so that their pages are full: nobody writes to these again, and nobody has a copy.
"""

from dataclasses import dataclass

from airllm.graph.state import first_seen

__all__ = [
    "CHECKPOINTS",
    "CHECKPOINT_TOKENS",
    "PAGE_ROWS",
    "SLACK",
    "Filling",
    "MostPages",
    "Table",
    "checkpoint_pages",
    "most_pages",
]

PAGE_ROWS = 64  # of a page of a table without a window, and the most of a page
# Positions that a window keeps beyond itself, so that tokens which were guessed wrong can be cut
# off. lookahead guesses up to 63.
SLACK = 64
# The most checkpoints of a sequence, and the fewest tokens between two of them. In texts of up to
# 65,536 tokens, going back by d evaluates at most 15 times d + CHECKPOINT_TOKENS further tokens
# again, 8 times in the mean. With 6 checkpoints it would be 3.4, but they take memory.
CHECKPOINTS, CHECKPOINT_TOKENS = 3, 256


@dataclass(frozen=True, slots=True)
class Table:
    """window, chunked, every: those of its layers' KeysValues. shared: layers after the first one
    read its pages, which then stay until all layers are done."""

    page_rows: int
    page_bytes: int
    window: int = 0
    shared: bool = False
    chunked: bool = False
    every: int = 1

    def pages(self, length: int) -> range:
        """The numbers of the pages for a sequence of `length` tokens."""
        return range(self.n_pages(length // self.every))

    def positions(self, n_pages: int) -> int:
        """The positions that the first n_pages pages have room for."""
        return n_pages * self.page_rows * self.every

    def n_pages(self, rows: int) -> int:
        """The fewest pages with so many rows."""
        return -(-rows // self.page_rows)

    def pages_for(self, past: int, end: int) -> range:
        """The numbers of the pages for the rows that positions [past, end) add."""
        return range(past // self.every // self.page_rows, self.pages(end).stop)

    def first_needed(self, length: int) -> int:
        """The first position that tokens from position `length` on see."""
        return first_seen(self.window, self.chunked, length)

    def needed_pages(self, length: int) -> range:
        """The numbers of the pages that tokens from position `length` on see."""
        return range(self.first_needed(length) // self.page_rows, self.n_pages(length))

    def first_kept(self, length: int) -> int:
        """The first position whose page is kept, for a sequence of `length` tokens."""
        return self.first_needed(max(0, length - SLACK))


@dataclass(frozen=True, slots=True)
class Filling:
    """How a sequence grows: up to `context` tokens, in batches of up to batch_size tokens, pass by
    pass. pass_size: the most tokens of a pass, in which a layer appends all batches before the next
    layer. whole_pages: whether checkpoints lie at multiples of PAGE_ROWS."""

    context: int
    batch_size: int
    pass_size: int
    whole_pages: bool = True


@dataclass(frozen=True, slots=True)
class MostPages:
    """between: while the layers of the table append nothing. in_batch: while they append; of a
    table that layers share, until all of them have read it."""

    between: int
    in_batch: int


def most_pages(table: Table, way: Filling, n_checkpoints: int) -> MostPages:
    """The most pages of a sequence with so many checkpoints."""
    whole = table.n_pages(way.context // table.every)
    if not table.window:
        return MostPages(whole, whole)
    rows = table.page_rows
    held = checkpoint_pages(table, way.context, whole_pages=way.whole_pages)
    # A sequence goes on in a copy of the last page of a checkpoint.
    copied = 0 if way.whole_pages else 1
    # Positions count from the last checkpoint, unless chunks begin where the text does.
    relative = n_checkpoints > 0 and not table.chunked
    checkpoint = PAGE_ROWS * (table.window + SLACK) if relative else 0
    before, left = CHECKPOINT_TOKENS - 1, way.context - n_checkpoints * CHECKPOINT_TOKENS
    if table.chunked:
        before = left = way.context
    batch, together = min(way.batch_size, left), min(way.pass_size, left)

    def of_checkpoints(first_kept: int) -> int:
        """Pages that the sequence itself has not."""
        if table.chunked:  # a checkpoint in its own chunk shares all of them
            return held * min(n_checkpoints, first_kept // table.window)
        overlap = max(0, table.n_pages(checkpoint) - copied - first_kept // rows)
        return held * n_checkpoints - min(held, overlap) if n_checkpoints else 0

    def pages(past: int, end: int) -> int:
        """While [past, end) are appended."""
        first_kept = table.first_kept(checkpoint + past)
        own = table.n_pages(checkpoint + end) - first_kept // rows
        return min(of_checkpoints(first_kept) + own, whole + copied * n_checkpoints)

    def most(latest: int, n: int) -> int:
        """While n tokens are appended after any position up to `latest`."""
        return max(pages(past, past + n) for past in _ends(table, latest))

    # Single tokens let pages go only where they need a new one.
    starts = {past - past % rows for past in _ends(table, min(before, left - 1))}
    single = max(pages(past, past + 1) for past in starts)
    between = max(single, most(min(before + together, left), 0))
    if table.shared:  # all batches of a pass stay until the last layer that reads them is done
        in_batch = most(min(before, left - together), together)
    else:
        in_batch = most(min(before + together, left) - batch, batch)
    return MostPages(between, max(between, in_batch))


def _ends(table: Table, latest: int) -> list[int]:
    """Positions up to `latest`, one of which leaves a sequence with the most pages."""
    latest = max(latest, 0)
    found = [*range(max(0, latest - table.page_rows + 1), latest + 1)]
    if table.chunked:
        chunks = range(1, (latest - SLACK + 1) // table.window + 1)
        found += [n * table.window + SLACK - 1 for n in chunks[-table.page_rows :]]
    return found


def checkpoint_pages(table: Table, context: int, *, whole_pages: bool) -> int:
    """The most pages of a checkpoint."""
    step = PAGE_ROWS if whole_pages else 1
    lengths = [*range(max(0, context - PAGE_ROWS), context + 1)]
    if table.chunked:
        chunks = range(1, context // table.window + 1)
        lengths += [n * table.window - 1 for n in chunks[-PAGE_ROWS:]]
    lengths = [length - length % step for length in lengths]
    return max(len(table.needed_pages(length)) for length in lengths)
