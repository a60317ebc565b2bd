"""The keys and values of the tokens evaluated so far, which attention reads again."""

import contextlib
import math
import mmap
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops.quants import TYPES, row_bytes

KVType = Literal["f32", "f16", "q8_0"]
_DTYPES: dict[KVType, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "q8_0": np.dtype(np.uint8),
}

Cache = NDArray[Any]  # float32, float16, or uint8 with rows of Q8_0


class KVCache:
    """Keys and values of all layers for up to `capacity` tokens. It now holds those of `tokens`.

    kv_type: the type of keys and values. "q8_0" is GGML's type: a block of 32 values has a float16
    scale and an int8 for each value, 34 bytes.
    """

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, kv_type: KVType = "f16"
    ) -> None:
        """ValueError if head_dim is no multiple of the type's block; MemoryError, with the size,
        if the system refuses the memory."""
        block, _ = TYPES[kv_type]
        if head_dim % block:
            raise ValueError(
                f"kv_type {kv_type!r} keeps blocks of {block} values, and this model's heads have "
                f"{head_dim}, no multiple of it; use 'f16' or 'f32'"
            )
        dtype = _DTYPES[kv_type]
        width = row_bytes(kv_type, head_dim) // dtype.itemsize
        self._data = _lazy_zeros((n_layers, 2, n_kv_heads, capacity, width), dtype)
        self._layers = [(keys, values) for keys, values in self._data]
        self.n_layers, self.n_kv_heads, self.head_dim = n_layers, n_kv_heads, head_dim
        self.kv_type: KVType = kv_type
        self.capacity = capacity
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        """The number of tokens in the cache, which is the position of the next token."""
        return len(self.tokens)

    def layer(self, index: int) -> tuple[Cache, Cache]:
        """Keys and values of a layer, [n_kv_heads, capacity, head_dim] each. For Q8_0 the last axis
        counts bytes: [n_kv_heads, capacity, head_dim / 32 * 34]."""
        return self._layers[index]

    @property
    def layers(self) -> list[tuple[Cache, Cache]]:
        """Keys and values of all layers, see `layer`."""
        return self._layers

    @property
    def row_bytes(self) -> int:
        """Bytes of the keys, or of the values, of one KV head at one position."""
        return int(self._data.strides[-2])

    def rows(self, n_tokens: int) -> Iterator[NDArray[np.uint8]]:
        """The memory of the first n_tokens, as arrays of uint8 [n_tokens, row_bytes]: for each
        layer the keys, then the values; one array for each KV head."""
        for part in self._data.reshape(-1, *self._data.shape[-2:]):
            yield part[:n_tokens].view(np.uint8)

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self._data.nbytes

    def clear(self) -> None:
        self.tokens.clear()

    def keep_shared(self, prompt: Sequence[int]) -> int:
        """Keep the longest beginning that tokens and `prompt` share; return its length.

        The last token of the prompt is never kept, because its logits must still be computed.
        """
        kept = 0
        for mine, its in zip(self.tokens, prompt[:-1], strict=False):
            if mine != its:
                break
            kept += 1
        del self.tokens[kept:]
        return kept


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Cache:
    """Zeros whose pages take memory when they are first written to.

    np.zeros would ask for pages of 2 MiB. The first token writes to the keys and values of every
    head, so it would touch all of these pages: 94 MB for SmolLM2-135M, where small pages take 1 MB.
    """
    n_bytes = math.prod(shape) * dtype.itemsize
    try:
        pages = mmap.mmap(-1, n_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except (OSError, OverflowError):
        raise MemoryError(
            f"the KV cache needs {n_bytes / 2**20:,.0f} MiB; ask for a smaller context"
        ) from None
    with contextlib.suppress(AttributeError, OSError):  # a kernel without huge pages
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, dtype).reshape(shape)
