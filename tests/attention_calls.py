"""Calls of attention, and what each is checked against: float64, within the bounds of kernels.h.

|error| <= (4e-6 + 1.2e-7 S) max|v| of out and 4e-7 (8 + S) of lse, S the largest |scale * q k|,
before it is capped. lse counts the sinks, too, so that its S does.
"""

import math

import numpy as np
import reference
from arrays import normal
from bounds import check

INFINITY = math.inf


def inputs(n_q, n_kv, n_heads, n_kv_heads, head_dim, kv_type="float32", seed=0):
    q = normal((n_q, n_heads, head_dim), seed)
    shape = (n_kv_heads, n_kv, head_dim)
    return q, cache(shape, kv_type, seed + 1), cache(shape, kv_type, seed + 2)


def cache(shape, kv_type, seed):
    """Keys or values about as large as 1; of Q8_0 every code, and scales of either sign."""
    if kv_type != "q8_0":
        return normal(shape, seed).astype(kv_type)
    n_kv_heads, n_kv, head_dim = shape
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (n_kv_heads, n_kv, head_dim // 32, 34), dtype=np.uint8)
    scales = random.normal(0.0, 1 / 74, (n_kv_heads, n_kv, head_dim // 32, 1))
    blocks[..., :2] = scales.astype("<f2").view(np.uint8)
    return blocks.reshape(n_kv_heads, n_kv, head_dim // 32 * 34)


def widened(rows):
    """Keys or values in float64. uint8 is Q8_0: blocks of a float16 scale and 32 int8."""
    if rows.dtype != np.uint8:
        return rows.astype(np.float64)
    blocks = rows.reshape(-1, 34)
    scales = blocks[:, :2].copy().view("<f2").astype(np.float64)
    return (scales * blocks[:, 2:].view(np.int8)).reshape(*rows.shape[:2], rows.shape[2] // 34 * 32)


def largest_score(q, k, scale):
    """max |scale * q k|, of masked pairs, too."""
    n_q, n_heads, head_dim = q.shape
    groups = q.reshape(n_q, k.shape[0], n_heads // max(k.shape[0], 1), head_dim)
    scores = np.einsum("thgd,hjd->thgj", groups.astype(np.float64), k)
    return np.abs(scale * scores).max(initial=0.0)


def check_attention(result, q, k, v, *, scale=None, cu_seqlens=None, **options):
    """result: out, or (out, lse)."""
    k, v = widened(k), widened(v)
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    exact_out, exact_lse = reference.attention(q, k, v, scale, cu_seqlens=cu_seqlens, **options)
    s = largest_score(q, k, scale)
    out, lse = result if isinstance(result, tuple) else (result, None)
    check(out, exact_out, (4e-6 + 1.2e-7 * s) * np.abs(v).max(initial=0.0), "out")
    if lse is not None:
        sinks = options.get("sinks")
        if sinks is not None:
            s = np.abs(sinks[np.isfinite(sinks)]).max(initial=s)
        check(lse, exact_lse, 4e-7 * (8 + s), "lse")


def attend(ops, q, k, v, *, cu_seqlens=None, return_lse=True, **options):
    """out of a call whose out and lse are checked; cu_seqlens: (that of q, that of k) or None."""
    given = options
    if cu_seqlens is not None:
        ends_q, ends_k = (np.array(ends, np.int32) for ends in cu_seqlens)
        given = options | {"cu_seqlens_q": ends_q, "cu_seqlens_k": ends_k}
    result = ops.attention(q, k, v, return_lse=return_lse, **given)
    assert isinstance(result, tuple) == return_lse
    check_attention(result, q, k, v, cu_seqlens=cu_seqlens, **options)
    return result[0] if return_lse else result


def cumulative(lengths):
    return [0, *np.cumsum(lengths).tolist()]


def sinks_of(n_heads, seed=7):
    """One sink for each head: small ones, every third -inf."""
    sinks = normal(n_heads, seed)
    sinks[2::3] = -INFINITY
    return sinks
