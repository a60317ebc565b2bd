"""attention against float64: sizes, and which keys a query sees."""

import numpy as np
import pytest
from attention_calls import INFINITY, attend, check_attention, inputs, sinks_of, widened
from bounds import check

from airllm import numpy_ops

# ---- shapes --------------------------------------------------------------------------------------

HEAD_SIZES = [1, 2, 3, 8, 15, 16, 17, 20, 33, 64, 70, 80, 96, 128, 160, 256]
WHOLE_BLOCKS = [32, 64, 96, 128, 160, 192, 224, 256]


@pytest.mark.parametrize("head_dim", HEAD_SIZES)
@pytest.mark.parametrize("kv_type", ["float32", "float16"])
def test_every_head_size(ops, kv_type, head_dim):
    attend(ops, *inputs(3, 21, 4, 2, head_dim, kv_type))


@pytest.mark.parametrize("head_dim", WHOLE_BLOCKS)
def test_every_head_size_of_whole_blocks(ops, head_dim):
    attend(ops, *inputs(3, 21, 4, 2, head_dim, "q8_0"))


def test_every_number_of_keys(ops, kv_type, small_head):
    for n_kv in [*range(1, 71), 127, 515]:
        attend(ops, *inputs(1, n_kv, 3, 1, small_head, kv_type, seed=n_kv))


def test_every_number_of_queries(ops, kv_type, small_head):
    for n_q in [*range(1, 36), 70]:
        attend(ops, *inputs(n_q, n_q + 5, 2, 1, small_head, kv_type, seed=n_q))


@pytest.mark.parametrize("head_dim", [20, 64, 80, 96, 128, 256])
def test_one_query_over_a_long_cache(ops, kv_type, head_dim):
    if kv_type == "q8_0" and head_dim % 32:
        head_dim = 32
    attend(ops, *inputs(1, 5000, 4, 2, head_dim, kv_type))


def test_one_query_over_a_long_cache_with_everything_at_once(ops, kv_type):
    q, k, v = inputs(1, 5000, 8, 2, 64, kv_type)
    attend(ops, q, k, v, softcap=3.0, sinks=sinks_of(8), window=4900)


def test_a_long_prompt_with_everything_at_once(ops, kv_type):
    q, k, v = inputs(150, 230, 4, 2, 64, kv_type)
    for causal in (True, False):
        attend(ops, q, k, v, causal=causal, softcap=3.0, sinks=sinks_of(4), window=90)


@pytest.mark.parametrize("n_q", [1, 5])
@pytest.mark.parametrize(
    ("n_heads", "n_kv_heads"), [(1, 1), (6, 6), (9, 3), (8, 2), (8, 1), (16, 2), (71, 1), (142, 2)]
)
def test_query_heads_share_key_heads_in_groups(ops, kv_type, n_heads, n_kv_heads, n_q):
    attend(ops, *inputs(n_q, 30, n_heads, n_kv_heads, 32, kv_type))


@pytest.mark.parametrize("n_kv_heads", [0, 2])
def test_no_query_heads(ops, n_kv_heads):
    q, k, v = inputs(3, 4, 0, n_kv_heads, 8)
    out, lse = ops.attention(q, k, v, sinks=np.empty(0, np.float32), return_lse=True)
    assert out.shape == (3, 0, 8)
    assert lse.shape == (3, 0)


def test_no_queries(ops, kv_type):
    q, k, v = inputs(0, 4, 2, 1, 32, kv_type)
    out, lse = ops.attention(q, k, v, return_lse=True)
    assert out.shape == (0, 2, 32)
    assert lse.shape == (0, 2)


def test_heads_of_no_features_have_scores_of_zero(ops, kv_type):
    q, k, v = inputs(3, 4, 2, 1, 0, kv_type)
    out, lse = ops.attention(q, k, v, return_lse=True)
    assert out.shape == (3, 2, 0)
    check(lse, np.repeat(np.log([[2.0], [3.0], [4.0]]), 2, axis=1), 4e-7 * 8, "lse")


# ---- which keys a query sees ---------------------------------------------------------------------


def test_a_query_sees_no_later_key(ops):
    q, k, v = inputs(6, 10, 2, 1, 8)
    before = ops.attention(q, k, v)
    k[:, 7:], v[:, 7:] = 1e3, 1e3  # the last query is at position 9, so query 2 at position 6
    after = ops.attention(q, k, v)
    np.testing.assert_array_equal(after[:3], before[:3])
    assert (after[3:] != before[3:]).all()


def test_without_a_mask_every_query_sees_every_key(ops, kv_type):
    attend(ops, *inputs(5, 40, 4, 2, 32, kv_type), causal=False)


def test_a_query_without_keys_gives_zeros(ops, kv_type):
    q, k, v = inputs(6, 4, 2, 1, 32, kv_type)  # the first two queries come before the first key
    out, lse = ops.attention(q, k, v, return_lse=True)
    np.testing.assert_array_equal(out[:2], 0.0)
    np.testing.assert_array_equal(lse[:2], -INFINITY)
    check_attention((out, lse), q, k, v)


def test_many_more_queries_than_keys(ops, kv_type):
    q, k, v = inputs(200, 3, 4, 2, 32, kv_type)
    for causal in (True, False):
        attend(ops, q, k, v, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
def test_no_keys_at_all_give_zeros(ops, kv_type, causal):
    q, k, v = inputs(3, 0, 2, 1, 32, kv_type)
    out = np.full(q.shape, 7.0, np.float32)
    _, lse = ops.attention(q, k, v, causal=causal, out=out, return_lse=True)
    np.testing.assert_array_equal(out, 0.0)
    np.testing.assert_array_equal(lse, -INFINITY)


# ---- window --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_every_window(ops, causal):
    q, k, v = inputs(9, 70, 2, 1, 20)
    for window in range(1, 75):
        attend(ops, q, k, v, window=window, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 100, 1030])
def test_a_window_over_a_long_cache(ops, kv_type, window, causal):
    attend(ops, *inputs(3, 2000, 4, 2, 64, kv_type), window=window, causal=causal)


@pytest.mark.parametrize("n_q", [1, 2])
@pytest.mark.parametrize("first_seen", [511, 512, 513, 1023, 1024, 1025, 1536])
def test_a_window_that_begins_beside_a_boundary_of_the_parts_of_a_cache(ops, first_seen, n_q):
    """Long caches are divided into parts of multiples of 512 positions; the first query's window
    begins at first_seen."""
    n_kv = 2000
    window = n_kv - n_q + 1 - first_seen
    attend(ops, *inputs(n_q, n_kv, 1, 1, 16), window=window)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 10, 64, 100])
def test_a_window_that_slides_over_a_prompt(ops, window, causal):
    attend(ops, *inputs(140, 150, 2, 1, 20), window=window, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 5, 12])
def test_a_window_before_the_first_key(ops, window, causal):
    attend(ops, *inputs(12, 4, 2, 1, 8), window=window, causal=causal)


def test_a_window_of_one_gives_the_value_at_the_querys_position(ops, kv_type):
    q, k, v = inputs(4, 10, 2, 2, 32, kv_type)
    expected = widened(v)[:, 6:].transpose(1, 0, 2)
    for causal in (True, False):
        np.testing.assert_array_equal(ops.attention(q, k, v, window=1, causal=causal), expected)


def test_what_a_window_hides_changes_nothing(ops):
    q, k, v = inputs(1, 20, 2, 1, 8)
    before = ops.attention(q, k, v, window=6)
    k[:, :14], v[:, :14] = 1e3, 1e3  # the query is at position 19 and sees 14 to 19
    np.testing.assert_array_equal(ops.attention(q, k, v, window=6), before)
    k[:, 14] = 1.0
    assert (ops.attention(q, k, v, window=6) != before).all()


@pytest.mark.parametrize("window", [30, 31, 64, 2**31 - 1, 2**31, 2**63 - 1, 2**64, 10**30])
def test_a_window_as_long_as_the_keys_hides_nothing(ops, window):
    q, k, v = inputs(7, 30, 2, 1, 20)
    for causal in (True, False):
        expected = ops.attention(q, k, v, causal=causal)
        result = ops.attention(q, k, v, causal=causal, window=window)
        np.testing.assert_array_equal(result, expected)


def test_a_causal_window_as_long_as_the_keys_hides_nothing_from_more_queries(ops):
    q, k, v = inputs(40, 30, 2, 1, 20)
    np.testing.assert_array_equal(ops.attention(q, k, v, window=30), ops.attention(q, k, v))


def test_a_numpy_integer_is_a_window(ops):
    q, k, v = inputs(7, 30, 2, 1, 20)
    expected = ops.attention(q, k, v, window=5)
    np.testing.assert_array_equal(ops.attention(q, k, v, window=np.int64(5)), expected)


# ---- chunks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_every_chunk(ops, causal):
    q, k, v = inputs(9, 70, 2, 1, 20)
    for window in range(1, 75):
        attend(ops, q, k, v, window=window, chunked=True, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 100, 999, 1030])
def test_a_chunk_of_a_long_cache(ops, kv_type, window, causal):
    q, k, v = inputs(3, 2000, 4, 2, 64, kv_type)
    attend(ops, q, k, v, window=window, chunked=True, causal=causal)


@pytest.mark.parametrize("n_q", [1, 2])
@pytest.mark.parametrize("window", [511, 512, 513, 1023, 1024, 1025, 1998, 1999])
def test_a_chunk_that_begins_beside_a_boundary_of_the_parts_of_a_cache(ops, window, n_q):
    attend(ops, *inputs(n_q, 2000, 1, 1, 16), window=window, chunked=True)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 10, 64, 100])
def test_chunks_of_a_prompt(ops, window, causal):
    attend(ops, *inputs(140, 150, 2, 1, 20), window=window, chunked=True, causal=causal)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("window", [1, 2, 5, 12])
def test_a_query_before_the_first_key_is_in_no_chunk_that_has_keys(ops, window, causal):
    for head_dim in (8, 0):
        attend(ops, *inputs(12, 4, 2, 1, head_dim), window=window, chunked=True, causal=causal)


def test_what_another_chunk_has_changes_nothing(ops):
    q, k, v = inputs(1, 20, 2, 1, 8)
    before = ops.attention(q, k, v, window=6, chunked=True)
    k[:, :18], v[:, :18] = 1e3, 1e3  # the query is at position 19 and sees 18 and 19
    np.testing.assert_array_equal(ops.attention(q, k, v, window=6, chunked=True), before)
    k[:, 18] = 1.0
    assert (ops.attention(q, k, v, window=6, chunked=True) != before).all()


@pytest.mark.parametrize("window", [30, 31, 2**31, 2**63 - 1, 2**64, 10**30])
def test_a_chunk_as_long_as_the_keys_hides_nothing(ops, window):
    q, k, v = inputs(7, 30, 2, 1, 20)
    for causal in (True, False):
        expected = ops.attention(q, k, v, causal=causal)
        result = ops.attention(q, k, v, causal=causal, window=window, chunked=True)
        np.testing.assert_array_equal(result, expected)


# ---- prompts in batches --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("group", "options"),
    [(1, {}), (3, {}), (8, {}), (3, {"window": 100}), (3, {"window": 150, "chunked": True})],
)
def test_a_prompt_in_batches_of_more_than_64_tokens_gives_the_same_bits(
    ops, kv_type, group, options
):
    if ops is numpy_ops:
        pytest.skip("its BLAS sums in an order of its own for each shape")
    n = 1100
    q, k, v = inputs(n, n, group, 1, 32, kv_type)
    whole = ops.attention(q, k, v, **options)
    for size in (65, 129, 257):
        for end in range(n, 0, -size):
            rows = slice(max(end - size, 0), end)
            if rows.stop - rows.start > 64:
                kv = (np.ascontiguousarray(each[:, :end]) for each in (k, v))
                found = ops.attention(q[rows], *kv, **options)
                np.testing.assert_array_equal(found, whole[rows])
