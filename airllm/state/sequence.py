"""What a model keeps of one sequence of tokens: keys and values in pages, recurrent memory.

A sequence can always be continued, and usually be cut (`trim`). Two kinds of layers cannot be cut
at any length: a layer with a window lets old keys and values go, and recurrent memory has no past.
For these the sequence keeps a checkpoint now and then; `trim` then goes back to the last one before
the wanted length, and its caller evaluates the tokens after it again.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.graph.state import LayerArgument
from airllm.state.checkpoints import Checkpoint, Checkpoints
from airllm.state.layout import KeysPlace, StateLayout
from airllm.state.pages import Page, PagePool

__all__ = ["BackendState", "SequenceState", "Snapshot"]


class BackendState(Protocol):
    """The same memory as the backend's executors see it; see tensor_ops_cpp.SequenceState."""

    def set_page(self, table: int, index: int, page: NDArray[np.uint8]) -> None: ...
    def keep_pages(self, table: int, first: int, last: int) -> None: ...
    def set_recurrent(self, memory: NDArray[np.float32]) -> None: ...


MakeBacking = Callable[[Sequence[tuple[int, int]], Sequence[LayerArgument]], BackendState]


class Snapshot(Checkpoint):
    """A checkpoint with its tokens and the pages of all tables, from which another sequence of the
    model can begin, too."""

    def __init__(
        self,
        tokens: Sequence[int],
        pages: dict[int, dict[int, Page]],
        recurrent: NDArray[np.float32],
        pool: PagePool,
    ) -> None:
        super().__init__(len(tokens), pages, recurrent, pool)
        self.tokens = tokens

    def continues_at(self, layout: StateLayout, length: int) -> bool:
        """Whether a sequence that is restored from this one can be cut to `length` tokens."""
        if layout.recurrent_floats and length != self.length:
            return False
        tables = [self.pages.get(index, {}) for index in range(len(layout.tables))]
        return _have_what_is_needed(layout, tables, length)

    def beginning(self, layout: StateLayout, length: int) -> "Snapshot":
        """Of the first `length` tokens, at which the sequence can be cut: see continues_at."""
        held = {
            table: {
                index: self._pool.hold(page)
                for index, page in pages.items()
                if index in layout.tables[table].pages(length)
            }
            for table, pages in self.pages.items()
        }
        return Snapshot(self.tokens[:length], held, self.recurrent, self._pool)


class SequenceState:
    """tokens: those evaluated so far. capacity: the most tokens. backing: what executors take."""

    def __init__(
        self,
        layout: StateLayout,
        pool: PagePool,
        make_backing: MakeBacking,
        capacity: int,
    ) -> None:
        """pool: of layout.page_bytes; several sequences may have it. make_backing: see
        Backend.sequence_state. MemoryError if there is no room for recurrent memory."""
        self._pool = pool
        self._pages: list[dict[int, Page]] = [{} for _ in layout.tables]
        layers = [layout.argument(layer) for layer in layout.layers]
        self.layout, self.capacity = layout, capacity
        self.backing: BackendState = make_backing(layout.table_arguments, layers)
        self.tokens: list[int] = []
        # Up to this position, each table has pages that this sequence may write to.
        self._room = [0] * len(layout.tables)
        self._as_writer = object()  # see Page.writer; the sequence itself would be a cycle
        self._recurrent = np.zeros(0, np.float32)
        if layout.recurrent_floats:
            self._recurrent = np.frombuffer(pool.memory(4 * layout.recurrent_floats), np.float32)
            self._recurrent[:] = 0.0
            self.backing.set_recurrent(self._recurrent)
        self._recurrent_at: int | None = 0  # tokens in the recurrent memory; None inside a pass
        self._checkpoints = Checkpoints(layout, capacity)
        self._before: Checkpoint | None = None  # the tokens that are evaluated ahead

    def __del__(self) -> None:
        for pages in self._pages:
            for page in pages.values():
                self._release(page)

    @property
    def length(self) -> int:
        """The number of tokens, which is the position of the next token."""
        return len(self.tokens)

    def tokens_between(self, first: int, end: int, following: Sequence[int]) -> NDArray[np.int64]:
        """The tokens at positions [first, end): -1 before the first token. following: those that
        come after the sequence's own."""
        n = self.length
        found = self.tokens[max(first, 0) : end]
        found += following[max(first - n, 0) : max(end - n, 0)]
        return np.array([-1] * max(-first, 0) + found, np.int64)

    @property
    def nbytes(self) -> int:
        """Bytes of pages and recurrent memory, without checkpoints."""
        pages = sum(len(page.memory) for pages in self._pages for page in pages.values())
        return pages + self._recurrent.nbytes

    # ---- going on ------------------------------------------------------------------------------

    def begin(self, *, ahead: bool = False) -> None:
        """A pass begins. ahead: its tokens are guesses; `accept` says how many of them stay."""
        if not self.layout.recurrent_floats:
            return
        if ahead:
            self._before = self._hold(self.length, {})
        self._recurrent_at = None

    def make_room(self, first_layer: int, last_layer: int, past: int, n_tokens: int) -> None:
        """Before layers [first, last) append n_tokens at position `past`. MemoryError."""
        end = past + n_tokens
        for table in self.layout.tables_of(first_layer, last_layer):
            if self._room[table] < end:
                self._extend(table, past, end)

    def let_go(self, first_layer: int, last_layer: int, length: int) -> None:
        """After these layers appended up to `length`: releases what their windows have left."""
        for table in self.layout.tables_of(first_layer, last_layer):
            if not self.layout.tables[table].shared:
                self._release_before(table, length)

    def advance(self, tokens: Sequence[int]) -> None:
        """The pass is complete: its tokens belong to the sequence."""
        self.tokens += tokens
        self._recurrent_at = self.length
        if not self.layout.can_be_cut:
            if len(tokens) > 1:
                for table in range(len(self._pages)):
                    self._release_before(table, self.length)
            self._keep_checkpoint()

    def recover(self) -> None:
        """The pass has failed: go back to the tokens before it, or further, see `trim`."""
        before, self._before = self._before, None
        if before is not None:
            self._return_to(before)
        else:
            self.trim(self.length)

    def accept(self, tokens: Sequence[int], n_evaluated: int) -> Sequence[int]:
        """Of n_evaluated tokens that a pass evaluated ahead, the first ones, `tokens`, belong to
        the sequence. Returns those that must be evaluated again: all of them, if recurrent memory
        has gone further, else none."""
        before, self._before = self._before, None
        if before is not None and len(tokens) < n_evaluated:
            self._return_to(before)
            return tokens
        self.advance(tokens)
        return ()

    def _extend(self, table: int, past: int, end: int) -> None:
        pages, pool, description = self._pages[table], self._pool, self.layout.tables[table]
        # Layers that share the pages read them later in the pass, for its first token, too.
        self._release_before(table, min(self.length, past) if description.shared else past)
        needed = description.pages_for(past, end)
        for index in needed:
            before = pages.get(index)
            page = pool.take(table) if before is None else before
            if before is not None and not before.takes(self._as_writer, past):
                page = pool.take(table)
                # Only what was evaluated: a prompt often shares two of a page's 64 rows with
                # another one, and a copy of them all took as long as evaluating ten tokens.
                n_rows = past // description.every - index * description.page_rows
                self.layout.copy_rows(table, before.memory, page.memory, max(0, n_rows))
            page.writer = self._as_writer
            if page.holders == 1:
                page.fixed = 0
            pages[index] = page
            # Also of a page that is there: an interrupt may have come before this, the last time.
            self.backing.set_page(table, index, page.memory)
            if before is not None and before is not page:
                self._release(before)
        self._room[table] = description.positions(needed.stop)

    def _release_before(self, table: int, length: int) -> None:
        """Releases the pages that a sequence of `length` tokens does not keep."""
        description, pages = self.layout.tables[table], self._pages[table]
        first = description.first_kept(length) // description.page_rows
        if pages and first > next(iter(pages)):
            self._keep_pages(table, first, 1 << 60)

    def _keep_pages(self, table: int, first: int, last: int) -> None:
        """In an order that Ctrl-C may end anywhere: nothing is written to a page that was released,
        or that others hold."""
        self._room[table] = 0
        self.backing.keep_pages(table, first, min(last, 1 << 24))
        pages = self._pages[table]
        for index in [index for index in pages if not first <= index < last]:
            self._release(pages.pop(index))

    def _release(self, page: Page) -> None:
        """After the backing has lost the page: another sequence may write to it from now on."""
        if page.writer is self._as_writer:
            page.writer = None
        self._pool.release(page)

    # ---- going back ----------------------------------------------------------------------------

    def clear(self) -> None:
        """Forget all tokens."""
        self._checkpoints.all.clear()
        self._before = None
        self._cut(0)
        self._recurrent[:] = 0.0
        self._recurrent_at = 0

    def trim(self, length: int) -> int:
        """Cut to `length` tokens, or to fewer: to a length from which the sequence can go on.
        Returns the length that is left."""
        length = min(length, self.length)
        if length == self.length and self._continues_at(length):
            return length
        self._checkpoints.forget_after(length)
        if length > 0 and self._continues_at(length):
            self._cut(length)
        elif length > 0 and self._checkpoints.all:
            self._return_to(self._checkpoints.all[-1])
        else:
            self.clear()
        return self.length

    def keep_shared(self, prompt: Sequence[int]) -> int:
        """Keep the longest beginning that tokens and `prompt` share, as far as `trim` can; return
        its length.

        The last token of the prompt is never kept, because its logits must still be computed.
        """
        kept = 0
        for mine, its in zip(self.tokens, prompt[:-1], strict=False):
            if mine != its:
                break
            kept += 1
        return self.trim(kept)

    def snapshot(self) -> Snapshot:
        """The sequence as it is now, for `restore`. It takes memory for the recurrent memory. What
        the sequence appends afterwards goes into the same pages."""
        self._room = [0] * len(self._room)
        held = {
            table: {index: self._share(page) for index, page in pages.items()}
            for table, pages in enumerate(self._pages)
        }
        return Snapshot(tuple(self.tokens), held, self._recurrent.copy(), self._pool)

    def restore(self, snapshot: Snapshot) -> None:
        """Make the sequence what it was. snapshot: of this sequence or another one of the model."""
        self.clear()
        self._take_over(snapshot)
        self.tokens = list(snapshot.tokens)

    def _continues_at(self, length: int) -> bool:
        """Whether all that the next token sees is there."""
        if self.layout.recurrent_floats and self._recurrent_at != length:
            return False
        return _have_what_is_needed(self.layout, self._pages, length)

    def _cut(self, length: int) -> None:
        """Cut to a length at which _continues_at."""
        self._room = [0] * len(self._room)
        del self.tokens[length:]
        for table in range(len(self._pages)):
            self._keep_pages(table, 0, self.layout.tables[table].pages(length).stop)

    def _keep_checkpoint(self) -> None:
        length = self._checkpoints.due(self.length)
        if length is None:
            return
        needed = self._checkpoints.needed_pages(length)
        # A sequence that was cut, or loaded, a few tokens before has no window of earlier ones.
        if all(self._pages[table].keys() >= set(numbers) for table, numbers in needed.items()):
            self._checkpoints.make_room(length)
            self._checkpoints.all.append(self._hold(length, needed))

    def _hold(self, length: int, pages: Mapping[int, range]) -> Checkpoint:
        """A checkpoint. pages: their numbers, by table."""
        for table in pages:
            if length % self.layout.tables[table].page_rows:
                self._room[table] = 0  # the last page is not full
        held = {
            table: {index: self._share(self._pages[table][index]) for index in numbers}
            for table, numbers in pages.items()
        }
        return Checkpoint(length, held, self._recurrent.copy(), self._pool)

    def _share(self, page: Page) -> Page:
        """A page of this sequence for one that begins with its tokens."""
        page.fixed = max(page.fixed, self.length)
        return self._pool.hold(page)

    def _return_to(self, checkpoint: Checkpoint) -> None:
        """checkpoint: of this sequence's own past."""
        self._cut(checkpoint.length)
        self._take_over(checkpoint)

    def _take_over(self, checkpoint: Checkpoint) -> None:
        for table, pages in checkpoint.pages.items():
            self._keep_pages(table, 0, 0)
            for index, page in pages.items():
                self._pages[table][index] = self._pool.hold(page)
                self.backing.set_page(table, index, page.memory)
        self._recurrent[:] = checkpoint.recurrent
        self._recurrent_at = checkpoint.length

    # ---- for files -----------------------------------------------------------------------------

    def rows_needed(self, place: KeysPlace, length: int) -> tuple[int, int]:
        """(first, end) of the rows that a layer sees after `length` tokens: one for each position,
        or for each group of positions."""
        table = self.layout.tables[place.table]
        return table.first_needed(length) // table.every, length // table.every

    def row_bytes(self, place: KeysPlace) -> int:
        """Bytes of a row of a layer's keys and values."""
        widths = (width for _, width in place.parts)
        return place.shape.n_kv_heads * sum(self.layout.row_bytes(n, place.type) for n in widths)

    def heads_rows(
        self, place: KeysPlace, first: int, last: int
    ) -> Iterator[list[NDArray[np.uint8]]]:
        """The memory of rows [first, last) of a layer's keys and values, which have pages: for each
        head the rows of its keys, as uint8 arrays in order; then those of its values."""
        pages, page_rows = self._pages[place.table], self.layout.tables[place.table].page_rows
        for offset, width in place.parts:
            row = self.layout.row_bytes(width, place.type)
            for head in range(place.shape.n_kv_heads):
                at = offset + head * page_rows * row
                rows = []
                for index in range(first // page_rows, -(-last // page_rows)):
                    begin = max(first - index * page_rows, 0)
                    end = min(last - index * page_rows, page_rows)
                    rows.append(pages[index].memory[at + begin * row : at + end * row])
                yield rows

    @property
    def recurrent(self) -> NDArray[np.float32]:
        return self._recurrent

    def load(self, tokens: Sequence[int], fill: Callable[["SequenceState", int], None]) -> None:
        """Replace the contents. fill(self, length): writes to heads_rows and `recurrent`. If it
        fails, the sequence is empty."""
        self.clear()
        length = len(tokens)
        for table, description in enumerate(self.layout.tables):
            if length:
                self._extend(table, description.first_needed(length), length)
        try:
            fill(self, length)
        except BaseException:
            self.clear()
            raise
        self.tokens = list(tokens)
        self._recurrent_at = length


def _have_what_is_needed(
    layout: StateLayout, tables: Sequence[Mapping[int, Page]], length: int
) -> bool:
    """Whether the pages of the tables have the keys and values that a token at `length` sees.
    tables: pages by number, in order, one after another."""
    return length == 0 or all(
        not table.window
        or table.first_needed(length) == length
        or (len(pages) > 0 and table.positions(next(iter(pages))) <= table.first_needed(length))
        for table, pages in zip(layout.tables, tables, strict=True)
    )
