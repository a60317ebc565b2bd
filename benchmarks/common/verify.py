"""Compares results with float64. Only results that pass are timed."""

import numpy as np
from numpy.typing import NDArray

# The error of an element may be this many times the tolerance of a row. Normally distributed errors
# stay below 6 standard deviations.
OUTLIER = 10.0


class WrongResultError(Exception):
    """A contender's result is not within the tolerance."""


def check(
    name: str, actual: NDArray[np.floating], exact: NDArray[np.float64], tolerance: float
) -> float:
    """Raise WrongResultError unless every row of `actual` is `exact` within `tolerance`.

    It compares the norm of a row's error with the norm of the row, and the error of each element
    with the row's root mean square. Returns the relative error of the worst row.
    """
    if actual.shape != exact.shape:
        raise WrongResultError(f"{name}: shape {actual.shape}; expected {exact.shape}")
    n = exact.shape[-1]
    rows = exact.reshape(-1, n)
    off = np.abs(actual.reshape(-1, n) - rows)
    size = np.sqrt(np.mean(rows * rows, axis=1))
    error = np.sqrt(np.mean(off * off, axis=1)) / np.maximum(size, np.finfo(np.float64).tiny)
    worst = float(np.max(error))
    if not worst <= tolerance:  # also true for NaN
        raise WrongResultError(
            f"{name}: row {int(np.argmax(error))} is off by {worst:.2g} of its norm; "
            f"allowed {tolerance:.2g}"
        )
    largest = float(np.max(off / size[:, None]))
    if not largest <= OUTLIER * tolerance:
        raise WrongResultError(
            f"{name}: an element is off by {largest:.2g} of its row's root mean square; "
            f"allowed {OUTLIER * tolerance:.2g}"
        )
    return worst
