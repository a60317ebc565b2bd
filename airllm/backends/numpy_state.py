"""What NumPy's executor sees of a sequence: the same pages as tensor_ops_cpp.SequenceState."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.graph.state import KeysArgument, LayerArgument
from airllm.numpy_ops.quants import quantize, row_bytes

__all__ = ["NumpyState"]

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": np.dtype(np.uint8),
}


class NumpyState:
    def __init__(self, tables: Sequence[tuple[int, int]], layers: Sequence[LayerArgument]) -> None:
        self._page_rows, self._layers = [rows for rows, _ in tables], list(layers)
        self._pages: list[dict[int, NDArray[np.uint8]]] = [{} for _ in tables]
        self._recurrent = np.empty(0, np.float32)

    def set_page(self, table: int, index: int, page: NDArray[np.uint8]) -> None:
        self._pages[table][index] = page

    def keep_pages(self, table: int, first: int, last: int) -> None:
        pages = self._pages[table]
        self._pages[table] = {i: page for i, page in pages.items() if first <= i < last}

    def set_recurrent(self, memory: NDArray[np.float32]) -> None:
        self._recurrent = memory

    def recurrent(self, layer: int) -> NDArray[np.float32]:
        """The layer's recurrent memory."""
        _, first, count, *_ = self._layers[layer]
        return self._recurrent[first : first + count]

    def keys(self, layer: int) -> KeysArgument:
        """ValueError if the layer keeps no keys."""
        argument = self._layers[layer][0]
        if argument is None:
            raise ValueError(f"layer {layer} keeps no keys and values")
        return argument

    def index(self, layer: int) -> KeysArgument:
        """ValueError if the layer keeps no keys of an index."""
        return self._other(layer, 3, "index")

    def groups(self, layer: int) -> KeysArgument:
        """ValueError if the layer keeps no keys of groups."""
        return self._other(layer, 4, "groups")

    def pending(self, layer: int, *, of_index: bool) -> KeysArgument:
        """What groups are made of. ValueError if the layer keeps no such thing."""
        return self._other(layer, 6 if of_index else 5, "tokens for groups")

    def _other(self, layer: int, place: int, what: str) -> KeysArgument:
        of_layer = self._layers[layer]
        argument = of_layer[place] if place < len(of_layer) else None
        if not isinstance(argument, tuple):
            raise ValueError(f"layer {layer} keeps no {what}")
        return argument

    def write(self, keys: KeysArgument, first: int, parts: Sequence[NDArray[Any]]) -> None:
        """Keys, and values if they are apart, for the positions from `first` on: float32
        [n_tokens, n_kv_heads, width] each."""
        if keys[3] == "q8_0":
            parts = [quantize(part, "q8_0") for part in parts]
        done, n_tokens, page_rows = 0, len(parts[0]), self._page_rows[keys[0]]
        while done < n_tokens:
            index, row = divmod(first + done, page_rows)
            count = min(page_rows - row, n_tokens - done)
            for page, part in zip(self._parts(keys, index), parts, strict=False):
                page[:, row : row + count] = part[done : done + count].transpose(1, 0, 2)
            done += count

    def read(
        self, keys: KeysArgument, first: int, last: int, heads: slice = slice(None)
    ) -> list[NDArray[Any]]:
        """Copies of the keys and the values of positions [first, last), [n_heads, last - first,
        width] each; for Q8_0 the last axis counts bytes. heads: of the n_kv_heads."""
        if first == last:
            *_, kind, n_kv_heads, head_dim, value_dim = keys
            sizes = [row_bytes(kind, n) // _DTYPES[kind].itemsize for n in (head_dim, value_dim)]
            n_heads = len(range(n_kv_heads)[heads])
            return [np.empty((n_heads, 0, size), _DTYPES[kind]) for size in sizes]
        page_rows = self._page_rows[keys[0]]
        numbers = range(first // page_rows, -(-last // page_rows))
        pages = [self._parts(keys, index) for index in numbers]
        begin = first - numbers.start * page_rows
        return [
            np.concatenate([page[which][heads] for page in pages], axis=1)[
                :, begin : begin + last - first
            ]
            for which in (0, 1)
        ]

    def _parts(self, keys: KeysArgument, index: int) -> list[NDArray[Any]]:
        """The keys and the values in a page, [n_kv_heads, page_rows, width]. ValueError if the
        page is not there."""
        table, k_offset, v_offset, kind, n_kv_heads, head_dim, value_dim = keys
        page_rows = self._page_rows[table]
        if index not in self._pages[table]:
            first = index * page_rows
            raise ValueError(f"the KV cache has no room for positions from {first} on")
        page, dtype = self._pages[table][index], _DTYPES[kind]
        in_keys = k_offset == v_offset

        def part(offset: int, width: int) -> NDArray[Any]:
            shape = n_kv_heads, page_rows, row_bytes(kind, width) // dtype.itemsize
            n_bytes = int(np.prod(shape)) * dtype.itemsize
            return page[offset : offset + n_bytes].view(dtype).reshape(shape)

        all_keys = part(k_offset, head_dim)
        if not in_keys:
            return [all_keys, part(v_offset, value_dim)]
        return [all_keys, all_keys[..., : row_bytes(kind, value_dim) // dtype.itemsize]]
