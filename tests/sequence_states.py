"""States of sequences whose keys and values a test writes or reads itself."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.backends import Backend
from airllm.graph.graph import Graph
from airllm.graph.state import KeysValues, LayerState, state_of
from airllm.state.layout import KVType, StateLayout
from airllm.state.pages import PagePool
from airllm.state.sequence import SequenceState

Arrays = dict[str, NDArray[np.float32]]

KV_TYPES = {"float32": "f32", "float16": "f16", "uint8": "q8_0"}


def one_page_state(backend: Any, caches: NDArray[Any]) -> Any:
    """A state as executors take it, whose only page is `caches`: [n_layers, 2, n_kv_heads,
    page_rows, head_dim], keys and values of each layer; uint8 for rows of Q8_0.

    backend: has SequenceState, or sequence_state.
    """
    return paged_state(backend, caches, caches.shape[3])


def paged_state(backend: Any, caches: NDArray[Any], page_rows: int) -> Any:
    """The same with copies in pages of page_rows positions, unless there is only one page."""
    n_layers, _, n_kv_heads, n_rows, width = caches.shape
    pages = [caches[:, :, :, i : i + page_rows] for i in range(0, n_rows, page_rows)]
    part = pages[0][0, 0].nbytes
    head_dim = width // 34 * 32 if caches.dtype == np.uint8 else width
    keys = KV_TYPES[caches.dtype.name], n_kv_heads, head_dim, head_dim
    layers = [((0, 2 * i * part, (2 * i + 1) * part, *keys), 0, 0, None) for i in range(n_layers)]
    make = getattr(backend, "SequenceState", None) or backend.sequence_state
    state = make([(page_rows, pages[0].nbytes)], layers)
    for index, page in enumerate(pages):
        state.set_page(0, index, page.reshape(-1).view(np.uint8))
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


def bound_weights(
    backend: Backend, executor: Any, made: Graph, weights: Mapping[str, NDArray[np.float32]]
) -> Any:
    return executor.bind(
        {
            name: backend.weight(made.roles[name], values.view(np.uint8), "f32", values.shape)
            for name, values in weights.items()
        }
    )


def run_in_batches(
    backend: Backend,
    made: Graph,
    given: Arrays,
    cuts: Sequence[int],
    kv_type: KVType = "f32",
    threads: int = 0,
    weights: Mapping[str, NDArray[np.float32]] | None = None,
) -> Arrays:
    """A graph's external buffers for all tokens, which come in batches that end at `cuts`. Those
    that are not given hold 7 until an op writes them."""
    executor = backend.executor(made, max(np.diff([0, *cuts])))
    state = new_state(backend, [state_of(made)], 4096, kv_type)
    bound = bound_weights(backend, executor, made, weights or {})
    everything = {}
    for buffer in made.buffers:
        if buffer.external:
            empty = np.full((cuts[-1], buffer.width), 7, np.float32)
            everything[buffer.name] = given.get(buffer.name, empty)
    begin = 0
    for end in cuts:
        part = {name: array[begin:end] for name, array in everything.items()}
        state.make_room(0, 1, begin, end - begin)
        executor.run_layers([bound], part, [(end - begin, begin, state.backing)], threads=threads)
        state.let_go(0, 1, end)
        state.advance([0] * (end - begin))
        begin = end
    return everything


def run_together(
    backend: Backend, made: Graph, alone: Arrays, counts: Sequence[int], pasts: Sequence[int]
) -> tuple[Arrays, NDArray[np.int64]]:
    """Sequences of the same tokens in one call: counts[i] tokens after pasts[i], which came before.
    alone: the arrays for all tokens, from run_in_batches. Returns the arrays of the call, in which
    what the graph writes held 7, and which rows of `alone` they are."""
    executor = backend.executor(made, max(*pasts, sum(counts)))
    bound = executor.bind({})
    sequences = []
    for n, past in zip(counts, pasts, strict=True):
        state = new_state(backend, [state_of(made)], 4096, "f32")
        state.make_room(0, 1, 0, past + n)
        if past:
            part = {name: array[:past].copy() for name, array in alone.items()}
            executor.run_layers([bound], part, [(past, 0, state.backing)])
        sequences.append((n, past, state))
    rows = np.concatenate([np.arange(p, p + n) for n, p in zip(counts, pasts, strict=True)])
    batch = {name: array[rows].copy() for name, array in alone.items()}
    for op in made.ops:
        for name in op.outputs:
            if name in batch:
                batch[name][:] = 7.0
    executor.run_layers([bound], batch, [(n, past, s.backing) for n, past, s in sequences])
    return batch, rows
