"""attention against float64: |error| <= 4e-6 max|v| for small scores, as kernels.h states."""

import numpy as np
import pytest
import reference
from arrays import normal, placed, watched
from bounds import check
from hypothesis import given, settings
from hypothesis import strategies as st


def inputs(n_q, n_kv, n_heads, n_kv_heads, head_dim, dtype=np.float32, seed=0):
    q = normal((n_q, n_heads, head_dim), seed)
    k = normal((n_kv_heads, n_kv, head_dim), seed + 1).astype(dtype)
    v = normal((n_kv_heads, n_kv, head_dim), seed + 2).astype(dtype)
    return q, k, v


def check_attention(actual, q, k, v, scale=None, causal=True):
    scale = max(q.shape[-1], 1) ** -0.5 if scale is None else scale
    exact = reference.attention(q, k, v, scale, causal)
    check(actual, exact, 4e-6 * np.abs(v.astype(np.float64)).max(initial=0.0), "attention")


@pytest.fixture(scope="module", params=[np.float32, np.float16], ids=["float32", "float16"])
def dtype(request):
    return request.param


@pytest.mark.parametrize("head_dim", [1, 2, 3, 8, 15, 16, 17, 33, 64, 70, 80, 96, 128, 160, 256])
def test_every_head_size(ops, dtype, head_dim):
    q, k, v = inputs(3, 21, 4, 2, head_dim, dtype)
    check_attention(ops.attention(q, k, v), q, k, v)


def test_every_number_of_keys(ops, dtype):
    for n_kv in [*range(1, 71), 127, 515]:
        q, k, v = inputs(1, n_kv, 3, 1, 20, dtype, seed=n_kv)
        check_attention(ops.attention(q, k, v), q, k, v)


def test_every_number_of_queries(ops, dtype):
    for n_q in [*range(1, 36), 70]:
        q, k, v = inputs(n_q, n_q + 5, 2, 1, 16, dtype, seed=n_q)
        check_attention(ops.attention(q, k, v), q, k, v)


@pytest.mark.parametrize(("n_heads", "n_kv_heads"), [(1, 1), (9, 3), (8, 1), (6, 6), (12, 4)])
def test_query_heads_share_key_heads_in_groups(ops, dtype, n_heads, n_kv_heads):
    q, k, v = inputs(4, 30, n_heads, n_kv_heads, 24, dtype)
    check_attention(ops.attention(q, k, v), q, k, v)


def test_a_query_sees_no_later_key(ops):
    q, k, v = inputs(6, 10, 2, 1, 8)
    before = ops.attention(q, k, v)
    k[:, 7:], v[:, 7:] = 1e3, 1e3  # the last query is at position 9, so query 2 at position 6
    after = ops.attention(q, k, v)
    np.testing.assert_array_equal(after[:3], before[:3])
    assert (after[3:] != before[3:]).all()


def test_without_a_mask_every_query_sees_every_key(ops, dtype):
    q, k, v = inputs(5, 40, 4, 2, 16, dtype)
    check_attention(ops.attention(q, k, v, causal=False), q, k, v, causal=False)


def test_a_query_without_keys_gives_zeros(ops):
    q, k, v = inputs(6, 4, 2, 1, 8)  # the first two queries come before the first key
    result = ops.attention(q, k, v)
    np.testing.assert_array_equal(result[:2], 0.0)
    check_attention(result, q, k, v)


@pytest.mark.parametrize("causal", [True, False])
def test_no_keys_at_all_give_zeros(ops, causal):
    q, k, v = inputs(3, 0, 2, 1, 8)
    out = np.full(q.shape, 7.0, np.float32)
    np.testing.assert_array_equal(ops.attention(q, k, v, causal=causal, out=out), 0.0)


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.01, 1.0])
def test_scale_multiplies_the_scores(ops, scale):
    q, k, v = inputs(3, 20, 2, 1, 16)
    check_attention(ops.attention(q, k, v, scale=scale), q, k, v, scale=scale)


def test_scale_defaults_to_the_inverse_root_of_the_head_size(ops):
    q, k, v = inputs(3, 20, 2, 1, 16)
    np.testing.assert_array_equal(ops.attention(q, k, v), ops.attention(q, k, v, scale=0.25))


def test_one_dominant_key_gives_its_value(ops, dtype):
    for place in (0, 16, 69):
        q, k, v = np.ones((1, 1, 16), np.float32), *inputs(1, 70, 1, 1, 16, dtype)[1:]
        k[...] = 0.0
        k[0, place] = 100.0
        result = ops.attention(q, k, v, scale=1.0)
        np.testing.assert_array_equal(result[0, 0], v[0, place].astype(np.float32))


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_scores_far_beyond_exps_range_do_not_overflow(ops, size):
    q, k, v = inputs(2, 40, 2, 1, 8)
    k[...] = size  # equal scores: the result is the mean of the values, whatever their size
    q[...] = np.abs(q)
    result = ops.attention(q, k, v, causal=False)
    expected = np.broadcast_to(v.astype(np.float64).mean(axis=1), (2, 2, 8))
    check(result, expected, 4e-6 * np.abs(v).max(), "attention")


def test_nan_in_a_query_spoils_that_query_alone(ops):
    q, k, v = inputs(4, 20, 2, 1, 16)
    good = ops.attention(q, k, v)
    q[1, 1, 3] = np.nan
    result = ops.attention(q, k, v)
    assert np.isnan(result[1, 1]).all()
    result[1, 1] = good[1, 1]
    np.testing.assert_array_equal(result, good)


def test_nan_in_a_key_or_a_value_that_is_seen_is_not_hidden(ops):
    for which in (1, 2):
        arrays = inputs(2, 20, 2, 1, 16)
        arrays[which][0, 5, 3] = np.nan
        assert np.isnan(ops.attention(*arrays)[..., 3]).all()


def test_every_start(ops, dtype):
    q, k, v = inputs(2, 19, 2, 1, 21, dtype)
    for offset in range(16):
        result = ops.attention(placed(q, offset), placed(k, 15 - offset), placed(v, offset))
        check_attention(result, q, k, v)


def test_nothing_around_out_is_written(ops):
    for head_dim in range(1, 71):
        q, k, v = inputs(2, 5, 2, 1, head_dim)
        with watched(q.shape, offset=head_dim % 16) as out:
            assert ops.attention(q, k, v, out=out) is out
        check_attention(out, q, k, v)


@settings(max_examples=40)
@given(
    n_q=st.integers(0, 20),
    n_kv=st.integers(0, 70),
    n_kv_heads=st.integers(1, 3),
    group=st.integers(1, 4),
    head_dim=st.integers(0, 70),
    causal=st.booleans(),
)
def test_any_shape(ops, n_q, n_kv, n_kv_heads, group, head_dim, causal):
    q, k, v = inputs(n_q, n_kv, n_kv_heads * group, n_kv_heads, head_dim, seed=n_q)
    result = ops.attention(q, k, v, causal=causal)
    check_attention(result, q, k, v, causal=causal)


@pytest.mark.parametrize("n_kv_heads", [0, 2])
def test_no_query_heads(ops, n_kv_heads):
    q, k, v = inputs(3, 4, 0, n_kv_heads, 8)
    assert ops.attention(q, k, v).shape == (3, 0, 8)
