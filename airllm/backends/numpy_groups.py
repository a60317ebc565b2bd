"""Attention to groups of positions that have a key together, in NumPy."""

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op
from airllm.graph.state import first_seen
from airllm.numpy_ops.attention import widened

__all__ = ["group_append", "group_attention", "pool_groups"]


def pool_groups(op: Op, batch: TokenBatch) -> None:
    x, gate, out = arrays(op, batch)
    every, n_parts = int(op.attrs["every"]), int(op.attrs["n_parts"])
    bias = batch.weights[op.weights[0]].reshape(every, n_parts, -1)
    out[...] = 0.0
    for s in batch.sequences:
        pending = s.kept.pending(s.layer, of_index=bool(op.attrs["of_index"]))
        heads = s.n_tokens, n_parts, -1
        s.kept.write(pending, s.past, [x[s.rows].reshape(heads), gate[s.rows].reshape(heads)])
    for s in batch.sequences:
        pending = s.kept.pending(s.layer, of_index=bool(op.attrs["of_index"]))
        for row in s.group_rows(every):
            end = s.past + row - s.first + 1
            values, scores = [], []  # of each part: [every, width of out]
            for part in range(n_parts):
                last = end - (n_parts - 1 - part) * every
                if last > 0:  # else there is no group before
                    kept, gates = s.kept.read(pending, last - every, last)
                    values.append(kept[part])
                    scores.append(gates[part] + bias[:, part])
            shares = numpy_ops.softmax(np.ascontiguousarray(np.concatenate(scores).T))
            out[row] = np.einsum("ct,tc->c", shares, np.concatenate(values))


def group_append(op: Op, batch: TokenBatch) -> None:
    keys, every = batch.buffers[op.inputs[0]], int(op.attrs["every"])
    for s in batch.sequences:
        own = keys[s.group_rows(every)]
        s.kept.write(s.kept.groups(s.layer), s.past // every, [own[:, np.newaxis]])


def group_attention(op: Op, batch: TokenBatch) -> None:
    q, *selections, out = arrays(op, batch)
    n_heads, every, window = (int(op.attrs[name]) for name in ("n_heads", "every", "window"))
    queries, results = (each.reshape(batch.n_tokens, n_heads, -1) for each in (q, out))
    for s in batch.sequences:
        first = first_seen(window, False, s.past)
        [near] = widened(s.kept.read(s.kept.keys(s.layer), first, s.end)[0])
        [groups] = widened(s.kept.read(s.kept.groups(s.layer), 0, s.end // every)[0])
        for row in range(s.first, s.rows.stop):  # alone, so that its sums round as in any batch
            position = s.past + row - s.first
            begin = first_seen(window, False, position) - first
            seen = _seen(selections, row, (position + 1) // every)
            keys = np.concatenate([near[begin : position + 1 - first], groups[seen]])[np.newaxis]
            numpy_ops.attention_apply(
                queries[row : row + 1],
                keys,
                keys,
                float(op.attrs["scale"]),
                False,
                results[row : row + 1],
                sinks=batch.weights[op.weights[0]] if op.weights else None,
            )


def _seen(selections: list[NDArray[np.float32]], row: int, end: int) -> NDArray[np.int64]:
    """The groups that a token sees, of the first `end`."""
    if not selections or end <= selections[0].shape[1]:
        return np.arange(end)
    selected = np.clip(np.nan_to_num(selections[0][row]), 0, end - 1)
    seen: NDArray[np.int64] = selected.astype(np.int64)
    return seen
