"""Matrix products: float32, half and quantised weights."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from common import limits, weights
from common.contest import Case, Contender, Form, Work
from common.extension import cpp
from numpy.typing import NDArray

from ops import Participants, rng

Float32 = NDArray[np.float32]
Float64 = NDArray[np.float64]

# The error of sums of thousands of float32 products is some 1e-6 of the result's norm.
FLOAT_TOLERANCE = 2e-5
# 8-bit activations have a relative error of 0.5%, at most 1%.
QUANTISED_TOLERANCE = 1e-2


def matmul(p: Participants, rows: int, k: int, n: int) -> Case:
    """x @ w, w [k, n] float32."""
    return _float_product(p, cpp.matmul, rows, (k, n), lambda w: w)


def linear(p: Participants, rows: int, n: int, k: int) -> Case:
    """x @ w.T, w [n, k] float32, as models store it."""
    return _float_product(p, cpp.linear, rows, (n, k), lambda w: w.T)


def packed_linear(p: Participants, type: str, rows: int, n: int, k: int) -> Case:
    """x @ w.T, w a PackedMatrix [n, k]. NumPy gets the same weights in float32.

    Raises ValueError for a type that is not supported (yet).
    """
    data = weights.random_rows(type, n, k, rng())
    values = weights.values(data, type)
    x = rng().standard_normal((rows, k), np.float32)
    out = np.empty((rows, n), np.float32)
    quantised = type not in weights.FLOATS
    tolerance = QUANTISED_TOLERANCE if quantised else FLOAT_TOLERANCE
    copies = p.cycles(data.nbytes) if rows == 1 else 1

    def ours() -> Form:
        packed = [cpp.PackedMatrix(data, type, (n, k)) for _ in range(copies)]
        return tuple(partial(cpp.linear, x, w, out=out) for w in packed)

    contenders = list(p.cpp(ours, tolerance))
    if p.numpy:
        w = values.astype(np.float32)
        copied = [w, *(w.copy() for _ in range(p.cycles(w.nbytes) - 1))] if rows == 1 else [w]
        contenders.append(_numpy_product(x, [w.T for w in copied]))
    limit: limits.Name = "dot" if quantised else "multiply_add"
    return Case(x @ values.T, tuple(contenders), _work(rows, n, k, data.nbytes, limit))


def _float_product(
    p: Participants,
    ours: Callable[..., object],
    rows: int,
    shape: tuple[int, int],
    as_matrix: Callable[[Any], Any],
) -> Case:
    """x @ as_matrix(w), w of that shape, with enough copies of w to exceed the caches."""
    w = rng().standard_normal(shape, np.float32)
    k, n = as_matrix(w).shape
    w *= k**-0.5
    x = np.random.default_rng(rows).standard_normal((rows, k), np.float32)
    copies = [w, *(w.copy() for _ in range(p.cycles(w.nbytes) - 1))]
    out = np.empty((rows, n), np.float32)

    form: Form = tuple(partial(ours, x, w, out=out) for w in copies)
    contenders = list(p.cpp(lambda: form, FLOAT_TOLERANCE))
    if p.numpy:
        contenders.append(_numpy_product(x, [as_matrix(w) for w in copies]))
    if p.torch is not None:
        mm, a, result = p.torch.mm, p.torch.from_numpy(x), p.torch.empty(rows, n)
        tensors = [as_matrix(p.torch.from_numpy(w)) for w in copies]
        reused: Form = tuple(partial(mm, a, w, out=result) for w in tensors)
        fresh: Form = tuple(partial(mm, a, w) for w in tensors)
        contenders.append(Contender("torch", (reused, fresh), FLOAT_TOLERANCE))
    exact = x.astype(np.float64) @ as_matrix(w).astype(np.float64)
    return Case(exact, tuple(contenders), _work(rows, n, k, 4 * n * k, "multiply_add"))


def _numpy_product(x: Float32, matrices: list[Float32]) -> Contender:
    out = np.empty((len(x), matrices[0].shape[1]), np.float32)
    form: Form = tuple(partial(np.matmul, x, w, out=out) for w in matrices)
    return Contender("numpy", (form,), FLOAT_TOLERANCE)


def _work(rows: int, n: int, k: int, weight_bytes: int, unit: limits.Name) -> Work:
    """The limit for one row is the read bandwidth; for several rows it is arithmetic."""
    flops = 2.0 * rows * n * k
    nbytes = weight_bytes + 4.0 * rows * (n + k)
    if rows == 1:
        return Work("read", weight_bytes, nbytes, flops)
    return Work(unit, flops, nbytes, flops)
