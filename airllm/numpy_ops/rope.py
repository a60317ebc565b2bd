"""Rotary position embedding (arXiv:2104.09864)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.checks import Float32


def rope(
    x: Float32,
    positions: NDArray[np.int32],
    *,
    theta: float = 10000.0,
    inv_freq: Float32 | None = None,
    interleaved: bool = False,
    out: Float32 | None = None,
) -> Float32:
    """Turn each pair of features by the angle position * inv_freq[pair].

    x: float32 [n_tokens, n_heads, head_dim]; positions: int32 [n_tokens].
    inv_freq: float32 [n_dims / 2], radians per position, n_dims <= head_dim; features from n_dims
        on are copied. Without it n_dims is head_dim, which must be even, and
        inv_freq[i] = theta ** (-2i / head_dim).
    interleaved: the pairs are (0, 1), (2, 3), ...; otherwise feature i pairs with i + n_dims / 2.
    out: float32 [n_tokens, n_heads, head_dim], may be x. Returns out.

    Angles are computed in float64, which keeps those of fast pairs accurate in a long context.
    """
    x = checks.float32("rope", "x", x)
    checks.axes("rope", "x", x, "[n_tokens, n_heads, head_dim]")
    n_tokens, n_heads, head_dim = x.shape
    positions = checks.array("rope", "positions", positions, ["int32"])
    checks.shape("rope", "positions", positions, (n_tokens,), "one position for each token of x")
    interleaved = checks.flag("rope", "interleaved", interleaved)
    inputs = {"x": x, "positions": positions}
    if inv_freq is None:
        theta = checks.number("rope", "theta", theta, minimum=0.0, inclusive=False)
        if head_dim % 2:
            raise ValueError(
                f"rope: x has head_dim {head_dim}; expected an even number, as features turn in "
                "pairs. Pass inv_freq to turn only the first of them."
            )
        frequencies: NDArray[Any] = theta ** (
            -np.arange(0, head_dim if x.size else 0, 2, dtype=np.float64) / max(head_dim, 1)
        )
    else:
        inv_freq = checks.float32("rope", "inv_freq", inv_freq)
        checks.axes("rope", "inv_freq", inv_freq, "[n_dims / 2]")
        if 2 * len(inv_freq) > head_dim:
            raise ValueError(
                f"rope: inv_freq has shape {inv_freq.shape}; expected at most "
                f"({head_dim // 2},), one for each pair of x's {head_dim} features."
            )
        inputs["inv_freq"] = inv_freq
        frequencies = inv_freq
    out = checks.output("rope", out, x.shape, inputs, in_place=["x"])
    if not x.size:
        return out
    table = rope_table(positions, frequencies)
    width = n_heads * head_dim
    flat_out = out.reshape(n_tokens, width)
    rope_apply(x.reshape(n_tokens, width), table, n_heads, head_dim, interleaved, flat_out)
    return out


def rope_table(positions: NDArray[np.integer[Any]], inv_freq: NDArray[Any]) -> Float32:
    """The cosines, then the sines, of each position's angles: float32 [n_tokens, n_dims]."""
    angles = np.multiply.outer(positions.astype(np.float64), inv_freq.astype(np.float64))
    with np.errstate(invalid="ignore"):  # the cosine of an infinite angle is NaN
        table = np.concatenate([np.cos(angles), np.sin(angles)], axis=-1)
    return table.astype(np.float32, copy=False)


def rope_apply(
    x: Float32, table: Float32, n_heads: int, head_dim: int, interleaved: bool, out: Float32
) -> None:
    """The rotation, without checks. x, out: [n_tokens, n_heads * head_dim]; out may be x.

    table: [n_tokens, n_dims], the result of `rope_table`.
    """
    n_tokens, n_dims = table.shape
    half = n_dims // 2
    # These must be views, so that the assignments below write to `out`.
    heads = x.reshape(n_tokens, n_heads, head_dim)
    result = out.reshape(n_tokens, n_heads, head_dim)
    cos, sin = table[:, np.newaxis, :half], table[:, np.newaxis, half:]
    even, odd = (
        (slice(0, n_dims, 2), slice(1, n_dims, 2))
        if interleaved
        else (slice(0, half), slice(half, n_dims))
    )
    with np.errstate(all="ignore"):
        a = heads[..., even] * cos - heads[..., odd] * sin
        b = heads[..., even] * sin + heads[..., odd] * cos
    result[..., even] = a
    result[..., odd] = b
    result[..., n_dims:] = heads[..., n_dims:]
