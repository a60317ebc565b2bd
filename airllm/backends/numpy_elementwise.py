"""What works on each element of a row, in NumPy; see graph.ops.elementwise."""

import numpy as np

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op


def add(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    np.add(a, b, out=out)


def multiply(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    np.multiply(a, b, out=out)


def scale(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    factor = np.float32(op.attrs["factor"])
    np.multiply(x, factor * batch.weights[op.weights[0]] if op.weights else factor, out=out)


def scale_rows(op: Op, batch: TokenBatch) -> None:
    x, factors, out = arrays(op, batch)
    parts = *factors.shape, x.shape[1] // factors.shape[1]
    np.multiply(x.reshape(parts), factors[..., np.newaxis], out=out.reshape(parts))


def clamp(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.clip(x, np.float32(op.attrs["low"]), np.float32(op.attrs["high"]), out=out)


def softcap(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    cap = float(op.attrs["cap"])
    out[...] = cap * np.tanh(x.astype(np.float64) / cap)


def swiglu(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    numpy_ops.swiglu(gate, up, out=out)


def geglu(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    np.multiply(numpy_ops.gelu(gate), up, out=out)


def silu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.silu(x, out=out)


def gelu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.gelu(x, out=out)


def gelu_erf(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.gelu(x, "none", out=out)


def softplus(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.softplus_apply(x)


def sigmoid(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.sigmoid_apply(x)


def relu_squared(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.square(np.maximum(x, 0), out=out)


def swiglu_oai(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    alpha, limit = float(op.attrs["alpha"]), float(op.attrs["limit"])
    gated = np.maximum(np.minimum(gate, limit), -1e30).astype(np.float64)  # inf * 0 is NaN
    held = np.clip(up.astype(np.float64), -limit, limit)
    out[...] = gated * numpy_ops.sigmoid_apply(alpha * gated) * (held + float(op.attrs["shift"]))


def xielu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    positive, negative, beta, eps = (
        float(op.attrs[name]) for name in ("positive", "negative", "beta", "eps")
    )
    wide = x.astype(np.float64)
    above = np.maximum(wide, 0.0)
    below = (beta - negative) * wide + negative * np.expm1(np.minimum(wide, eps))
    out[...] = np.where(wide > 0.0, above * (positive * above + beta), below)


def signed_root(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    size = np.maximum(np.abs(x), np.float32(op.attrs["least"]))
    np.multiply(np.sign(x), np.sqrt(size), out=out)


def keep_above(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    rows = x.astype(np.float64)
    least = rows.mean(axis=1) + float(op.attrs["factor"]) * rows.std(axis=1)
    np.maximum(x - least.astype(np.float32)[:, np.newaxis], 0, out=out)
