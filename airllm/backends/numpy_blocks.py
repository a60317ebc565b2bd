"""Attention to the blocks of positions that an index chooses, in NumPy; see graph.ops."""

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.backends.numpy_sparse import highest
from airllm.graph.graph import Op
from airllm.numpy_ops.attention import widened

__all__ = ["block_attention", "block_mean", "choose_blocks"]


def block_mean(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    first, size = batch.recurrent_first[id(op)], int(op.attrs["block_size"])
    for s in batch.sequences:
        total = s.kept.recurrent(s.layer)[first : first + x.shape[1]]
        for row, position in enumerate(range(s.past, s.end), s.first):
            total[...] = x[row] if position % size == 0 else total + x[row]
            out[row] = total / np.float32(size) if position % size == size - 1 else 0.0


def choose_blocks(op: Op, batch: TokenBatch) -> None:
    q, out = arrays(op, batch)
    size, pooled = int(op.attrs["block_size"]), bool(op.attrs["pooled"])
    n_chosen, n_local = int(op.attrs["n_chosen"]), int(op.attrs["n_local"])
    queries = q.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1)
    choices = out.reshape(batch.n_tokens, 1 if pooled else queries.shape[1], -1)
    choices[...] = -1.0
    for s in batch.sequences:
        n_keys = s.end // size if pooled else s.end
        keys = widened(s.kept.read(s.kept.index(s.layer), 0, n_keys)[0][0])  # [n_keys, head_dim]
        for row, seen in enumerate(range(s.past + 1, s.end + 1), s.first):
            n_blocks = -(-seen // size)
            # The last blocks are chosen in any case; of the others, as many as are wanted.
            last = seen % size > 0 if pooled else min(n_local, n_blocks)
            others, wanted = n_blocks - last, n_chosen - (0 if pooled else last)
            if others <= wanted:
                choices[row, :, :n_blocks] = np.arange(n_blocks)
                continue
            score = _of_blocks if pooled else _of_positions
            scores = score(queries[row], keys, size, seen)[:, :others]
            for choice, own in zip(choices[row], scores, strict=True):
                choice[:wanted] = highest(own, wanted)
                choice[wanted : wanted + last] = np.arange(others, n_blocks)


def _of_blocks(
    q: NDArray[np.float32], keys: NDArray[np.float32], size: int, seen: int
) -> NDArray[np.float32]:
    """[1, n complete blocks]. q: [n_heads, head_dim], keys: [n, head_dim]"""
    products = q @ keys[: seen // size].T
    products[~(products > 0.0)] = 0.0
    total: NDArray[np.float32] = products.sum(axis=0, keepdims=True)
    return total


def _of_positions(
    q: NDArray[np.float32], keys: NDArray[np.float32], size: int, seen: int
) -> NDArray[np.float32]:
    """[n_heads, n_blocks], likewise."""
    products = np.full((len(q), -(-seen // size) * size), -np.inf, np.float32)
    products[:, :seen] = q @ keys[:seen].T
    products[np.isnan(products)] = -np.inf
    largest: NDArray[np.float32] = products.reshape(len(q), -1, size).max(axis=2)
    return largest


def block_attention(op: Op, batch: TokenBatch) -> None:
    q, chosen, out = arrays(op, batch)
    n_heads, scale = int(op.attrs["n_heads"]), float(op.attrs["scale"])
    size, n_choices = int(op.attrs["block_size"]), int(op.attrs["n_choices"])
    queries, results = (each.reshape(batch.n_tokens, n_heads, -1) for each in (q, out))
    choices = chosen.reshape(batch.n_tokens, n_choices, -1)
    n_kv, group = int(op.attrs["n_kv_heads"]) // n_choices, n_heads // n_choices
    for s in batch.sequences:
        keys, values = s.kept.read(s.kept.keys(s.layer), 0, s.end)
        # Tokens that see fewer positions than the blocks have see all.
        dense = max(0, min(size * choices.shape[2] - 1 - s.past, s.n_tokens))
        rows, end = slice(s.first, s.first + dense), s.past + dense
        k, v = keys[:, :end], values[:, :end]
        numpy_ops.attention_apply(queries[rows], k, v, scale, True, results[rows])
        for row in range(rows.stop, s.rows.stop):
            seen = s.past + row - s.first + 1
            for choice, blocks in enumerate(choices[row]):
                own = _positions(blocks, size, seen)
                heads = slice(choice * n_kv, (choice + 1) * n_kv)
                of_q = slice(row, row + 1), slice(choice * group, (choice + 1) * group)
                k, v = keys[heads][:, own], values[heads][:, own]
                result = np.ascontiguousarray(results[of_q])
                numpy_ops.attention_apply(
                    np.ascontiguousarray(queries[of_q]), k, v, scale, False, result
                )
                results[of_q] = result


def _positions(blocks: NDArray[np.float32], size: int, seen: int) -> NDArray[np.int64]:
    """The positions of the blocks before the first -1, up to the token's own, seen - 1."""
    n_blocks = max(1, int(np.cumprod(blocks >= 0).sum()))
    given = np.clip(np.nan_to_num(blocks[:n_blocks]), 0, (seen - 1) // size).astype(np.int64)
    positions = given[:, np.newaxis] * size + np.arange(size)
    n_positions = (n_blocks - 1) * size + min(size, seen - int(given[-1]) * size)
    found: NDArray[np.int64] = np.minimum(positions.ravel()[:n_positions], seen - 1)
    return found
