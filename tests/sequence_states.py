"""States of sequences whose keys and values a test writes or reads itself."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend
from airllm.graph.state import KeysValues, LayerState
from airllm.state.layout import KVType, StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import SequenceState

KV_TYPES = {"float32": "f32", "float16": "f16", "uint8": "q8_0"}


def one_page_state(backend: Any, caches: NDArray[Any]) -> Any:
    """A state as executors take it, whose only page is `caches`: [n_layers, 2, n_kv_heads,
    page_rows, head_dim], keys and values of each layer; uint8 for rows of Q8_0.

    backend: has SequenceState, or sequence_state.
    """
    n_layers, _, n_kv_heads, page_rows, width = caches.shape
    part = caches[0, 0].nbytes
    head_dim = width // 34 * 32 if caches.dtype == np.uint8 else width
    keys = KV_TYPES[caches.dtype.name], n_kv_heads, head_dim, head_dim
    layers = [((0, 2 * i * part, (2 * i + 1) * part, *keys), 0, 0, None) for i in range(n_layers)]
    make = getattr(backend, "SequenceState", None) or backend.sequence_state
    state = make(page_rows, [caches.nbytes], layers)
    state.set_page(0, 0, caches.reshape(-1).view(np.uint8))
    return state


def new_state(
    backend: Backend, layers: list[LayerState], capacity: int, kv_type: KVType = "f16"
) -> SequenceState:
    layout = StateLayout(layers, kv_type)
    pool = PagePool(backend.memory, layout.page_bytes)
    return SequenceState(layout, pool, backend.sequence_state, capacity)


def heads_of(n_kv_heads: int, head_dim: int, window: int = 0, chunked: bool = False) -> LayerState:
    """A layer that keeps keys and values of the same width."""
    return LayerState(KeysValues(n_kv_heads, head_dim, head_dim, window, chunked=chunked))
