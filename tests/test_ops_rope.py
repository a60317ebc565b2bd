"""rope against float64, within the bound that kernels.h states for the rotation."""

import numpy as np
import pytest
import reference
from arrays import normal, placed, watched
from bounds import TINY, U, check
from hypothesis import given, settings
from hypothesis import strategies as st

STYLES = pytest.mark.parametrize("interleaved", [False, True], ids=["split", "interleaved"])


def check_rope(actual, x, positions, inv_freq, interleaved):
    exact = reference.rope(x, positions, inv_freq, interleaved)
    # 2u for the rotation itself (kernels.h), and u for the cosine's and the sine's own rounding,
    # each times |a cos| + |b sin|, which is at most |a| + |b|.
    size = np.abs(x.astype(np.float64))
    bound = np.zeros(x.shape)
    for a, b in reference.rope_pairs(2 * len(inv_freq), interleaved):
        bound[..., [a, b]] = 3 * U * (size[..., [a]] + size[..., [b]]) + 2 * TINY
    check(actual, exact, bound, "rope")


@STYLES
def test_every_head_size_has_its_tail_computed_with_the_same_care(ops, interleaved):
    for head_dim in [*range(2, 72, 2), 126, 128, 256]:
        x = normal((3, 2, head_dim), seed=head_dim)
        positions = np.array([0, 1, 77], np.int32)
        result = ops.rope(placed(x), placed(positions), interleaved=interleaved)
        frequencies = reference.rope_frequencies(10000.0, head_dim)
        check_rope(result, x, positions, frequencies, interleaved)


@STYLES
def test_position_zero_changes_nothing(ops, interleaved):
    x = normal((2, 3, 24))
    result = ops.rope(x, np.zeros(2, np.int32), interleaved=interleaved)
    np.testing.assert_array_equal(result, x)


@pytest.mark.parametrize("theta", [1.0, 100.0, 500000.0, 1e10])
def test_theta_sets_the_frequencies(ops, theta):
    x, positions = normal((4, 1, 16)), np.array([1, 5, 100, 2000], np.int32)
    result = ops.rope(x, positions, theta=theta)
    check_rope(result, x, positions, reference.rope_frequencies(theta, 16), False)


def test_theta_is_ten_thousand_unless_told_otherwise(ops):
    x, positions = normal((2, 1, 16)), np.array([3, 9], np.int32)
    np.testing.assert_array_equal(ops.rope(x, positions), ops.rope(x, positions, theta=10000.0))


@STYLES
@pytest.mark.parametrize("n_pairs", [0, 1, 3, 8, 10])
def test_inv_freq_turns_the_first_features_and_copies_the_rest(ops, interleaved, n_pairs):
    x, positions = normal((3, 2, 21)), np.array([1, 2, 300], np.int32)
    inv_freq = np.geomspace(1.0, 1e-4, n_pairs).astype(np.float32) if n_pairs else normal(0)
    result = ops.rope(x, positions, inv_freq=placed(inv_freq, 3), interleaved=interleaved)
    check_rope(result, x, positions, inv_freq, interleaved)
    np.testing.assert_array_equal(result[..., 2 * n_pairs :], x[..., 2 * n_pairs :])


def test_inv_freq_overrides_theta(ops):
    x, positions = normal((1, 1, 8)), np.array([7], np.int32)
    inv_freq = np.array([1.0, 0.5, 0.25, 0.125], np.float32)
    np.testing.assert_array_equal(
        ops.rope(x, positions, theta=123.0, inv_freq=inv_freq),
        ops.rope(x, positions, inv_freq=inv_freq),
    )


def test_distant_and_negative_positions_keep_their_angles(ops):
    # In float32 the angle 2147483647 would be off by up to 64 radians.
    positions = np.array([-5, 1 << 20, 2**31 - 1, -(2**31)], np.int32)
    x = normal((4, 2, 6))
    inv_freq = np.array([1.0, 0.1, 1e-4], np.float32)
    check_rope(ops.rope(x, positions, inv_freq=inv_freq), x, positions, inv_freq, False)


def test_tokens_may_come_in_any_order_of_positions(ops):
    x, positions = normal((4, 2, 8)), np.array([9, 2, 2, 0], np.int32)
    check_rope(ops.rope(x, positions), x, positions, reference.rope_frequencies(1e4, 8), False)


@STYLES
def test_nan_and_infinity_stay_within_their_pair(ops, interleaved):
    x = normal((1, 1, 40))
    x[0, 0, 4] = np.nan
    result = ops.rope(x, np.array([1], np.int32), interleaved=interleaved)
    bad = next(set(pair) for pair in reference.rope_pairs(40, interleaved) if 4 in pair)
    assert set(np.flatnonzero(np.isnan(result[0, 0]))) == bad


@STYLES
def test_every_start(ops, interleaved):
    x, positions = normal((2, 1, 38)), np.array([1, 2], np.int32)
    frequencies = reference.rope_frequencies(1e4, 38)
    for offset in range(16):
        result = ops.rope(placed(x, offset), placed(positions, offset), interleaved=interleaved)
        check_rope(result, x, positions, frequencies, interleaved)


@STYLES
def test_nothing_around_out_is_written(ops, interleaved):
    for head_dim in range(2, 72, 2):
        x, positions = normal((2, 2, head_dim)), np.array([1, 2], np.int32)
        with watched(x.shape, offset=7) as out:
            assert ops.rope(x, positions, interleaved=interleaved, out=out) is out
        check_rope(out, x, positions, reference.rope_frequencies(1e4, head_dim), interleaved)


@STYLES
@pytest.mark.parametrize("n_pairs", [3, 17, 20])
def test_in_place(ops, interleaved, n_pairs):
    x, positions = normal((3, 2, 40)), np.array([1, 2, 3], np.int32)
    inv_freq = normal(n_pairs)
    expected = ops.rope(x, positions, inv_freq=inv_freq, interleaved=interleaved)
    assert ops.rope(x, positions, inv_freq=inv_freq, interleaved=interleaved, out=x) is x
    np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(0, 2, 8), (3, 0, 8), (3, 2, 0), (0, 0, 0)])
def test_zero_sized_axes(ops, shape):
    result = ops.rope(np.zeros(shape, np.float32), np.zeros(shape[0], np.int32))
    assert result.shape == shape


@settings(max_examples=30)
@given(data=st.data())
def test_rotation_keeps_the_length_of_every_pair(ops, data):
    n_tokens, n_heads = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 4))
    head_dim = 2 * data.draw(st.integers(1, 40))
    interleaved = data.draw(st.booleans())
    x = normal((n_tokens, n_heads, head_dim), seed=data.draw(st.integers(0, 99)))
    positions = np.array(
        data.draw(st.lists(st.integers(0, 10**6), min_size=n_tokens, max_size=n_tokens)), np.int32
    )
    result = ops.rope(x, positions, interleaved=interleaved)
    for a, b in reference.rope_pairs(head_dim, interleaved):
        before = np.hypot(*x[..., [a, b]].astype(np.float64).transpose(3 - 1, 0, 1))
        after = np.hypot(*result[..., [a, b]].astype(np.float64).transpose(3 - 1, 0, 1))
        np.testing.assert_allclose(after, before, rtol=6 * U)
