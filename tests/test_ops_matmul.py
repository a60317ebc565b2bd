"""matmul against float64: |error| <= (k + 8) u sum |a b|, as kernels.h states."""

import numpy as np
import pytest
import reference
from arrays import normal, placed, watched
from bounds import TINY, U, check
from hypothesis import given, settings
from hypothesis import strategies as st


def check_matmul(actual, a, b):
    k = a.shape[-1]
    with np.errstate(invalid="ignore"):
        size = np.nan_to_num(reference.matmul(np.abs(a), np.abs(b)), nan=0.0, posinf=0.0)
    # A product that is a denormal is rounded by TINY at most, not by a share of itself.
    check(actual, reference.matmul(a, b), (k + 8) * (U * size + TINY), "matmul")


def test_every_number_of_columns(ops):
    for n in [*range(1, 71), 127]:
        a, b = normal((3, 33), seed=n), normal((33, n), seed=n + 1)
        check_matmul(ops.matmul(placed(a), placed(b, offset=5)), a, b)


def test_every_depth(ops):
    for k in [*range(1, 71), 127, 4097]:
        a, b = normal((5, k), seed=k), normal((k, 19), seed=k + 1)
        check_matmul(ops.matmul(placed(a), placed(b)), a, b)


def test_every_number_of_rows(ops):
    for m in [*range(1, 40), 127]:
        a, b = normal((m, 20), seed=m), normal((20, 35), seed=m + 1)
        check_matmul(ops.matmul(placed(a), placed(b)), a, b)


def test_sizes_beyond_one_block_of_any_kernel(ops):
    a, b = normal((130, 515)), normal((515, 270), seed=1)
    check_matmul(ops.matmul(a, b), a, b)


def test_one_row_of_many_columns(ops):
    for n, k in [(1023, 40), (1024, 1), (1025, 3), (2100, 66), (5000, 515)]:
        a, b = normal((1, k), seed=n), normal((k, n), seed=k)
        check_matmul(ops.matmul(a, b), a, b)


@settings(max_examples=60)
@given(
    leading=st.lists(st.integers(0, 3), max_size=2),
    m=st.integers(0, 20),
    k=st.integers(0, 80),
    n=st.integers(0, 80),
    offset=st.integers(0, 15),
)
def test_any_shape_at_any_start(ops, leading, m, k, n, offset):
    a, b = normal((*leading, m, k), seed=k), normal((k, n), seed=n)
    check_matmul(ops.matmul(placed(a, offset), placed(b, 15 - offset)), a, b)


def test_no_depth_gives_zeros(ops):
    out = np.full((2, 3, 4), 7.0, np.float32)
    ops.matmul(np.zeros((2, 3, 0), np.float32), np.zeros((0, 4), np.float32), out=out)
    np.testing.assert_array_equal(out, 0.0)


def test_whole_numbers_come_out_exactly(ops):
    # Every partial sum is a whole number below 2^24, whatever the order of the sum.
    random = np.random.default_rng(0)
    a = random.integers(-50, 50, (17, 130)).astype(np.float32)
    b = random.integers(-50, 50, (130, 45)).astype(np.float32)
    np.testing.assert_array_equal(ops.matmul(a, b), reference.matmul(a, b))


def test_nan_reaches_its_row_and_its_column_alone(ops):
    a, b = normal((6, 30)), normal((30, 40), seed=1)
    a[2, 29] = np.nan
    b[3, 39] = np.nan
    check_matmul(ops.matmul(a, b), a, b)


def test_infinity_reaches_its_row_alone(ops):
    a, b = normal((6, 30)), np.abs(normal((30, 40), seed=1))
    a[2, 7] = np.inf
    check_matmul(ops.matmul(a, b), a, b)


@pytest.mark.parametrize("scale", [1e-42, 1e-30, 1e-20, 1e17])
def test_denormal_and_huge_values(ops, scale):
    a, b = normal((4, 40), scale=scale), normal((40, 20), seed=1, scale=scale)
    check_matmul(ops.matmul(a, b), a, b)


def test_out_is_filled_and_returned_and_nothing_around_it_is_touched(ops):
    for n in range(1, 71):
        a, b = normal((3, 9), seed=n), normal((9, n), seed=n)
        with watched((3, n), offset=n % 16) as out:
            assert ops.matmul(a, b, out=out) is out
        check_matmul(out, a, b)


def test_what_out_held_before_does_not_matter(ops):
    a, b = normal((3, 9)), normal((9, 21))
    out = np.full((3, 21), np.nan, np.float32)
    np.testing.assert_array_equal(ops.matmul(a, b, out=out), ops.matmul(a, b))


def test_a_matrix_times_itself(ops):
    a = normal((37, 37))
    check_matmul(ops.matmul(a, a), a, a)
