"""Columns, heads and rows of Q8_0 as parts of wider buffers, in NumPy; see graph.ops.slices."""

import numpy as np

from airllm import numpy_ops
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.graph.graph import Op


def head_linear(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    heads = batch.weights[op.weights[0]]
    n_heads, n, _ = heads.shape
    inputs, result = (each.reshape(batch.n_tokens, n_heads, -1) for each in (x, out))
    parts = [sequence.rows for sequence in batch.sequences]  # see TokenBatch.multiply
    for head, matrix in enumerate(heads):
        product = np.empty((batch.n_tokens, n), np.float32)
        numpy_ops.linear_apply(np.ascontiguousarray(inputs[:, head]), matrix, product, parts)
        result[:, head] = product


def take_head_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    offset, width = int(op.attrs["offset"]), int(op.attrs["width"])
    heads = x.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1)
    out.reshape(batch.n_tokens, -1, width)[...] = heads[:, :, offset : offset + width]


def join_heads(op: Op, batch: TokenBatch) -> None:
    a, b, out = (
        each.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1) for each in arrays(op, batch)
    )
    np.concatenate([a, b], axis=2, out=out)


def layer_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    layer, width = batch.layer, out.shape[1]
    if (layer + 1) * width > x.shape[1]:
        raise ValueError(
            f"{op.inputs[0]!r} has the columns of {x.shape[1] // width} layers, and none of layer "
            f"{layer}"
        )
    out[...] = x[:, layer * width : (layer + 1) * width]


def round_q8(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.dequantize(numpy_ops.quantize(x, "q8_0"), "q8_0")


def merge_add(op: Op, batch: TokenBatch) -> None:
    x, parts, out = arrays(op, batch)
    if op.attrs["quantized"]:
        parts = numpy_ops.dequantize(parts, "q8_0")
    out[...] = x
    for part in np.split(parts, parts.shape[1] // x.shape[1], axis=1):
        out += part


def take_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    if op.attrs["quantized"]:
        x = numpy_ops.dequantize(x, "q8_0")
    offset = int(op.attrs["offset"])
    out[...] = x[:, offset : offset + out.shape[1]]


def put_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    offset = int(op.attrs["offset"])
    if op.attrs["quantized"]:
        x, offset = numpy_ops.quantize(x, "q8_0"), offset // 32 * 34
    out[:, offset : offset + x.shape[1]] = x
