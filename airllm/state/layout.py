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

import numpy as np
from numpy.typing import NDArray

from airllm.graph.state import KeysArgument, KeysValues, LayerArgument, LayerState
from airllm.numpy_ops.quants import TYPES, row_bytes
from airllm.state.table import (
    CHECKPOINT_TOKENS,
    CHECKPOINTS,
    PAGE_ROWS,
    Filling,
    Table,
    most_pages,
)

__all__ = ["KVType", "KeysPlace", "LayerPlace", "StateLayout"]

KVType = Literal["f32", "f16", "q8_0"]

FEWEST_PAGE_ROWS = 16


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

    @property
    def parts(self) -> list[tuple[int, int]]:
        """Offset in a page and width of a head's rows: of the keys, and of the values if apart."""
        keys = self.k_offset, self.shape.head_dim
        return (
            [keys] if self.shape.values_in_keys else [keys, (self.v_offset, self.shape.value_dim)]
        )


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
        self._parts: list[list[tuple[int, int, int]]] = [[] for _ in self.tables]
        for place in dict.fromkeys(place for layer in self.layers for place in layer.places):
            heads = place.shape.n_kv_heads
            self._parts[place.table] += [
                (offset, heads, self.row_bytes(width, place.type)) for offset, width in place.parts
            ]
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

    def copy_rows(
        self, table: int, source: NDArray[np.uint8], target: NDArray[np.uint8], n_rows: int
    ) -> None:
        """Copy the first n_rows rows of all that a page of the table has."""
        page_rows = self.tables[table].page_rows
        for offset, heads, row in self._parts[table]:
            part = slice(offset, offset + heads * page_rows * row)
            rows = source[part].reshape(heads, page_rows, row)[:, :n_rows]
            target[part].reshape(heads, page_rows, row)[:, :n_rows] = rows

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
        self, context: int, batch_size: int, pass_size: int = 0, *, guesses: bool = False
    ) -> int:
        """The most bytes that a sequence of up to `context` tokens takes with its checkpoints,
        while batches of up to batch_size tokens are appended. pass_size: the tokens of all batches
        that go through a layer before the next; 0: as batch_size. guesses: whether tokens are
        evaluated ahead, which takes one more copy of the recurrent memory."""
        n_checkpoints = 0 if self.can_be_cut else min(CHECKPOINTS, context // CHECKPOINT_TOKENS)
        way = Filling(context, min(batch_size, context), min(pass_size or batch_size, context))
        copies = 1 + n_checkpoints + guesses
        # Few checkpoints leave more of a short context to a large batch.
        pages = max(self._page_memory(way, count) for count in range(n_checkpoints + 1))
        return 4 * self.recurrent_floats * copies + pages

    def _page_memory(self, way: Filling, n_checkpoints: int) -> int:
        """The most bytes of pages with so many checkpoints. While a layer appends a batch, it has
        the window before it and the batch. Layers take the pages that earlier ones let go, if they
        are as large."""
        if self.recurrent_floats:
            way = replace(way, whole_pages=False)
        of_tables = [most_pages(table, way, n_checkpoints) for table in self.tables]
        total = sum(
            most.between * table.page_bytes
            for most, table in zip(of_tables, self.tables, strict=True)
        )
        in_batch: dict[int, int] = {}  # pages of a layer, by their size
        tables: set[int] = set()
        for layer in self.layers:
            tables = {table for table in tables if self.tables[table].shared}
            tables |= {place.table for place in layer.places}
            of_layer: dict[int, int] = {}
            for most, table in ((of_tables[index], self.tables[index]) for index in tables):
                more = of_layer.get(table.page_bytes, 0) + most.in_batch - most.between
                of_layer[table.page_bytes] = more
            in_batch |= {size: max(in_batch.get(size, 0), n) for size, n in of_layer.items()}
        return total + sum(size * count for size, count in in_batch.items())


def _page_rows(window: int) -> int:
    """The rows of a page of a table. Up to a page more than a window is kept, so that small windows
    have small pages: a power of 2, from FEWEST_PAGE_ROWS, which attention reads at once."""
    if not window:
        return PAGE_ROWS
    return min(PAGE_ROWS, max(FEWEST_PAGE_ROWS, 1 << (window.bit_length() - 1)))


def _aligned(n: int) -> int:
    return -(-n // 64) * 64
