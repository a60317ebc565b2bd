"""Scaled dot-product attention (arXiv:1706.03762) with grouped queries (arXiv:2305.13245)."""

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.elementwise import softmax_rows

# Queries are taken so many at a time that their scores stay below this.
_SCORES_BYTES = 16 << 20

Cache = NDArray[np.float32] | NDArray[np.float16]


def attention(
    q: Float32,
    k: Cache,
    v: Cache,
    *,
    scale: float | None = None,
    causal: bool = True,
    out: Float32 | None = None,
) -> Float32:
    """softmax(q @ k.T * scale) @ v for each head; heads share keys and values in groups.

    q: float32 [n_q, n_heads, head_dim].
    k, v: float32 or float16, both the same, [n_kv_heads, n_kv, head_dim], as the KV cache has
        them; n_heads is a multiple of n_kv_heads, and query head h reads key head
        h // (n_heads / n_kv_heads).
    scale: head_dim ** -0.5 if None.
    causal: the queries are the last n_q of the n_kv positions, so query i sees the keys up to
        i + n_kv - n_q. A query that sees no key gives zeros.
    out: float32 [n_q, n_heads, head_dim], none of the inputs. Returns out.

    Values must be finite: a masked one counts with weight 0, and 0 * inf is NaN.
    """
    q = checks.float32("attention", "q", q)
    k = checks.array("attention", "k", k, ["float32", "float16"])
    v = checks.array("attention", "v", v, [k.dtype.name])
    checks.axes("attention", "q", q, "[n_q, n_heads, head_dim]")
    checks.axes("attention", "k", k, "[n_kv_heads, n_kv, head_dim]")
    checks.shape("attention", "v", v, k.shape, "the shape of k")
    _, n_heads, head_dim = q.shape
    if k.shape[2] != head_dim:
        raise ValueError(
            f"attention: k has shape {k.shape}; expected [n_kv_heads, n_kv, {head_dim}], as q has "
            f"head_dim {head_dim} (shape {q.shape})."
        )
    if n_heads % k.shape[0] if k.shape[0] else n_heads:
        raise ValueError(
            f"attention: k has {k.shape[0]} heads (shape {k.shape}); expected a number that "
            f"divides q's {n_heads}."
        )
    if scale is None:
        scale = max(head_dim, 1) ** -0.5
    scale = checks.number("attention", "scale", scale, minimum=-np.inf, inclusive=False)
    causal = checks.flag("attention", "causal", causal)
    out = checks.output("attention", out, q.shape, {"q": q, "k": k, "v": v})
    attention_apply(q, k, v, scale, causal, out)
    return out


@np.errstate(all="ignore")
def attention_apply(
    q: Float32, k: Cache, v: Cache, scale: float, causal: bool, out: Float32
) -> None:
    """attention without its checks; k and v may be strided, as views of a larger cache are."""
    n_q, n_heads, head_dim = q.shape
    n_kv_heads, n_kv, _ = k.shape
    if q.size == 0 or n_kv == 0:
        out[...] = 0.0
        return
    group = n_heads // n_kv_heads
    step = max(1, _SCORES_BYTES // (4 * group * n_kv))
    for head in range(n_kv_heads):
        heads = slice(head * group, (head + 1) * group)
        keys = k[head].astype(np.float32, copy=False)  # [n_kv, head_dim]
        values = v[head].astype(np.float32, copy=False)
        for start in range(0, n_q, step):
            rows = slice(start, min(start + step, n_q))
            queries = q[rows, heads].reshape(-1, head_dim)  # [n_rows * group, head_dim]
            scores = (queries @ keys.T * np.float32(scale)).reshape(-1, group, n_kv)
            if causal:
                last_seen = np.arange(rows.start, rows.stop) + (n_kv - n_q)
                masked = np.arange(n_kv) > last_seen[:, np.newaxis]  # [n_rows, n_kv]
                scores[np.broadcast_to(masked[:, np.newaxis], scores.shape)] = -np.inf
            weights = softmax_rows(scores).reshape(-1, n_kv)
            out[rows, heads] = (weights @ values).reshape(-1, group, head_dim)
