"""What each op of a graph computes, in NumPy."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.backends import numpy_blocks as blocks
from airllm.backends import numpy_experts as experts
from airllm.backends import numpy_groups as groups
from airllm.backends import numpy_recurrent as recurrent
from airllm.backends import numpy_sparse as sparse
from airllm.backends.numpy_batch import TokenBatch, arrays
from airllm.backends.numpy_temporaries import rows_of_a_piece
from airllm.graph.graph import Op
from airllm.graph.state import first_seen

__all__ = ["OPS"]


def _embed(op: Op, batch: TokenBatch) -> None:
    tokens, out = arrays(op, batch)
    np.multiply(batch.weights[op.weights[0]].rows(tokens), np.float32(op.attrs["scale"]), out=out)


def _rms_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.rms_norm(x, batch.weights[op.weights[0]], float(op.attrs["eps"]), out=out)


def _layer_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    wide = x.astype(np.float64)
    wide -= wide.mean(axis=-1, keepdims=True)
    variance = (wide * wide).mean(axis=-1, keepdims=True)
    wide /= np.sqrt(variance + float(op.attrs["eps"]))
    out[...] = wide * batch.weights[op.weights[0]] if op.weights else wide


def _residual_attention(op: Op, batch: TokenBatch) -> None:
    x, earlier, out = arrays(op, batch)
    n = int(op.attrs["n_earlier"]) * x.shape[1]
    rows = np.concatenate([earlier[:, :n], x], axis=1, dtype=np.float64)
    rows = rows.reshape(len(x), -1, x.shape[1])  # [n_tokens, n_earlier + 1, width]
    squares = (rows * rows).mean(axis=-1) + float(op.attrs["eps"])
    scores = rows @ batch.weights[op.weights[0]] / np.sqrt(squares)
    shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    out[...] = np.einsum("tj,tjw->tw", shares, rows)


def _head_norm(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    n_heads, eps = int(op.attrs["n_heads"]), float(op.attrs["eps"])
    heads = batch.n_tokens, n_heads, x.shape[1] // n_heads
    weight = batch.weights[op.weights[0]] if op.weights else np.ones(heads[2], np.float32)
    numpy_ops.rms_norm(x.reshape(heads), weight, eps, out=out.reshape(heads))


def _bias(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.add(x, batch.weights[op.weights[0]], out=out)


def _linear(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    batch.multiply(x, op.weights[0], out)  # exact; activations="q8" permits rounding only


def _rope(op: Op, batch: TokenBatch) -> None:
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


def _kv_append(op: Op, batch: TokenBatch) -> None:
    keys, values = (batch.buffers[name] for name in op.inputs)
    _append(batch, keys, values, int(op.attrs["n_kv_heads"]))


def _latent_append(op: Op, batch: TokenBatch) -> None:
    _append(batch, batch.buffers[op.inputs[0]], None, int(op.attrs["n_kv_heads"]))


def _append(
    batch: TokenBatch, keys: NDArray[Any], values: NDArray[Any] | None, n_kv_heads: int
) -> None:
    for s in batch.sequences:
        parts = [keys[s.rows], *([] if values is None else [values[s.rows]])]
        heads = [part.reshape(s.n_tokens, n_kv_heads, -1) for part in parts]
        s.kept.write(s.kept.keys(s.layer), s.past, heads)


def _attention(op: Op, batch: TokenBatch) -> None:
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


def _swiglu(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    numpy_ops.swiglu(gate, up, out=out)


def _geglu(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    np.multiply(numpy_ops.gelu(gate), up, out=out)


def _softcap(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    cap = float(op.attrs["cap"])
    out[...] = cap * np.tanh(x.astype(np.float64) / cap)


def _add(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    np.add(a, b, out=out)


def _linear_many(op: Op, batch: TokenBatch) -> None:
    x = batch.buffers[op.inputs[0]]
    for weight, output in zip(op.weights, op.outputs, strict=True):
        batch.multiply(x, weight, batch.buffers[output])


def _linear_add(op: Op, batch: TokenBatch) -> None:
    x, a, out = arrays(op, batch)
    product = np.empty_like(out)
    batch.multiply(x, op.weights[0], product)
    np.add(a, product, out=out)


def _glu_linear(op: Op, batch: TokenBatch) -> None:
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


def _rope_append(op: Op, batch: TokenBatch) -> None:
    k, v, table = (batch.buffers[name] for name in op.inputs)
    n_kv_heads, head_dim = int(op.attrs["n_kv_heads"]), int(op.attrs["head_dim"])
    rotated = np.empty_like(k)
    interleaved = bool(op.attrs["interleaved"])
    numpy_ops.rope_apply(k, table, n_kv_heads, head_dim, interleaved, rotated)
    _append(batch, rotated, v, n_kv_heads)


def _multiply(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    np.multiply(a, b, out=out)


def _sigmoid(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.sigmoid_apply(x)


def _softplus(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.softplus_apply(x)


def _relu_squared(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.square(np.maximum(x, 0), out=out)


def _swiglu_oai(op: Op, batch: TokenBatch) -> None:
    gate, up, out = arrays(op, batch)
    alpha, limit = float(op.attrs["alpha"]), float(op.attrs["limit"])
    gated = np.maximum(np.minimum(gate, limit), -1e30).astype(np.float64)  # inf * 0 is NaN
    held = np.clip(up.astype(np.float64), -limit, limit)
    out[...] = gated * numpy_ops.sigmoid_apply(alpha * gated) * (held + float(op.attrs["shift"]))


def _scale(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    factor = np.float32(op.attrs["factor"])
    np.multiply(x, factor * batch.weights[op.weights[0]] if op.weights else factor, out=out)


def _scale_rows(op: Op, batch: TokenBatch) -> None:
    x, factors, out = arrays(op, batch)
    parts = *factors.shape, x.shape[1] // factors.shape[1]
    np.multiply(x.reshape(parts), factors[..., np.newaxis], out=out.reshape(parts))


def _clamp(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    np.clip(x, np.float32(op.attrs["low"]), np.float32(op.attrs["high"]), out=out)


def _mix_streams(op: Op, batch: TokenBatch) -> None:
    x, factors, out = arrays(op, batch)
    n_in = int(op.attrs["n_streams"])
    n_out = factors.shape[1] // n_in
    streams = x.reshape(batch.n_tokens, n_in, -1)
    matrices = factors.reshape(batch.n_tokens, n_out, n_in)
    np.einsum("tij,tjk->tik", matrices, streams, out=out.reshape(batch.n_tokens, n_out, -1))


def _hyper_factors(op: Op, batch: TokenBatch) -> None:
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


def _hyper_mix(op: Op, batch: TokenBatch) -> None:
    x, part, factors, out = arrays(op, batch)
    n = int(op.attrs["n_streams"])
    matrices = factors[:, 2 * n :].reshape(-1, n, n)
    mixed = np.einsum("tij,tjk->tik", matrices, x.reshape(batch.n_tokens, n, -1))
    added = factors[:, n : 2 * n, np.newaxis] * part[:, np.newaxis]
    np.add(mixed, added, out=out.reshape(mixed.shape))


def _add_to_streams(op: Op, batch: TokenBatch) -> None:
    x, part, out = arrays(op, batch)
    out[...] = x
    streams = out.reshape(batch.n_tokens, -1, part.shape[1])
    streams[:, int(op.attrs["first"]) :] += part[:, np.newaxis]


def _match_rms(op: Op, batch: TokenBatch) -> None:
    x, like, out = arrays(op, batch)
    streams = x.reshape(batch.n_tokens, -1, like.shape[1])
    wanted = np.mean(np.square(like, dtype=np.float64), axis=-1)[:, np.newaxis]
    found = np.maximum(
        np.mean(np.square(streams, dtype=np.float64), axis=-1), float(op.attrs["eps"])
    )
    factors = np.sqrt(wanted / found).astype(np.float32)[..., np.newaxis]
    np.multiply(streams, factors, out=out.reshape(streams.shape))


def _stream_products(op: Op, batch: TokenBatch) -> None:
    a, b, out = arrays(op, batch)
    streams = batch.n_tokens, int(op.attrs["n_streams"]), -1
    products = a.reshape(streams).astype(np.float64) * b.reshape(streams)
    out[...] = products.sum(axis=-1) * float(op.attrs["factor"])


def _signed_root(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    size = np.maximum(np.abs(x), np.float32(op.attrs["least"]))
    np.multiply(np.sign(x), np.sqrt(size), out=out)


def _keep_above(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    rows = x.astype(np.float64)
    least = rows.mean(axis=1) + float(op.attrs["factor"]) * rows.std(axis=1)
    np.maximum(x - least.astype(np.float32)[:, np.newaxis], 0, out=out)


def _silu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.silu(x, out=out)


def _gelu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.gelu(x, out=out)


def _gelu_erf(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    numpy_ops.gelu(x, "none", out=out)


def _xielu(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    positive, negative, beta, eps = (
        float(op.attrs[name]) for name in ("positive", "negative", "beta", "eps")
    )
    wide = x.astype(np.float64)
    above = np.maximum(wide, 0.0)
    below = (beta - negative) * wide + negative * np.expm1(np.minimum(wide, eps))
    out[...] = np.where(wide > 0.0, above * (positive * above + beta), below)


def _round_q8(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    out[...] = numpy_ops.dequantize(numpy_ops.quantize(x, "q8_0"), "q8_0")


def _merge_add(op: Op, batch: TokenBatch) -> None:
    x, parts, out = arrays(op, batch)
    if op.attrs["quantized"]:
        parts = numpy_ops.dequantize(parts, "q8_0")
    out[...] = x
    for part in np.split(parts, parts.shape[1] // x.shape[1], axis=1):
        out += part


def _take_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    if op.attrs["quantized"]:
        x = numpy_ops.dequantize(x, "q8_0")
    offset = int(op.attrs["offset"])
    out[...] = x[:, offset : offset + out.shape[1]]


def _layer_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    layer, width = batch.layer, out.shape[1]
    if (layer + 1) * width > x.shape[1]:
        raise ValueError(
            f"{op.inputs[0]!r} has the columns of {x.shape[1] // width} layers, and none of layer "
            f"{layer}"
        )
    out[...] = x[:, layer * width : (layer + 1) * width]


def _put_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    offset = int(op.attrs["offset"])
    if op.attrs["quantized"]:
        x, offset = numpy_ops.quantize(x, "q8_0"), offset // 32 * 34
    out[:, offset : offset + x.shape[1]] = x


def _head_linear(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    heads = batch.weights[op.weights[0]]
    n_heads, n, _ = heads.shape
    inputs, result = (each.reshape(batch.n_tokens, n_heads, -1) for each in (x, out))
    parts = [sequence.rows for sequence in batch.sequences]  # see TokenBatch.multiply
    for head, matrix in enumerate(heads):
        product = np.empty((batch.n_tokens, n), np.float32)
        numpy_ops.linear_apply(np.ascontiguousarray(inputs[:, head]), matrix, product, parts)
        result[:, head] = product


def _take_head_columns(op: Op, batch: TokenBatch) -> None:
    x, out = arrays(op, batch)
    offset, width = int(op.attrs["offset"]), int(op.attrs["width"])
    heads = x.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1)
    out.reshape(batch.n_tokens, -1, width)[...] = heads[:, :, offset : offset + width]


def _join_heads(op: Op, batch: TokenBatch) -> None:
    a, b, out = (
        each.reshape(batch.n_tokens, int(op.attrs["n_heads"]), -1) for each in arrays(op, batch)
    )
    np.concatenate([a, b], axis=2, out=out)


OPS: Mapping[str, Callable[[Op, TokenBatch], None]] = {
    "embed": _embed,
    "rms_norm": _rms_norm,
    "head_norm": _head_norm,
    "bias": _bias,
    "linear": _linear,
    "rope": _rope,
    "conv": recurrent.conv,
    "delta_rule": recurrent.delta_rule,
    "ssm_scan": recurrent.ssm_scan,
    "selective_scan": recurrent.selective_scan,
    "l2_norm": recurrent.l2_norm,
    "log_decay": recurrent.log_decay,
    "group_norm": recurrent.group_norm,
    "kv_append": _kv_append,
    "latent_append": _latent_append,
    "attention": _attention,
    "index_append": sparse.index_append,
    "index_select": sparse.index_select,
    "sparse_attention": sparse.sparse_attention,
    "block_mean": blocks.block_mean,
    "choose_blocks": blocks.choose_blocks,
    "block_attention": blocks.block_attention,
    "pool_groups": groups.pool_groups,
    "group_append": groups.group_append,
    "group_attention": groups.group_attention,
    "sparse_group_attention": groups.group_attention,
    "swiglu": _swiglu,
    "geglu": _geglu,
    "softcap": _softcap,
    "route": experts.route,
    "route_to": experts.route_to,
    "expert_linear": experts.expert_linear,
    "expert_sum": experts.expert_sum,
    "add": _add,
    "head_linear": _head_linear,
    "take_head_columns": _take_head_columns,
    "join_heads": _join_heads,
    "expert_bias": experts.expert_bias,
    "expert_scale": experts.expert_scale,
    "scale_shares": experts.scale_shares,
    "sigmoid": _sigmoid,
    "softplus": _softplus,
    "relu_squared": _relu_squared,
    "swiglu_oai": _swiglu_oai,
    "scale": _scale,
    "scale_rows": _scale_rows,
    "clamp": _clamp,
    "layer_norm": _layer_norm,
    "residual_attention": _residual_attention,
    "quantized_norm": _rms_norm,  # exact, as linear is
    "linear_many": _linear_many,
    "linear_add": _linear_add,
    "glu_linear": _glu_linear,
    "rope_append": _rope_append,
    "mix_streams": _mix_streams,
    "hyper_factors": _hyper_factors,
    "hyper_mix": _hyper_mix,
    "add_to_streams": _add_to_streams,
    "match_rms": _match_rms,
    "stream_products": _stream_products,
    "signed_root": _signed_root,
    "keep_above": _keep_above,
    "multiply": _multiply,
    "silu": _silu,
    "gelu": _gelu,
    "gelu_erf": _gelu_erf,
    "xielu": _xielu,
    "round_q8": _round_q8,
    "merge_add": _merge_add,
    "take_columns": _take_columns,
    "layer_columns": _layer_columns,
    "put_columns": _put_columns,
}
