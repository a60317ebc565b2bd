"""Where the keys, values and recurrent memory of a sequence lie.

Keys and values lie in pages of PAGE_ROWS positions, or of fewer for a small window. A table lists
the pages of a sequence, by position. The layers that need all positions have one table together: a
page has the keys and values of all of them. So have the layers with keys that as many positions
have together: such a table has a row for each group of positions. Each layer with a window has a
table of its own, so that its old pages can be let go while a long prompt passes through it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from airllm.graph.state import KeysArgument, KeysValues, LayerArgument, LayerState, first_seen
from airllm.numpy_ops.quants import TYPES, row_bytes

__all__ = ["PAGE_ROWS", "SLACK", "KVType", "KeysPlace", "LayerPlace", "StateLayout", "Table"]

KVType = Literal["f32", "f16", "q8_0"]

PAGE_ROWS, FEWEST_PAGE_ROWS = 64, 16
# Positions that a window keeps beyond itself, so that tokens which were guessed wrong can be cut
# off. lookahead guesses up to 63.
SLACK = 64


@dataclass(frozen=True, slots=True)
class KeysPlace:
    """Keys and values of a layer in each page of a table; offsets in bytes. The keys are
    [n_kv_heads, page_rows, head_dim], the values [n_kv_heads, page_rows, value_dim]; if the offsets
    are equal, the values are the first dimensions of the keys."""

    table: int
    k_offset: int
    v_offset: int
    shape: KeysValues
    type: KVType


@dataclass(frozen=True, slots=True)
class LayerPlace:
    """See LayerState."""

    keys: KeysPlace | None
    recurrent_first: int  # in floats
    recurrent_floats: int
    index: KeysPlace | None = None
    groups: KeysPlace | None = None
    pending: KeysPlace | None = None
    index_pending: KeysPlace | None = None

    @property
    def places(self) -> list[KeysPlace]:
        """All that there are."""
        found = self.keys, self.index, self.groups, self.pending, self.index_pending
        return [place for place in found if place is not None]


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

    def first_kept(self, length: int) -> int:
        """The first position whose page is kept, for a sequence of `length` tokens."""
        return self.first_needed(max(0, length - SLACK))


class StateLayout:
    """kv_type: the type of keys and values. "q8_0" is GGML's type: a block of 32 values has a
    float16 scale and an int8 for each value, 34 bytes."""

    def __init__(self, layers: Sequence[LayerState], kv_type: KVType = "f16") -> None:
        """ValueError if a head's width is no multiple of the type's block."""
        self.kv_type: KVType = kv_type
        self.tables: list[Table] = []
        self.layers: list[LayerPlace] = []
        self.recurrent_floats = 0
        self._whole: dict[int, int] = {}  # the table of layers without a window, by `every`
        for layer in layers:
            if layer.keys_of is not None:
                place = self.layers[layer.keys_of].keys
                assert place is not None
                self.tables[place.table] = replace(self.tables[place.table], shared=True)
            else:
                place = self._place(layer.keys)
            others = layer.index, layer.groups, layer.pending, layer.index_pending
            own = LayerPlace(
                place, self.recurrent_floats, layer.recurrent_floats, *map(self._place, others)
            )
            self.layers.append(own)
            self.recurrent_floats += layer.recurrent_floats
        self._tables_of: dict[tuple[int, int], list[int]] = {}
        # Whether a sequence can go back to any earlier length.
        self.can_be_cut = not self.recurrent_floats and not any(
            table.window for table in self.tables
        )

    def _place(self, keys: KeysValues | None) -> KeysPlace | None:
        """Room for a layer's keys and values at the end of a table's pages."""
        if keys is None:
            return None
        type: KVType = "f32" if keys.exact else self.kv_type
        table = None if keys.window else self._whole.get(keys.every)
        if table is None:
            table = len(self.tables)
            rows = _page_rows(keys.window)
            self.tables.append(Table(rows, 0, keys.window, False, keys.chunked, keys.every))
            if not keys.window:
                self._whole[keys.every] = table
        k_offset = self.tables[table].page_bytes
        rows = self.tables[table].page_rows * keys.n_kv_heads
        k_bytes = rows * self.row_bytes(keys.head_dim, type)
        v_bytes, v_offset = rows * self.row_bytes(keys.value_dim, type), k_offset + k_bytes
        if keys.values_in_keys:
            v_bytes, v_offset = 0, k_offset
        self.tables[table] = replace(
            self.tables[table], page_bytes=k_offset + _aligned(k_bytes + v_bytes)
        )
        return KeysPlace(table, k_offset, v_offset, keys, type)

    def row_bytes(self, width: int, type: KVType | None = None) -> int:
        """Bytes of a row of keys or values in a page. type: in place of kv_type."""
        type = type or self.kv_type
        block, _ = TYPES[type]
        if width % block:
            raise ValueError(
                f"kv_type {type!r} keeps blocks of {block} values, and this model's heads "
                f"have {width}, no multiple of it; use 'f16' or 'f32'"
            )
        return row_bytes(type, width)

    @property
    def page_bytes(self) -> list[int]:
        """Bytes of a page of each table."""
        return [table.page_bytes for table in self.tables]

    @property
    def table_arguments(self) -> list[tuple[int, int]]:
        """The rows and bytes of a page of each table, as Backend.sequence_state takes them."""
        return [(table.page_rows, table.page_bytes) for table in self.tables]

    def argument(self, layer: LayerPlace) -> LayerArgument:
        """A layer as Backend.sequence_state takes it."""

        def keys(place: KeysPlace | None) -> KeysArgument | None:
            if place is None:
                return None
            own = place.shape
            where = place.table, place.k_offset, place.v_offset, place.type
            return *where, own.n_kv_heads, own.head_dim, own.value_dim

        return (
            keys(layer.keys),
            layer.recurrent_first,
            layer.recurrent_floats,
            keys(layer.index),
            keys(layer.groups),
            keys(layer.pending),
            keys(layer.index_pending),
        )

    def tables_of(self, first_layer: int, last_layer: int) -> list[int]:
        """The tables that layers [first, last) append to."""
        found = self._tables_of.get((first_layer, last_layer))
        if found is None:
            layers = self.layers[first_layer:last_layer]
            places = [place for layer in layers for place in layer.places]
            found = list(dict.fromkeys(place.table for place in places))
            self._tables_of[first_layer, last_layer] = found
        return found

    def nbytes(
        self, context: int, batch_size: int, n_checkpoints: int = 0, pass_size: int = 0
    ) -> int:
        """The most bytes that a sequence of up to `context` tokens takes, while batches of
        batch_size tokens are appended. n_checkpoints: earlier states that are kept, too.
        pass_size: the tokens of all batches that go through a layer before the next; 0: as
        batch_size."""
        total = 4 * self.recurrent_floats * (1 + n_checkpoints)
        for table in self.tables:
            if not table.window:
                total += len(table.pages(context)) * table.page_bytes
                continue
            # The positions that are kept begin within a page.
            whole = table.n_pages(context)
            most = min(whole, table.n_pages(table.window + SLACK) + 1) * (1 + n_checkpoints)
            if table.shared:  # the batch's stay until the last layer that reads them is done
                most += table.n_pages(pass_size or batch_size)
            total += min(whole, most) * table.page_bytes
        return total + self._in_batch(min(batch_size, context))

    def _in_batch(self, batch_size: int) -> int:
        """While a layer appends a batch, it has the window before it and the batch: the bytes of
        the batch. Layers take the pages that earlier ones let go, if they are as large."""
        most: dict[int, int] = {}  # pages of a layer, by their size
        for layer in self.layers:
            of_layer: dict[int, int] = {}
            for table in (self.tables[place.table] for place in layer.places):
                if table.window and not table.shared:
                    n_bytes, count = table.page_bytes, table.n_pages(batch_size)
                    of_layer[n_bytes] = of_layer.get(n_bytes, 0) + count
            most |= {size: max(most.get(size, 0), count) for size, count in of_layer.items()}
        return sum(size * count for size, count in most.items())


def _page_rows(window: int) -> int:
    """The rows of a page of a table. Up to a page more than a window is kept, so that small windows
    have small pages: a power of 2, from FEWEST_PAGE_ROWS, which attention reads at once."""
    if not window:
        return PAGE_ROWS
    return min(PAGE_ROWS, max(FEWEST_PAGE_ROWS, 1 << (window.bit_length() - 1)))


def _aligned(n: int) -> int:
    return -(-n // 64) * 64
