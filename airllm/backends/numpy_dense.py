"""Looking up, norms, and products with matrices, in NumPy; see graph.ops.dense."""

import numpy as np

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.backends.numpy_temporaries import rows_of_a_piece
from airllm.graph.graph import Op


def embed(op: Op, batch: TokenBatch) -> None:
    tokens, out = arrays(op, batch)
    np.multiply(batch.weights[op.weights[0]].rows(tokens), np.float32(op.attrs["scale"]), out=out)


def rms_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.rms_norm(x, batch.weights[op.weights[0]], float(op.attrs["eps"]), out=out)


def layer_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=-1, keepdims=True)
    variance = (wide * wide).mean(axis=-1, keepdims=True)
    wide /= np.sqrt(variance + float(op.attrs["eps"]))
    out[...] = wide * batch.weights[op.weights[0]] if op.weights else wide


def head_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    n_heads, eps = int(op.attrs["n_heads"]), float(op.attrs["eps"])
    heads = batch.n_tokens, n_heads, x.shape[1] // n_heads
    weight = batch.weights[op.weights[0]] if op.weights else np.ones(heads[2], np.float32)
    numpy_ops.rms_norm(x.reshape(heads), weight, eps, out=out.reshape(heads))


def bias(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.add(x, batch.weights[op.weights[0]], out=out)


def linear(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    batch.multiply(x, op.weights[0], out)  # exact; activations="q8" permits rounding only


def linear_many(op: Op, batch: TokenBatch) -> None:
    x = batch.buffers[op.inputs[0]]
    for weight, output in zip(op.weights, op.outputs, strict=True):
        batch.multiply(x, weight, batch.buffers[output])


def linear_add(op: Op, batch: TokenBatch) -> None:
    x, a, out = arrays(op, batch)
    product = np.empty_like(out)
    batch.multiply(x, op.weights[0], product)
    np.add(a, product, out=out)


def glu_linear(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    up = np.empty_like(out)
    for weight, product in zip(op.weights, (out, up), strict=True):
        batch.multiply(x, weight, product)
    step = rows_of_a_piece(out.shape[1])
    for first in range(0, len(out), step):
        rows = slice(first, first + step)
        if op.attrs["activation"] == "silu":
            numpy_ops.swiglu(out[rows], up[rows], out=out[rows])
        else:
            np.multiply(numpy_ops.gelu(out[rows]), up[rows], out=out[rows])
