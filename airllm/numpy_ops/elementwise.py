"""Row-wise and element-wise operations, computed in float64 and rounded once.

Results that depend on a NaN are NaN. An infinity gives the limit of the formula.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.checks import Float32

Float64 = NDArray[np.float64]

_quiet = np.errstate(all="ignore")


@_quiet
def rms_norm(
    x: Float32, weight: Float32, eps: float = 1e-6, *, out: Float32 | None = None
) -> Float32:
    """x * weight / sqrt(mean(x^2) + eps), the mean over the last axis (arXiv:1910.07467).

    x: float32 [..., n]; weight: float32 [n]; eps: a number, at least 0.
    out: float32 [..., n], may be x. Returns out.
    """
    x = checks.float32("rms_norm", "x", x)
    weight = checks.float32("rms_norm", "weight", weight)
    checks.shape("rms_norm", "weight", weight, x.shape[-1:], "one weight for each feature of x")
    eps = checks.number("rms_norm", "eps", eps, minimum=0.0, inclusive=True)
    out = checks.output("rms_norm", out, x.shape, {"x": x, "weight": weight}, in_place=["x"])
    if x.size:  # NumPy warns of the mean of an empty row
        wide = x.astype(np.float64)
        mean_square = np.mean(wide * wide, axis=-1, keepdims=True)
        out[...] = wide / np.sqrt(mean_square + eps) * weight
    return out


@_quiet
def silu(x: Float32, *, out: Float32 | None = None) -> Float32:
    """x * sigmoid(x).

    x: float32 [...]; out: float32 [...], may be x. Returns out.
    """
    x = checks.float32("silu", "x", x)
    out = checks.output("silu", out, x.shape, {"x": x}, in_place=["x"])
    if x.size:
        out[...] = _silu(x)
    return out


@_quiet
def swiglu(gate: Float32, up: Float32, *, out: Float32 | None = None) -> Float32:
    """silu(gate) * up (arXiv:2002.05202).

    gate, up: float32 [...] of one shape; out: float32 [...], may be gate or up. Returns out.
    """
    gate = checks.float32("swiglu", "gate", gate)
    up = checks.float32("swiglu", "up", up)
    checks.shape("swiglu", "up", up, gate.shape, "the shape of gate")
    inputs = {"gate": gate, "up": up}
    out = checks.output("swiglu", out, gate.shape, inputs, in_place=["gate", "up"])
    if gate.size:
        out[...] = _silu(gate) * up
    return out


@_quiet
def gelu(x: Float32, approximate: str = "tanh", *, out: Float32 | None = None) -> Float32:
    """x * Phi(x), Phi the normal distribution's cumulative function (arXiv:1606.08415).

    x: float32 [...]; out: float32 [...], may be x. Returns out.
    approximate: "tanh", the paper's approximation, or "none", by erf.
    """
    x = checks.float32("gelu", "x", x)
    checks.choice("gelu", "approximate", approximate, ["tanh", "none"])
    out = checks.output("gelu", out, x.shape, {"x": x}, in_place=["x"])
    if not x.size:
        return out
    wide = x.astype(np.float64)
    if approximate == "tanh":
        # (1 + tanh(u)) / 2 is sigmoid(2u), which does not cancel for negative u.
        u = math.sqrt(2.0 / math.pi) * (wide + 0.044715 * wide**3)
        out[...] = _bounded(wide) / (1.0 + np.exp(-2.0 * u))
    else:
        # (1 + erf(z)) / 2 is erfc(-z) / 2, which does not cancel for negative z.
        out[...] = _bounded(wide) * 0.5 * _erfc(-wide * math.sqrt(0.5))
    return out


@_quiet
def softmax(x: Float32, *, out: Float32 | None = None) -> Float32:
    """exp(x) / sum(exp(x)) over the last axis, computed from x - max(x) so that nothing overflows.

    A row with only -inf gives zeros: a query that sees no key. A row with NaN or +inf gives NaN.
    x: float32 [..., n]; out: float32 [..., n], may be x. Returns out.
    """
    x = checks.float32("softmax", "x", x)
    out = checks.output("softmax", out, x.shape, {"x": x}, in_place=["x"])
    if x.size:
        out[...] = softmax_rows(x.astype(np.float64))
    return out


def softmax_rows(x: NDArray[Any]) -> NDArray[Any]:
    """softmax over a non-empty last axis, in the precision of x, without checks."""
    top = np.max(x, axis=-1, keepdims=True)
    e = np.exp(x - np.where(top == -np.inf, 0.0, top).astype(x.dtype))
    total = np.sum(e, axis=-1, keepdims=True)
    return np.asarray(e / np.where(total == 0.0, 1.0, total).astype(x.dtype))


def softplus_apply(x: Float32) -> Float32:
    """log(1 + exp(x))"""
    with np.errstate(all="ignore"):
        # exp(-|x|) cannot overflow, and log1p keeps the digits of small results.
        positive: Float32 = np.maximum(x, 0) + np.log1p(np.exp(-np.abs(x)))
    return positive


def sigmoid_apply(x: NDArray[Any]) -> Float64:
    """1 / (1 + exp(-x)) of any array, in float64, without checks."""
    return np.asarray(1.0 / (1.0 + np.exp(-x.astype(np.float64))))


def _silu(x: Float32) -> Float64:
    wide = x.astype(np.float64)
    return np.asarray(_bounded(wide) / (1.0 + np.exp(-wide)))


def _bounded(x: Float64) -> Float64:
    # -inf * 0 would be NaN where the limit is 0; the largest float32 is 3.4e38.
    return np.asarray(np.maximum(x, -1e39))


def _erfc(x: Float64) -> Float64:
    # NumPy has no erfc; math.erfc costs about 0.1 us for each element. Results are objects of
    # Python at first, which take 40 bytes each: there are a few of them at a time.
    erfc, at_once = np.frompyfunc(math.erfc, 1, 1), 1 << 12
    found = np.empty(x.shape)
    flat, results = x.reshape(-1), found.reshape(-1)
    for first in range(0, x.size, at_once):
        results[first : first + at_once] = erfc(flat[first : first + at_once])
    return found
