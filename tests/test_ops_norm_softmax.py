"""rms_norm and softmax against float64, within the bounds that kernels.h states."""

import numpy as np
import pytest
import reference
from arrays import SIZES, normal, placed, watched
from bounds import SMALLEST_NORMAL, TINY, check, check_relative

ROWS_SIZES = [n for n in SIZES if n]


def check_rms_norm(actual, x, weight, eps=1e-6):
    # One rounding more than 1e-6 allows where the result itself is a denormal.
    check_relative(actual, reference.rms_norm(x, weight, eps), 1e-6, floor=TINY, what="rms_norm")


def test_rms_norm_of_every_size(ops):
    for n in ROWS_SIZES:
        x, weight = normal((3, n), seed=n), normal(n, seed=n + 1)
        check_rms_norm(ops.rms_norm(placed(x), placed(weight, offset=1)), x, weight)


def test_rms_norm_of_long_rows(ops):
    x, weight = normal((2, 65536)), normal(65536, seed=1)
    check_rms_norm(ops.rms_norm(x, weight), x, weight)


def test_rows_of_an_output_larger_than_the_caches_are_as_those_of_a_small_one(ops):
    x, weight = normal((1025, 4096)), normal(4096, seed=1)  # written past the caches by C++
    for op in (lambda x: ops.rms_norm(x, weight), ops.softmax):
        np.testing.assert_array_equal(op(x)[-3:], op(x[-3:]))


def test_rms_norm_defaults_to_an_eps_of_a_millionth(ops):
    x, weight = normal((2, 40), scale=1e-3), normal(40, seed=1)
    np.testing.assert_array_equal(ops.rms_norm(x, weight), ops.rms_norm(x, weight, 1e-6))
    check_rms_norm(ops.rms_norm(x, weight), x, weight, 1e-6)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0, 1e6])
def test_rms_norm_adds_eps_to_the_mean_square(ops, eps):
    x, weight = normal((2, 40), scale=1e-2), normal(40, seed=1)
    check_rms_norm(ops.rms_norm(x, weight, eps=eps), x, weight, eps)


@pytest.mark.parametrize("scale", [1e-30, 1e-20, 1e-10, 1e10, 1e19, 1e25, 1e37])
def test_rms_norm_of_tiny_and_huge_rows_does_not_leave_float32(ops, scale):
    x, weight = normal((2, 70), scale=scale), normal(70, seed=1)
    check_rms_norm(ops.rms_norm(x, weight, eps=0.0), x, weight, 0.0)


def test_rms_norm_of_a_row_of_zeros_is_zeros(ops):
    weight = normal(33)
    np.testing.assert_array_equal(ops.rms_norm(np.zeros((2, 33), np.float32), weight), 0.0)


def test_rms_norm_spreads_nan_over_its_row_and_no_further(ops):
    x, weight = normal((3, 21)), normal(21, seed=1)
    x[1, 20] = np.nan
    check_rms_norm(ops.rms_norm(x, weight), x, weight)


def test_rms_norm_of_an_infinity_is_nan_there_and_zero_elsewhere(ops):
    x, weight = normal((1, 21)), np.ones(21, np.float32)
    x[0, 4] = np.inf
    result = ops.rms_norm(x, weight)[0]
    assert np.isnan(result[4])
    np.testing.assert_array_equal(np.delete(result, 4), 0.0)


def test_rms_norm_of_every_start(ops):
    x, weight = normal((2, 37)), normal(37, seed=1)
    for offset in range(16):
        check_rms_norm(ops.rms_norm(placed(x, offset), placed(weight, 15 - offset)), x, weight)


def test_rms_norm_writes_nothing_around_out(ops):
    for n in ROWS_SIZES[:-1]:
        x, weight = normal((2, n), seed=n), normal(n, seed=1)
        with watched((2, n), offset=n % 16) as out:
            assert ops.rms_norm(x, weight, out=out) is out
        check_rms_norm(out, x, weight)


def test_rms_norm_in_place(ops):
    for n in (1, 16, 70, 4097):
        x, weight = normal((3, n)), normal(n, seed=1)
        expected = ops.rms_norm(x, weight)
        assert ops.rms_norm(x, weight, out=x) is x
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4), (5,), (2, 3, 4, 5)])
def test_rms_norm_keeps_any_shape(ops, shape):
    x, weight = normal(shape), normal(shape[-1:], seed=1)
    check_rms_norm(ops.rms_norm(x, weight), x, weight)


# ---- softmax -------------------------------------------------------------------------------------


def check_softmax(actual, x):
    exact = reference.softmax(x)
    with np.errstate(invalid="ignore"):
        below_top = np.max(x, axis=-1, keepdims=True, initial=-np.inf).astype(np.float64) - x
        below_top = np.where(np.isfinite(below_top), below_top, 0.0)
    bound = (1e-6 + 6e-8 * below_top) * exact
    # kernels.h bounds normal numbers; a denormal may be off by its whole self, not by more.
    denormal = exact < SMALLEST_NORMAL
    check(actual, exact, np.where(denormal, SMALLEST_NORMAL, bound), "softmax")


def test_softmax_of_every_size(ops):
    for n in ROWS_SIZES:
        x = normal((3, n), seed=n, scale=5.0)
        check_softmax(ops.softmax(placed(x)), x)


def test_softmax_rows_sum_to_one(ops):
    for n in (1, 31, 4097):
        total = ops.softmax(normal((4, n), scale=3.0)).astype(np.float64).sum(axis=-1)
        np.testing.assert_allclose(total, 1.0, rtol=2e-6)


@pytest.mark.parametrize("shift", [-3e38, -1e30, -1e4, 1e4, 1e30, 3e38])
def test_softmax_of_huge_values_neither_overflows_nor_vanishes(ops, shift):
    x = np.full((2, 19), shift, np.float32)
    x[0, 3] = 0.9 * x[0, 0]
    check_softmax(ops.softmax(x), x)


def test_softmax_of_widely_spread_values(ops):
    x = np.linspace(-200, 0, 71, dtype=np.float32)[np.newaxis]
    check_softmax(ops.softmax(x), x)


def test_softmax_gives_minus_infinity_no_weight(ops):
    for n in (2, 17, 70):
        x = normal((1, n))
        x[0, ::2] = -np.inf
        check_softmax(ops.softmax(x), x)


def test_softmax_of_only_minus_infinity_is_zeros(ops):
    for n in (1, 16, 21):
        x = np.full((2, n), -np.inf, np.float32)
        np.testing.assert_array_equal(ops.softmax(x), 0.0)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_softmax_with_nan_or_infinity_is_nan_in_that_row_alone(ops, bad):
    for n in (1, 5, 16, 40):
        for at in {0, n - 1}:
            x = normal((3, n))
            x[1, at] = bad
            check_softmax(ops.softmax(x), x)


def test_softmax_of_nan_among_minus_infinities_is_nan(ops):
    for n in (2, 20):
        x = np.full((1, n), -np.inf, np.float32)
        x[0, -1] = np.nan
        assert np.isnan(ops.softmax(x)).all()


def test_softmax_of_denormals_is_uniform(ops):
    np.testing.assert_allclose(ops.softmax(np.full((1, 8), TINY, np.float32)), 1 / 8, rtol=1e-6)


def test_softmax_of_every_start(ops):
    x = normal((2, 37))
    for offset in range(16):
        check_softmax(ops.softmax(placed(x, offset)), x)


def test_softmax_writes_nothing_around_out(ops):
    for n in ROWS_SIZES[:-1]:
        x = normal((2, n), seed=n)
        with watched((2, n), offset=n % 16) as out:
            assert ops.softmax(x, out=out) is out
        check_softmax(out, x)


def test_softmax_in_place(ops):
    for n in (1, 16, 70, 4097):
        x = normal((3, n))
        expected = ops.softmax(x)
        assert ops.softmax(x, out=x) is x
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4), (5,), (2, 3, 4, 5)])
def test_softmax_keeps_any_shape(ops, shape):
    x = normal(shape)
    check_softmax(ops.softmax(x), x)
