"""How far a float32 result may be from the exact value, said in the units of kernels.h."""

import numpy as np

U = 2.0**-24  # half the distance from 1 to the next float32: one rounding's relative error
TINY = 2.0**-149  # the smallest denormal: what one rounding costs near zero
SMALLEST_NORMAL = 2.0**-126


def ulp(exact):
    """The distance between float32 neighbours at each exact value: float64, exact's shape."""
    exponent = np.frexp(np.abs(exact))[1] - 1  # 2^exponent <= |exact| < 2^(exponent + 1)
    return np.ldexp(1.0, np.maximum(exponent, -126) - 23)


def check(actual, exact, bound, what=""):
    """|actual - exact| <= bound in every element; NaN and infinities are where they should be.

    Besides the bound, a value that rounds to float32's infinity may be infinite.
    """
    assert actual.dtype == np.float32, what
    assert actual.shape == np.shape(exact), what
    exact, bound = np.broadcast_arrays(np.asarray(exact, np.float64), bound)
    np.testing.assert_array_equal(np.isnan(actual), np.isnan(exact), err_msg=f"NaN: {what}")
    with np.errstate(all="ignore"):
        overflowed = np.isinf(actual) & (np.abs(exact) + bound >= 2.0**128 * (1 - U))
        agrees = (
            np.isnan(exact) | (actual == exact) | (overflowed & (np.sign(actual) == np.sign(exact)))
        )
        excess = np.where(agrees, 0.0, np.abs(actual.astype(np.float64) - exact) - bound)
    if not np.all(excess <= 0):
        worst = np.unravel_index(np.argmax(np.nan_to_num(excess, nan=np.inf)), excess.shape)
        error = abs(float(actual[worst]) - exact[worst])
        raise AssertionError(
            f"{what} element {tuple(map(int, worst))}: {actual[worst]!r} instead of "
            f"{exact[worst]!r}, error {error:.3g}, allowed {bound[worst]:.3g}; "
            f"{np.sum(~(excess <= 0))} of {excess.size} elements are off"
        )


def check_ulp(actual, exact, n_ulp, floor=0.0, what=""):
    """Within n_ulp units in the last place, or within `floor` where that is more."""
    with np.errstate(all="ignore"):
        finite = np.where(np.isfinite(exact), exact, 0.0)
    check(actual, exact, np.maximum(n_ulp * ulp(finite), floor), what)


def check_relative(actual, exact, relative, floor=0.0, what=""):
    """Within `relative` times the exact value, or within `floor` where that is more."""
    finite = np.where(np.isfinite(exact), exact, 0.0)
    check(actual, exact, np.maximum(relative * np.abs(finite), floor), what)
