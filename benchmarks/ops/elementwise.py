"""Row-wise and elementwise operations."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import limits
from common.contest import Case, Contender, Form, Work
from common.extension import cpp
from numpy.typing import NDArray

from airllm import numpy_ops
from ops import FLOAT_TOLERANCE, Participants, rng

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

EPS = 1e-5
GELU = math.sqrt(2 / math.pi)
POOL = 1 << 14  # distinct values, if the exact result needs a call of Python for each

# Larger arrays do not fit into the caches; their limit is memory.
CACHED_BYTES = 8 << 20


def rms_norm(p: Participants, rows: int, n: int) -> Case:
    x, y = _arrays(rows, n, 2)
    weight = rng().uniform(0.5, 1.5, n).astype(np.float32)
    wide = x.astype(np.float64)
    exact = wide * weight / np.sqrt(np.mean(wide * wide, axis=-1, keepdims=True) + EPS)

    def by_numpy() -> Float32:
        mean = np.einsum("ij,ij->i", x, x)[:, None] / np.float32(n)
        np.multiply(x, 1 / np.sqrt(mean + np.float32(EPS)), out=y)
        return np.multiply(y, weight, out=y)

    def by_torch(torch: Any) -> list[Form]:
        a, w = torch.from_numpy(x), torch.from_numpy(weight)
        return [(partial(torch.nn.functional.rms_norm, a, (n,), w, EPS),)]  # rms_norm has no out=

    ours = partial(cpp.rms_norm, x, weight, EPS, out=np.empty_like(x))
    return _case(p, exact, ours, by_numpy, by_torch, arrays=2, flops=4)


def silu(p: Participants, rows: int, n: int) -> Case:
    x, y = _arrays(rows, n, 2)

    def by_torch(torch: Any) -> list[Form]:
        a, out = torch.from_numpy(x), torch.empty(rows, n)
        return [(partial(torch._C._nn.silu, a, out=out),), (partial(torch._C._nn.silu, a),)]

    ours = partial(cpp.silu, x, out=np.empty_like(x))
    by_numpy = partial(_numpy_silu, x, y)
    return _case(p, _exact_silu(x), ours, by_numpy, by_torch, arrays=2, flops=4)


def gelu_tanh(p: Participants, rows: int, n: int) -> Case:
    x, y = _arrays(rows, n, 2)
    wide = x.astype(np.float64)
    exact = 0.5 * wide * (1 + np.tanh(GELU * (wide + 0.044715 * wide**3)))

    def by_numpy() -> Float32:
        np.multiply(x, x, out=y)
        np.multiply(y, 0.044715 * GELU, out=y)
        np.add(y, GELU, out=y)
        np.multiply(y, x, out=y)
        np.tanh(y, out=y)
        np.add(y, 1, out=y)
        np.multiply(y, x, out=y)
        return np.multiply(y, 0.5, out=y)

    ours = partial(cpp.gelu, x, "tanh", out=np.empty_like(x))
    by_torch = partial(_torch_gelu, x, "tanh")
    return _case(p, exact, ours, by_numpy, by_torch, arrays=2, flops=8)


def gelu_erf(p: Participants, rows: int, n: int) -> Case:
    # NumPy has no erf, and Python's takes one number at a time, so there are few distinct numbers.
    pool = (2 * rng().standard_normal(POOL)).astype(np.float32)
    which = rng().integers(POOL, size=(rows, n))
    x, y = pool[which], np.empty((rows, n), np.float32)
    exact = np.array([v * 0.5 * math.erfc(-v / math.sqrt(2)) for v in pool.tolist()])[which]

    ours = partial(cpp.gelu, x, "none", out=np.empty_like(x))
    by_numpy = partial(numpy_ops.gelu, x, "none", out=y)
    by_torch = partial(_torch_gelu, x, "none")
    return _case(p, exact, ours, by_numpy, by_torch, arrays=2, flops=8)


def softmax(p: Participants, rows: int, n: int) -> Case:
    x, y = _arrays(rows, n, 2)
    exponentials = np.exp(x.astype(np.float64))
    exact = exponentials / exponentials.sum(axis=-1, keepdims=True)

    def by_numpy() -> Float32:
        np.subtract(x, np.max(x, axis=-1, keepdims=True), out=y)
        np.exp(y, out=y)
        np.divide(y, np.sum(y, axis=-1, keepdims=True), out=y)
        return y

    def by_torch(torch: Any) -> list[Form]:
        a, out = torch.from_numpy(x), torch.empty(rows, n)
        return [(partial(torch.softmax, a, -1, out=out),), (partial(torch.softmax, a, -1),)]

    ours = partial(cpp.softmax, x, out=np.empty_like(x))
    return _case(p, exact, ours, by_numpy, by_torch, arrays=2, flops=5)


def swiglu(p: Participants, rows: int, n: int) -> Case:
    gate, up, y = _arrays(rows, n, 3)
    exact = _exact_silu(gate) * up

    def by_numpy() -> Float32:
        _numpy_silu(gate, y)
        return np.multiply(y, up, out=y)

    def by_torch(torch: Any) -> list[Form]:
        a, b, out = torch.from_numpy(gate), torch.from_numpy(up), torch.empty(rows, n)
        silu_of = torch._C._nn.silu
        reused: Form = (lambda: torch.mul(silu_of(a, out=out), b, out=out),)
        return [reused, (lambda: silu_of(a) * b,)]

    ours = partial(cpp.swiglu, gate, up, out=np.empty_like(gate))
    return _case(p, exact, ours, by_numpy, by_torch, arrays=3, flops=5)


def rope(p: Participants, rows: int, n_heads: int, head_dim: int) -> Case:
    """Feature i of a head pairs with i + head_dim / 2; positions begin at 1000."""
    half = head_dim // 2
    x, y = (a.reshape(rows, n_heads, head_dim) for a in _arrays(rows, n_heads * head_dim, 2))
    positions = np.arange(1000, 1000 + rows, dtype=np.int32)
    frequencies = 10000.0 ** (-np.arange(half) / half)
    exact = np.empty(x.shape)
    _turn(x, positions[:, None] * frequencies, exact)

    def by_numpy() -> Float32:
        _turn(x, positions[:, None] * frequencies, y)
        return y

    ours = partial(cpp.rope, x, positions, out=np.empty_like(x))
    return _case(p, exact, ours, by_numpy, None, arrays=2, flops=3)


def _turn(x: Float32, angles: Float64, out: NDArray[Any]) -> None:
    """angles: [rows, head_dim / 2]."""
    half = angles.shape[1]
    cos = np.cos(angles).astype(out.dtype)[:, None, :]
    sin = np.sin(angles).astype(out.dtype)[:, None, :]
    a, b = x[..., :half], x[..., half:]
    np.subtract(a * cos, b * sin, out=out[..., :half])
    np.add(a * sin, b * cos, out=out[..., half:])


def _exact_silu(x: Float32) -> Float64:
    wide = x.astype(np.float64)
    return np.asarray(wide / (1 + np.exp(-wide)))


def _numpy_silu(x: Float32, y: Float32) -> Float32:
    np.negative(x, out=y)
    np.exp(y, out=y)
    np.add(y, 1, out=y)
    return np.divide(x, y, out=y)


def _torch_gelu(x: Float32, approximate: str, torch: Any) -> list[Form]:
    a, out = torch.from_numpy(x), torch.empty(x.shape)
    gelu = partial(torch._C._nn.gelu, a, approximate=approximate)
    return [(partial(gelu, out=out),), (gelu,)]


def _arrays(rows: int, n: int, count: int) -> list[Float32]:
    """Values of twice the normal distribution, to cover the tails of the functions."""
    generator = rng()
    return [2 * generator.standard_normal((rows, n), np.float32) for _ in range(count)]


def _case(
    p: Participants,
    exact: Float64,
    ours: Callable[[], object],
    by_numpy: Callable[[], object],
    by_torch: Callable[[Any], list[Form]] | None,
    *,
    arrays: int,
    flops: int,
) -> Case:
    """arrays: the number that is read or written; flops: for each element, roughly."""
    contenders = list(p.cpp(lambda: (ours,), FLOAT_TOLERANCE))
    if p.numpy:
        contenders.append(Contender("numpy", ((by_numpy,),), FLOAT_TOLERANCE))
    if p.torch is not None and by_torch is not None:
        contenders.append(Contender("torch", tuple(by_torch(p.torch)), FLOAT_TOLERANCE))
    nbytes = arrays * 4 * exact.size
    limit: limits.Name | None = "copy" if nbytes > CACHED_BYTES else None
    return Case(exact, tuple(contenders), Work(limit, nbytes, nbytes, flops * exact.size))
