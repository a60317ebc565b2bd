"""Nothing is timed before its result was compared with float64."""

import numpy as np
from numpy.typing import NDArray

# No single element may be further off than this many times the tolerance of the whole row: errors
# that are spread like a normal distribution's stay below 6 of its standard deviations.
OUTLIER = 10.0


class WrongResultError(Exception):
    """A contender computed something else."""


def check(
    name: str, actual: NDArray[np.floating], exact: NDArray[np.float64], tolerance: float
) -> float:
    """Raise WrongResultError unless every row of `actual` is `exact` within `tolerance`.

    Compared are the norm of a row's error with the norm of the row, and each element's error with
    the row's root mean square. Returns the worst row's relative error.
    """
    if actual.shape != exact.shape:
        raise WrongResultError(f"{name}: shape {actual.shape}; expected {exact.shape}")
    n = exact.shape[-1]
    rows = exact.reshape(-1, n)
    off = np.abs(actual.reshape(-1, n) - rows)
    size = np.sqrt(np.mean(rows * rows, axis=1))
    error = np.sqrt(np.mean(off * off, axis=1)) / np.maximum(size, np.finfo(np.float64).tiny)
    worst = float(np.max(error))
    if not worst <= tolerance:  # NaN too
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
