"""Several residual streams of a token, in NumPy; see graph.ops.streams."""

import numpy as np

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op


def residual_attention(op: Op, batch: TokenBatch) -> None:
    x, earlier, out = arrays(op, batch)
    n = int(op.attrs["n_earlier"]) * x.shape[1]
    rows = np.concatenate([earlier[:, :n], x], axis=1, dtype=np.float64)
    rows = rows.reshape(len(x), -1, x.shape[1])  # [n_tokens, n_earlier + 1, width]
    squares = (rows * rows).mean(axis=-1) + float(op.attrs["eps"])
    scores = rows @ batch.weights[op.weights[0]] / np.sqrt(squares)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    out[...] = np.einsum("tj,tjw->tw", shares, rows)


def mix_streams(op: Op, batch: TokenBatch) -> None:
    x, factors, out = arrays(op, batch)
    n_in = int(op.attrs["n_streams"])
    n_out = factors.shape[1] // n_in
    streams = x.reshape(batch.n_tokens, n_in, -1)
    matrices = factors.reshape(batch.n_tokens, n_out, n_in)
    np.einsum("tij,tjk->tik", matrices, streams, out=out.reshape(batch.n_tokens, n_out, -1))


def hyper_factors(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    n, eps = int(op.attrs["n_streams"]), float(op.attrs["eps"])
    scale, base = (batch.weights[name].astype(np.float64) for name in op.weights)
    parts = [n] if x.shape[1] == n else [n, n, n * n]
    mixes = x * np.repeat(scale, parts) + base  # float64
    out[:, :n] = numpy_ops.sigmoid_apply(mixes[:, :n]) + eps
    if len(parts) == 1:
        return
    out[:, n : 2 * n] = 2.0 * numpy_ops.sigmoid_apply(mixes[:, n : 2 * n])
    matrices = mixes[:, 2 * n :].reshape(-1, n, n)
    matrices = np.exp(matrices - matrices.max(axis=2, keepdims=True))
    matrices = matrices / matrices.sum(axis=2, keepdims=True) + eps
    for axis in [1, *[2, 1] * (int(op.attrs["n_iterations"]) - 1)]:
        matrices /= matrices.sum(axis=axis, keepdims=True) + eps
    out[:, 2 * n :] = matrices.swapaxes(1, 2).reshape(-1, n * n)


def hyper_mix(op: Op, batch: TokenBatch) -> None:
    x, part, factors, out = arrays(op, batch)
    n = int(op.attrs["n_streams"])
    matrices = factors[:, 2 * n :].reshape(-1, n, n)
    mixed = np.einsum("tij,tjk->tik", matrices, x.reshape(batch.n_tokens, n, -1))
    added = factors[:, n : 2 * n, np.newaxis] * part[:, np.newaxis]
    np.add(mixed, added, out=out.reshape(mixed.shape))


def add_to_streams(op: Op, batch: TokenBatch) -> None:
    x, part, out = arrays(op, batch)
    out[...] = x
    streams = out.reshape(batch.n_tokens, -1, part.shape[1])
    streams[:, int(op.attrs["first"]) :] += part[:, np.newaxis]


def match_rms(op: Op, batch: TokenBatch) -> None:
    x, like, out = arrays(op, batch)
    streams = x.reshape(batch.n_tokens, -1, like.shape[1])
    wanted = np.mean(np.square(like, dtype=np.float64), axis=-1)[:, np.newaxis]
    found = np.maximum(
        np.mean(np.square(streams, dtype=np.float64), axis=-1), float(op.attrs["eps"])
    )
    factors = np.sqrt(wanted / found).astype(np.float32)[..., np.newaxis]
    np.multiply(streams, factors, out=out.reshape(streams.shape))


def stream_products(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    streams = batch.n_tokens, int(op.attrs["n_streams"]), -1
    products = a.reshape(streams).astype(np.float64) * b.reshape(streams)
    out[...] = products.sum(axis=-1) * float(op.attrs["factor"])
