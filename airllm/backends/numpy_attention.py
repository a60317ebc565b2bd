"""Rotation, keys and values, and attention to all positions, in NumPy; see graph.ops.attention."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op
from airllm.graph.state import first_seen


def rope(op: Op, batch: TokenBatch) -> None:
    x, table, out = arrays(op, batch)
    n_heads, head_dim = int(op.attrs["n_heads"]), int(op.attrs["head_dim"])
    interleaved, offset = bool(op.attrs["interleaved"]), int(op.attrs["offset"])
    if not offset:
        numpy_ops.rope_apply(x, table, n_heads, head_dim, interleaved, out)
        return
    heads, results = (each.reshape(batch.n_tokens, n_heads, head_dim) for each in (x, out))
    rotated = np.ascontiguousarray(heads[:, :, offset:]).reshape(batch.n_tokens, -1)
    numpy_ops.rope_apply(rotated, table, n_heads, head_dim - offset, interleaved, rotated)
    results[:, :, :offset] = heads[:, :, :offset]
    results[:, :, offset:] = rotated.reshape(batch.n_tokens, n_heads, -1)


def kv_append(op: Op, batch: TokenBatch) -> None:
    keys, values = (batch.buffers[name] for name in op.inputs)
    _append(batch, keys, values, int(op.attrs["n_kv_heads"]))


def latent_append(op: Op, batch: TokenBatch) -> None:
    _append(batch, batch.buffers[op.inputs[0]], None, int(op.attrs["n_kv_heads"]))


def _append(
    batch: TokenBatch, keys: NDArray[Any], values: NDArray[Any] | None, n_kv_heads: int
) -> None:
    for s in batch.sequences:
        parts = [keys[s.rows], *([] if values is None else [values[s.rows]])]
        heads = [part.reshape(s.n_tokens, n_kv_heads, -1) for part in parts]
        s.kept.write(s.kept.keys(s.layer), s.past, heads)


def attention(op: Op, batch: TokenBatch) -> None:
    q, out = arrays(op, batch)
    n_heads, window = int(op.attrs["n_heads"]), int(op.attrs["window"])
    chunked, alibi = bool(op.attrs["chunked"]), float(op.attrs["alibi"])
    n_kv_heads = int(op.attrs["n_kv_heads"])
    group = n_heads // n_kv_heads
    sinks = batch.weights[op.weights[0]] if op.weights else None
    slopes = numpy_ops.alibi_slopes(n_heads, alibi) if alibi else None
    for s in batch.sequences:
        # Positions that the first token does not see are seen by none, and may be gone. With
        # chunks, they are whole ones.
        first = first_seen(window, chunked, s.past)
        queries, results = (each[s.rows].reshape(s.n_tokens, n_heads, -1) for each in (q, out))
        for head in range(n_kv_heads):  # one at a time, so that copies are small
            own = slice(head, head + 1)
            keys, values = s.kept.read(s.kept.keys(s.layer), first, s.end, own)
            heads = slice(head * group, (head + 1) * group)
            numpy_ops.attention_apply(
                queries[:, heads],
                keys,
                values,
                float(op.attrs["scale"]),
                True,
                results[:, heads],
                window=window or None,
                chunked=chunked,
                softcap=float(op.attrs["softcap"]) or None,
                sinks=None if sinks is None else sinks[heads],
                slopes=None if slopes is None else slopes[heads],
            )


def rope_append(op: Op, batch: TokenBatch) -> None:
    k, v, table = (batch.buffers[name] for name in op.inputs)
    n_kv_heads, head_dim = int(op.attrs["n_kv_heads"]), int(op.attrs["head_dim"])
    rotated = np.empty_like(k)
    interleaved = bool(op.attrs["interleaved"])
    numpy_ops.rope_apply(k, table, n_kv_heads, head_dim, interleaved, rotated)
    _append(batch, rotated, v, n_kv_heads)
