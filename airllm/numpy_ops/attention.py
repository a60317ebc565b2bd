"""Scaled dot-product attention (Vaswani et al. 2017, arXiv:1706.03762) and its variants in models:

grouped queries (arXiv:2305.13245), a sliding window (arXiv:2004.05150), chunks, capped scores
(arXiv:2408.00118), attention sinks (arXiv:2508.10925) and sequences laid end to end.
"""

from itertools import pairwise
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.blocks import BLOCK
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.quants import decode, row_bytes

# Bytes of the scores of a block of queries. A block has as many queries as fit, at least one.
_SCORES_BYTES = 4 << 20

Cache = NDArray[np.float32] | NDArray[np.float16] | NDArray[np.uint8]
Int32 = NDArray[np.int32]


@overload
def attention(
    q: Float32,
    k: Cache,
    v: Cache,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Float32 | None = None,
    cu_seqlens_q: Int32 | None = None,
    cu_seqlens_k: Int32 | None = None,
    return_lse: Literal[False] = False,
    out: Float32 | None = None,
) -> Float32: ...
@overload
def attention(
    q: Float32,
    k: Cache,
    v: Cache,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Float32 | None = None,
    cu_seqlens_q: Int32 | None = None,
    cu_seqlens_k: Int32 | None = None,
    return_lse: Literal[True],
    out: Float32 | None = None,
) -> tuple[Float32, Float32]: ...
def attention(
    q: Float32,
    k: Cache,
    v: Cache,
    *,
    scale: float | None = None,
    causal: bool = True,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Float32 | None = None,
    cu_seqlens_q: Int32 | None = None,
    cu_seqlens_k: Int32 | None = None,
    return_lse: bool = False,
    out: Float32 | None = None,
) -> Float32 | tuple[Float32, Float32]:
    """softmax(q @ k.T * scale) @ v for each head; heads share keys and values in groups.

    q: float32 [n_q, n_heads, head_dim]; the C++ extension takes head_dim up to 576.
    k, v: [n_kv_heads, n_kv, head_dim], like the KV cache, both float32 or both float16; or both
        uint8 [n_kv_heads, n_kv, head_dim / 32 * 34], rows of GGML's Q8_0 (blocks of a float16
        scale and 32 int8) as quantize(x, "q8_0") writes them. n_heads is a multiple of n_kv_heads,
        and query head h reads key head h // (n_heads / n_kv_heads).
    scale: head_dim ** -0.5 if None.
    causal: the queries are the last n_q of the n_kv positions, so query t stands at position
        p = n_kv - n_q + t and sees the keys 0 to p.
    window: positions, at least 1. A query sees only the keys p - window + 1 to p; without causal,
        those above p - window and below p + window. max(n_q, n_kv) or more hides nothing.
    chunked: a query sees its own chunk of `window` positions instead, from the last multiple of
        window up to p; without causal, up to the chunk's end.
    softcap: above 0; a score s = q @ k * scale becomes softcap * tanh(s / softcap).
    sinks: float32 [n_heads], finite or -inf: one more score for each head, neither scaled nor
        capped. It has no value, so it only adds to the softmax's denominator.
    cu_seqlens_q, cu_seqlens_k: int32 [n_sequences + 1], both or neither, never falling, from 0 to
        n_q and from 0 to n_kv. Sequence i has the queries cu_seqlens_q[i] to
        cu_seqlens_q[i + 1] - 1, and likewise the keys. A sequence attends only to itself, and its
        positions begin at 0.
    return_lse: also return the logarithm of the softmax's denominator, sinks included, float32
        [n_q, n_heads] (natural logarithm, of scores as capped).
    out: float32 [n_q, n_heads, head_dim], none of the inputs. Returns out, or (out, lse).

    A query that sees no key gives zeros; its lse is its head's sink, or -inf without sinks. Values
    must be finite: a masked value has weight 0, and 0 * inf is NaN. A wrong dtype is a TypeError, a
    wrong shape or number a ValueError.

    With S the largest |q @ k * scale|, the error of out is at most (4e-6 + 1.2e-7 S) * max|v|; that
    of lse 4e-7 * (8 + S), where S includes the finite sinks. This implementation holds all scores
    of a block of queries in memory. The extension holds only a tile of them, with the online
    softmax of Milakov and Gimelshein 2018 (arXiv:1805.02867).
    """
    op = "attention"
    q = checks.float32(op, "q", q)
    k, v = _keys_and_values(q, k, v)
    n_q, n_heads, head_dim = q.shape
    n_kv = k.shape[1]
    if scale is None:
        scale = max(head_dim, 1) ** -0.5
    scale = checks.number(op, "scale", scale, minimum=-np.inf, inclusive=False)
    causal = checks.flag(op, "causal", causal)
    if window is not None:
        # A window of n_q + n_kv hides nothing. A larger one could overflow the int64 positions.
        otherwise = ", or None for no window"
        window = checks.count("attention", "window", window, minimum=1, otherwise=otherwise)
        window = min(window, n_q + n_kv)
    chunked = checks.flag(op, "chunked", chunked)
    if chunked and window is None:
        raise ValueError(
            "attention: chunked is True, and window is None; expected a window, the positions of a "
            "chunk."
        )
    if softcap is not None:
        softcap = _softcap(softcap)
    inputs: dict[str, NDArray[Any]] = {"q": q, "k": k, "v": v}
    if sinks is not None:
        inputs["sinks"] = sinks = _sinks(sinks, n_heads)
    ends_q, ends_k = [0, n_q], [0, n_kv]
    if cu_seqlens_q is not None or cu_seqlens_k is not None:
        cu_seqlens_q = _cu_seqlens("cu_seqlens_q", cu_seqlens_q, "cu_seqlens_k")
        cu_seqlens_k = _cu_seqlens("cu_seqlens_k", cu_seqlens_k, "cu_seqlens_q")
        checks.shape(op, "cu_seqlens_k", cu_seqlens_k, cu_seqlens_q.shape, "that of cu_seqlens_q")
        ends_q = _ends("cu_seqlens_q", cu_seqlens_q, n_q, "the n_q of q")
        ends_k = _ends("cu_seqlens_k", cu_seqlens_k, n_kv, "the n_kv of k")
        inputs |= {"cu_seqlens_q": cu_seqlens_q, "cu_seqlens_k": cu_seqlens_k}
    return_lse = checks.flag(op, "return_lse", return_lse)
    out = checks.output(op, out, q.shape, inputs)
    lse = np.empty((n_q, n_heads), np.float32) if return_lse else None
    if not out.size and lse is None:
        return out
    for (q0, q1), (k0, k1) in zip(pairwise(ends_q), pairwise(ends_k), strict=True):
        attention_apply(
            q[q0:q1],
            k[:, k0:k1],
            v[:, k0:k1],
            scale,
            causal,
            out[q0:q1],
            window=window,
            chunked=chunked,
            softcap=softcap,
            sinks=sinks,
            lse=None if lse is None else lse[q0:q1],
        )
    return out if lse is None else (out, lse)


@np.errstate(all="ignore")
def attention_apply(
    q: Float32,
    k: Cache,
    v: Cache,
    scale: float,
    causal: bool,
    out: Float32,
    *,
    window: int | None = None,
    chunked: bool = False,
    softcap: float | None = None,
    sinks: Float32 | None = None,
    slopes: Float32 | None = None,
    lse: Float32 | None = None,
) -> None:
    """Attention of one sequence, without checks. Writes to out, and to lse unless it is None.

    k and v may be strided: views of a larger cache. v's heads, and those of out, may have another
    width than q's and k's. slopes: [n_heads], which times (position - query's) are added to scores.
    """
    n_q, n_heads, head_dim = q.shape
    n_kv_heads, n_kv, _ = k.shape
    if n_q == 0 or n_heads == 0 or head_dim == 0:
        if lse is not None:
            lse[...] = _lse_without_features(n_q, n_kv, causal, window, chunked, sinks)
        return
    group = n_heads // max(n_kv_heads, 1)
    step = _queries_at_once(group, n_kv)
    for head in range(n_kv_heads):
        heads = slice(head * group, (head + 1) * group)
        keys, values = widened(k[head]), widened(v[head])  # [n_kv, head_dim], [n_kv, value_dim]
        sink = np.full(group, -np.inf, np.float32) if sinks is None else sinks[heads]
        for start in range(0, n_q, step):
            rows = slice(start, min(start + step, n_q))
            n_rows = rows.stop - rows.start
            queries = q[rows, heads].reshape(n_rows * group, head_dim)
            scores = (queries @ keys.T).reshape(n_rows, group, n_kv)
            scores *= np.float32(scale)
            if softcap is not None:
                cap = np.float32(softcap)
                scores /= cap
                np.tanh(scores, out=scores)
                scores *= cap
            positions = np.arange(rows.start, rows.stop) + (n_kv - n_q)
            if slopes is not None:
                distances = np.arange(n_kv, dtype=np.float32) - positions[:, np.newaxis]
                for index, slope in enumerate(slopes[heads]):
                    scores[:, index] += slope * distances  # [n_rows, n_kv]
            hidden = _seen(positions, n_kv, causal, window, chunked)
            np.logical_not(hidden, out=hidden)
            np.copyto(scores, -np.inf, where=hidden[:, np.newaxis])
            weights, log_total = _softmax(scores, sink)
            weighted = weights.reshape(n_rows * group, n_kv) @ values
            out[rows, heads] = weighted.reshape(n_rows, group, -1)
            if lse is not None:
                lse[rows, heads] = log_total
            del queries, scores, weights, weighted  # before the next block takes as much


def _queries_at_once(group: int, n_kv: int) -> int:
    """The queries of a block: for each one the scores of `group` heads."""
    return max(1, _SCORES_BYTES // (4 * max(group * n_kv, 1)))


def scores_bytes(n_q: int, group: int, n_kv: int, widths: int) -> int:
    """Bytes of a block's scores, what is hidden of them, queries and results, for n_q queries.
    widths: head_dim and value_dim together."""
    n_rows = min(n_q, _queries_at_once(group, n_kv))
    return n_rows * (4 * group * n_kv + 3 * n_kv + 4 * group * widths)


def alibi_slopes(n_heads: int, largest: float) -> Float32:
    """The slopes of linear biases (ALiBi, arXiv:2108.12409), [n_heads]. Of 2^m heads, head h has
    2^(-largest (h + 1) / 2^m); of others the first 2^m have those of 2^m heads, and the rest every
    other one of those of 2^(m + 1)."""
    power = 2 ** (n_heads.bit_length() - 1)
    first = np.arange(1, power + 1) / power
    rest = np.arange(1, 2 * (n_heads - power), 2) / (2 * power)
    return np.exp2(-largest * np.concatenate([first, rest])).astype(np.float32)


def _lse_without_features(
    n_q: int,
    n_kv: int,
    causal: bool,
    window: int | None,
    chunked: bool,
    sinks: Float32 | None,
) -> NDArray[np.float64]:
    """lse for a head_dim of 0, with which every score is 0: float64 [n_q, n_heads or 1].

    Keys without features take no memory and can have any number of positions, so this counts the
    visible positions without a loop over them.
    """
    positions = np.arange(n_q) + (n_kv - n_q)
    begin, end = np.zeros(n_q, np.int64), np.full(n_q, n_kv)
    if window is not None and chunked:
        begin = positions - positions % window
        end = begin + window
    elif window is not None:
        begin, end = positions - window + 1, positions + window
    if causal:
        end = positions + 1
    seen = np.maximum(np.minimum(end, n_kv) - np.maximum(begin, 0), 0)
    sink = np.array([-np.inf]) if sinks is None else sinks.astype(np.float64)
    return np.asarray(np.logaddexp(np.log(seen)[:, np.newaxis], sink))


def widened(rows: Cache) -> Float32:
    """Rows of keys or values as float32, which holds the values of all three types exactly."""
    if rows.dtype == np.uint8:
        return decode(rows.view(np.uint8), "q8_0")
    return rows.astype(np.float32, copy=False)


def _seen(
    positions: NDArray[np.int64], n_kv: int, causal: bool, window: int | None, chunked: bool
) -> NDArray[np.bool_]:
    """Whether the queries at `positions` see the keys 0 to n_kv - 1: [n_rows, n_kv]."""
    keys, own = np.arange(n_kv), positions[:, np.newaxis]
    seen = keys <= own if causal else np.ones((len(positions), n_kv), np.bool_)
    if window is not None:
        if chunked:
            seen &= keys // window == own // window
        else:
            seen &= keys > own - window
            seen &= keys < own + window
    return seen


def _softmax(scores: Float32, sink: Float32) -> tuple[Float32, NDArray[np.float64]]:
    """The weights exp(score) / total, written over the scores, and log(total).

    scores: [n_rows, group, n_kv]; sink: [group], whose exp is part of the total; log(total):
    [n_rows, group]. If all scores and the sink are -inf, log(total) is -inf and the weights are 0.
    """
    top = np.maximum(np.max(scores, axis=-1, initial=-np.inf), sink)
    top = np.where(top == -np.inf, np.float32(0), top)
    scores -= top[..., np.newaxis]
    weights = np.exp(scores, out=scores)
    total = np.sum(weights, axis=-1) + np.exp(sink - top)
    weights /= np.where(total == 0, np.float32(1), total)[..., np.newaxis]
    return weights, top + np.log(total.astype(np.float64))


# ---- checks of the arguments ---------------------------------------------------------------------


def _keys_and_values(q: Float32, k: object, v: object) -> tuple[NDArray[Any], NDArray[Any]]:
    """k and v as arrays, after a check that they match each other and q."""
    op, dtypes = "attention", ["float32", "float16", "uint8"]
    keys = checks.array(op, "k", k, dtypes)
    values = checks.array(op, "v", v, dtypes)
    if values.dtype != keys.dtype:
        advice = f"v.astype(np.{keys.dtype.name})"
        if keys.dtype == np.uint8:
            advice = 'quantize(v, "q8_0")'
        elif values.dtype == np.uint8:
            advice = 'dequantize(v, "q8_0")'
        raise TypeError(
            f"{op}: v is {values.dtype.name}; expected {keys.dtype.name}, as k is. "
            f"Convert with {advice}."
        )
    checks.axes(op, "q", q, "[n_q, n_heads, head_dim]")
    checks.axes(op, "k", keys, "[n_kv_heads, n_kv, head_dim]")
    checks.shape(op, "v", values, keys.shape, "the shape of k")
    _, n_heads, head_dim = q.shape
    n_kv_heads, _, n_columns = keys.shape
    expected, rows = head_dim, ""
    if keys.dtype == np.uint8:
        if head_dim % BLOCK:
            raise ValueError(
                f"{op}: q has head_dim {head_dim}; expected a multiple of {BLOCK}, the block of "
                "Q8_0, as k is uint8. Pass k and v as float32 or float16."
            )
        expected, rows = row_bytes("q8_0", head_dim), ", rows of Q8_0"
    if n_columns != expected:
        raise ValueError(
            f"{op}: k has shape {keys.shape}; expected [n_kv_heads, n_kv, {expected}]{rows}, as q "
            f"has head_dim {head_dim} (shape {q.shape})."
        )
    if n_heads % n_kv_heads if n_kv_heads else n_heads:
        raise ValueError(
            f"{op}: k has {n_kv_heads} heads (shape {keys.shape}); expected a number that "
            f"divides q's {n_heads}."
        )
    return keys, values


def _softcap(softcap: object) -> float:
    value = checks.number("attention", "softcap", softcap, minimum=0.0, inclusive=False)
    limits = np.finfo(np.float32)
    if not float(limits.smallest_normal) <= value <= float(limits.max):
        raise ValueError(
            f"attention: softcap is {value}; expected 1.2e-38 to 3.4e+38, float32's range. "
            "Pass None for scores without a cap."
        )
    return value


def _sinks(sinks: object, n_heads: int) -> Float32:
    checked = checks.float32("attention", "sinks", sinks)
    checks.shape("attention", "sinks", checked, (n_heads,), "one sink for each head of q")
    for head, sink in enumerate(checked):
        if not sink < np.inf:
            raise ValueError(
                f"attention: sinks[{head}] is {sink}; expected a finite number, or -inf for a head "
                "without a sink."
            )
    return checked


def _cu_seqlens(name: str, value: object, other: str) -> Int32:
    if value is None:
        raise TypeError(
            f"attention: {name} is None; expected a numpy array of int32, as {other} is given. "
            "Pass both or neither."
        )
    array = checks.array("attention", name, value, ["int32"])
    checks.axes("attention", name, array, "[n_sequences + 1]")
    return array


def _ends(name: str, cu_seqlens: Int32, n: int, what: str) -> list[int]:
    """cu_seqlens as a list, after a check that it divides n positions.

    what: names n in messages, such as "the n_q of q".
    """
    advice = f"Make {name} with np.cumsum([0, *lengths], dtype=np.int32)."
    if not cu_seqlens.size:
        raise ValueError(
            f"attention: {name} is empty; expected 0 and each sequence's end. {advice}"
        )
    ends = [int(end) for end in cu_seqlens]
    if ends[0] != 0:
        raise ValueError(f"attention: {name} starts with {ends[0]}; expected 0. {advice}")
    for start, end in pairwise(ends):
        if end < start:
            raise ValueError(
                f"attention: {name} falls from {start} to {end}; expected numbers that never fall. "
                f"{advice}"
            )
    if ends[-1] != n:
        raise ValueError(f"attention: {name} ends with {ends[-1]}; expected {n}, {what}. {advice}")
    return ends
