"""The keys and values of the tokens evaluated so far, which attention reads again."""

import contextlib
import math
import mmap
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

KVType = Literal["f16", "f32"]
_DTYPES: dict[KVType, np.dtype[Any]] = {"f16": np.dtype(np.float16), "f32": np.dtype(np.float32)}

Cache = NDArray[Any]  # float16 or float32


class KVCache:
    """Keys and values of all layers, for up to `capacity` tokens; those of `tokens` are there."""

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, kv_type: KVType = "f16"
    ) -> None:
        """MemoryError, with the size, when the system refuses it."""
        self._data = _lazy_zeros((n_layers, 2, n_kv_heads, capacity, head_dim), _DTYPES[kv_type])
        self._layers = [(keys, values) for keys, values in self._data]
        self.capacity = capacity
        self.tokens: list[int] = []

    @property
    def length(self) -> int:
        """Tokens that are there: the position of the next one."""
        return len(self.tokens)

    def layer(self, index: int) -> tuple[Cache, Cache]:
        """Keys and values of a layer, [n_kv_heads, capacity, head_dim] each."""
        return self._layers[index]

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self._data.nbytes

    def clear(self) -> None:
        self.tokens.clear()

    def keep_shared(self, prompt: Sequence[int]) -> int:
        """Forget what does not begin `prompt` as well, and return how many tokens are left.

        Never all of the prompt: the logits of its last token are still to be computed.
        """
        kept = 0
        for mine, its in zip(self.tokens, prompt[:-1], strict=False):
            if mine != its:
                break
            kept += 1
        del self.tokens[kept:]
        return kept


def _lazy_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> Cache:
    """Zeros that take memory page by page, as they are first written to.

    np.zeros would ask for pages of 2 MiB, and as the first token touches a bit of each head's keys
    and values, it would take the whole cache: 94 MB for SmolLM2-135M, where small pages take 1.
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
