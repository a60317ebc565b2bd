"""The keys and values of the tokens evaluated so far, which attention reads again."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

KVType = Literal["f16", "f32"]
_DTYPES: dict[KVType, type[np.floating]] = {"f16": np.float16, "f32": np.float32}

Cache = NDArray[np.float16] | NDArray[np.float32]


class KVCache:
    """Keys and values of all layers, for up to `capacity` tokens; `length` of them are there.

    The memory is asked for once, and the system hands out its pages when tokens first fill them.
    """

    def __init__(
        self, n_layers: int, n_kv_heads: int, head_dim: int, capacity: int, kv_type: KVType = "f16"
    ) -> None:
        """MemoryError, with the size, when the system refuses it."""
        shape = (n_layers, 2, n_kv_heads, capacity, head_dim)
        try:
            self._data = np.zeros(shape, _DTYPES[kv_type])
        except MemoryError:
            n_bytes = float(np.prod(shape, dtype=np.float64)) * np.dtype(_DTYPES[kv_type]).itemsize
            raise MemoryError(
                f"the KV cache of {capacity} tokens needs {n_bytes / 2**20:,.0f} MiB; ask for a "
                f"smaller context"
            ) from None
        self._layers = [(keys, values) for keys, values in self._data]
        self.capacity = capacity
        self.length = 0

    def layer(self, index: int) -> tuple[Cache, Cache]:
        """Keys and values of a layer, [n_kv_heads, capacity, head_dim] each."""
        return self._layers[index]

    @property
    def nbytes(self) -> int:
        """Bytes when full."""
        return self._data.nbytes

    def clear(self) -> None:
        self.length = 0
