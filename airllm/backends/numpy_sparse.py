"""Attention to the positions that an index selects (arXiv:2512.02556), in NumPy."""

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op
from airllm.numpy_ops.attention import widened

__all__ = ["index_append", "index_select", "sparse_attention"]


def index_append(op: Op, batch: TokenBatch) -> None:
    keys, every = batch.buffers[op.inputs[0]], int(op.attrs["every"])
    for s in batch.sequences:
        own = keys[s.group_rows(every)]
        s.kept.write(s.kept.index(s.layer), s.past // every, [own[:, np.newaxis]])


def index_select(op: Op, batch: TokenBatch) -> None:
    q, weights, out = arrays(op, batch)
    n, every = out.shape[1], int(op.attrs["every"])
    queries = q.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1)
    for s in batch.sequences:
        keys = widened(s.kept.read(s.kept.index(s.layer), 0, s.end // every)[0][0])
        for row, end in zip(  # keys: [n_kv, head_dim]
            range(s.rows.start, s.rows.stop), range(s.past + 1, s.end + 1), strict=True
        ):
            seen = end // every
            if seen <= n:
                out[row] = -1.0
                out[row, :seen] = np.arange(seen)
            else:  # one token at a time, so that its sums round the same in any batch
                products = queries[row] @ keys[:seen].T  # [n_heads, seen]
                products[~(products > 0.0)] = 0.0
                out[row] = highest(weights[row] @ products, n)


def highest(scores: NDArray[np.float32], n: int) -> NDArray[np.int64]:
    """The positions of the n highest scores, ascending. NaN is above all; of equal scores the
    earlier position is taken."""
    return np.sort(np.lexsort((-scores, ~np.isnan(scores)))[:n])


def sparse_attention(op: Op, batch: TokenBatch) -> None:
    q, selection, out = arrays(op, batch)
    n, n_heads, scale = selection.shape[1], int(op.attrs["n_heads"]), float(op.attrs["scale"])
    sinks = batch.weights[op.weights[0]] if op.weights else None
    queries, results = (each.reshape(batch.n_tokens, n_heads, -1) for each in (q, out))
    for s in batch.sequences:
        keys, values = s.kept.read(s.kept.keys(s.layer), 0, s.end)
        dense = max(0, min(n - s.past, s.n_tokens))  # the first tokens see all positions
        rows, end = slice(s.first, s.first + dense), s.past + dense
        k, v = keys[:, :end], values[:, :end]
        numpy_ops.attention_apply(queries[rows], k, v, scale, True, results[rows], sinks=sinks)
        for row in range(rows.stop, s.rows.stop):
            last = s.past + row - s.first
            seen = np.clip(np.nan_to_num(selection[row]), 0, last).astype(np.int64)
            own = slice(row, row + 1)
            k, v = keys[:, seen], values[:, seen]
            numpy_ops.attention_apply(queries[own], k, v, scale, False, results[own], sinks=sinks)
