"""attention against float64: scores, sequences laid end to end, and what comes back."""

import importlib
import math

import numpy as np
import pytest
from arrays import normal, placed, watched
from attention_calls import INFINITY, attend, check_attention, cumulative, inputs, sinks_of, widened
from bounds import check
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm import numpy_ops

# ---- scores: scale, softcap, sinks ---------------------------------------------------------------


@pytest.mark.parametrize("scale", [0.0, -0.3, 0.01, 1.0])
def test_scale_multiplies_the_scores(ops, scale):
    attend(ops, *inputs(3, 20, 2, 1, 16), scale=scale)


def test_scale_defaults_to_the_inverse_root_of_the_head_size(ops):
    q, k, v = inputs(3, 20, 2, 1, 16)
    np.testing.assert_array_equal(ops.attention(q, k, v), ops.attention(q, k, v, scale=0.25))


@pytest.mark.parametrize("softcap", [1e-30, 0.01, 0.5, 1, 30.0, 50.0, 1e30])
def test_softcap_bends_the_scores(ops, kv_type, softcap):
    for scale in (None, 3.0):
        attend(ops, *inputs(3, 40, 4, 2, 32, kv_type), softcap=softcap, scale=scale)


def test_softcap_comes_after_scale_and_before_the_mask(ops):
    q, k, v = inputs(8, 8, 2, 1, 16)
    attend(ops, q, k, v, softcap=0.1, scale=2.0)  # a masked score of -softcap would count


@pytest.mark.parametrize("size", [1e4, 1e30])
def test_no_score_is_larger_than_softcap(ops, size):
    q, k, v = np.full((1, 1, 1), size, np.float32), *inputs(1, 3, 1, 1, 1)[1:]
    k[0, :, 0] = 1.0, -1.0, 0.0  # scores of softcap, -softcap and 0
    out, lse = ops.attention(q, k, v, softcap=2.0, return_lse=True)
    weights = np.exp([2.0, -2.0, 0.0])
    values = v[0, :, 0].astype(np.float64)
    bound = (4e-6 + 1.2e-7 * 2) * np.abs(values).max()  # as for scores of 2: these are exact
    check(out[0, 0], [weights @ values / weights.sum()], bound, "out")
    check(lse[0], [np.log(weights.sum())], 4e-7 * (8 + 2), "lse")


def test_a_sink_takes_its_share_of_the_weight(ops, kv_type):
    q, k, v = inputs(5, 40, 6, 2, 32, kv_type)
    for sinks in (sinks_of(6), np.zeros(6, np.float32), normal(6, scale=8.0)):
        attend(ops, q, k, v, sinks=sinks)


def test_a_sink_is_neither_scaled_nor_capped(ops):
    sinks = np.array([3.0, -3.0], np.float32)
    attend(ops, *inputs(3, 20, 2, 1, 16), sinks=sinks, scale=0.1, softcap=0.5)


def test_a_sink_counts_once_however_many_keys_there_are(ops):
    for n_kv in (1, 64, 65, 1000, 5000):
        attend(ops, *inputs(1, n_kv, 3, 1, 16), sinks=np.full(3, math.log(n_kv), np.float32))


def test_a_sink_far_above_the_scores_leaves_no_weight(ops):
    q, k, v = inputs(3, 70, 2, 1, 16)
    sinks = np.array([1e4, 3e38], np.float32)
    out, lse = ops.attention(q, k, v, sinks=sinks, return_lse=True)
    np.testing.assert_array_equal(out, 0.0)
    np.testing.assert_array_equal(lse, np.broadcast_to(sinks, (3, 2)))


@pytest.mark.parametrize("sink", [-1e4, -3e38, -INFINITY])
def test_a_sink_far_below_the_scores_changes_nothing(ops, sink):
    q, k, v = inputs(3, 70, 2, 1, 16)
    result = ops.attention(q, k, v, sinks=np.full(2, sink, np.float32), return_lse=True)
    check_attention(result, q, k, v)


@pytest.mark.parametrize("causal", [True, False])
def test_a_query_that_sees_only_the_sink_gives_zeros(ops, causal):
    q, k, v = inputs(8, 3, 2, 1, 8)
    sinks = np.array([1.5, -INFINITY], np.float32)
    window = 2  # causal or not, the queries 0 to 3, at positions -5 to -2, see no key
    result = ops.attention(q, k, v, sinks=sinks, causal=causal, window=window, return_lse=True)
    np.testing.assert_array_equal(result[0][:4], 0.0)
    np.testing.assert_array_equal(result[1][:4], np.broadcast_to(sinks, (4, 2)))
    check_attention(result, q, k, v, sinks=sinks, causal=causal, window=window)


def test_one_dominant_key_gives_its_value(ops, kv_type):
    for place in (0, 16, 69):
        q, k, v = inputs(1, 70, 1, 1, 32, kv_type)
        q[...] = 1.0
        q8_0_block = np.frombuffer(np.float16(1.0).tobytes() + bytes([100] * 32), np.uint8)
        k[...] = 0
        k[0, place] = q8_0_block if kv_type == "q8_0" else 100.0
        result = ops.attention(q, k, v, scale=1.0)
        np.testing.assert_array_equal(result[0, 0], widened(v)[0, place])


@pytest.mark.parametrize("size", [1e4, -1e4, 1e30])
def test_scores_far_beyond_exps_range_do_not_overflow(ops, size):
    q, k, v = inputs(2, 40, 2, 1, 8)
    k[...] = size  # equal scores: the result is the mean of the values, whatever their size
    q[...] = np.abs(q)
    result = ops.attention(q, k, v, causal=False)
    expected = np.broadcast_to(v.astype(np.float64).mean(axis=1), (2, 2, 8))
    check(result, expected, 4e-6 * np.abs(v).max(), "attention")


# ---- sequences laid end to end -------------------------------------------------------------------


@pytest.mark.parametrize("causal", [True, False])
def test_each_sequence_attends_to_itself_alone(ops, kv_type, causal):
    lengths_q, lengths_k = [3, 1, 10, 5], [3, 40, 17, 5]
    q, k, v = inputs(19, 65, 4, 2, 32, kv_type)
    ends = cumulative(lengths_q), cumulative(lengths_k)
    attend(ops, q, k, v, cu_seqlens=ends, causal=causal)
    attend(ops, q, k, v, cu_seqlens=ends, causal=causal, window=4, softcap=2.0, sinks=sinks_of(4))


def test_nothing_of_a_sequence_shows_in_another(ops):
    q, k, v = inputs(9, 30, 2, 1, 16)
    ends = {"cu_seqlens_q": np.array([0, 2, 5, 9], np.int32)}
    ends["cu_seqlens_k"] = np.array([0, 9, 21, 30], np.int32)
    before = ops.attention(q, k, v, **ends)
    q[2:5], k[:, 9:21], v[:, 9:21] = np.nan, np.nan, np.nan
    after = ops.attention(q, k, v, **ends)
    assert np.isnan(after[2:5]).all()
    after[2:5] = before[2:5]
    np.testing.assert_array_equal(after, before)


def test_a_sequence_may_lack_queries_or_keys_or_both(ops):
    lengths_q, lengths_k = [0, 2, 0, 3, 4, 0], [0, 0, 5, 1, 6, 0]
    attend(ops, *inputs(9, 12, 2, 1, 8), cu_seqlens=(cumulative(lengths_q), cumulative(lengths_k)))


def test_one_sequence_is_what_it_is_without_lengths(ops, kv_type):
    attend(ops, *inputs(5, 70, 4, 2, 32, kv_type), cu_seqlens=([0, 5], [0, 70]))


def test_many_short_sequences(ops):
    lengths = np.random.default_rng(0).integers(0, 4, 200)
    n = int(lengths.sum())
    attend(ops, *inputs(n, n, 2, 1, 20), cu_seqlens=(cumulative(lengths), cumulative(lengths)))


def test_a_batch_of_one_token_each(ops, kv_type):
    lengths = [1, 300, 65, 1200, 64]
    q, k, v = inputs(5, sum(lengths), 6, 2, 64, kv_type)
    attend(ops, q, k, v, cu_seqlens=(list(range(6)), cumulative(lengths)))


def test_no_sequences_at_all(ops):
    q, k, v = inputs(0, 0, 2, 1, 8)
    zero = np.zeros(1, np.int32)
    assert ops.attention(q, k, v, cu_seqlens_q=zero, cu_seqlens_k=zero).shape == (0, 2, 8)


# ---- results -------------------------------------------------------------------------------------


def test_asking_for_lse_changes_no_bit_of_out(ops, kv_type):
    for n_q, n_kv in [(1, 2000), (40, 70)]:
        q, k, v = inputs(n_q, n_kv, 4, 2, 32, kv_type)
        out, _ = ops.attention(q, k, v, return_lse=True)
        np.testing.assert_array_equal(out, ops.attention(q, k, v))


def test_lse_of_scores_far_beyond_exps_range(ops):
    q, k, v = inputs(1, 64, 1, 1, 1)
    q[...], k[...] = 1.0, 1e6
    _, lse = ops.attention(q, k, v, scale=1.0, return_lse=True)
    check(lse, [[1e6 + math.log(64)]], 4e-7 * (8 + 1e6), "lse")


def test_out_receives_the_result_beside_lse(ops):
    q, k, v = inputs(3, 20, 2, 1, 16)
    with watched(q.shape) as out:
        result, lse = ops.attention(q, k, v, out=out, return_lse=True)
        assert result is out
    check_attention((out, lse), q, k, v)


def test_nothing_around_out_is_written(ops):
    for head_dim in range(1, 71):
        q, k, v = inputs(2, 5, 2, 1, head_dim)
        with watched(q.shape, offset=head_dim % 16) as out:
            assert ops.attention(q, k, v, out=out) is out
        check_attention(out, q, k, v)


def test_every_start(ops, kv_type, small_head):
    q, k, v = inputs(2, 19, 2, 1, small_head, kv_type)
    for offset in range(16):
        attend(ops, placed(q, offset), placed(k, 15 - offset), placed(v, offset))


def test_rows_that_quantize_wrote(ops):
    q = normal((3, 4, 64))
    k, v = (ops.quantize(normal((2, 21, 64), seed), "q8_0") for seed in (1, 2))
    attend(ops, q, k, v)


def test_nan_in_a_query_spoils_that_query_alone(ops):
    q, k, v = inputs(4, 20, 2, 1, 16)
    good = ops.attention(q, k, v, return_lse=True)
    q[1, 1, 3] = np.nan
    for result, before in zip(ops.attention(q, k, v, return_lse=True), good, strict=True):
        assert np.isnan(result[1, 1]).all()
        result[1, 1] = before[1, 1]
        np.testing.assert_array_equal(result, before)


@pytest.mark.parametrize("softcap", [None, 5.0])
def test_nan_in_a_key_or_a_value_that_is_seen_is_not_hidden(ops, softcap):
    for which in (1, 2):
        arrays = inputs(2, 20, 2, 1, 16)
        arrays[which][0, 5, 3] = np.nan
        assert np.isnan(ops.attention(*arrays, softcap=softcap)[..., 3]).all()


@pytest.mark.parametrize("n_rows", [1, 3])
def test_numpy_takes_as_many_queries_at_a_time_as_its_memory_allows(monkeypatch, n_rows):
    module = importlib.import_module("airllm.numpy_ops.attention")
    monkeypatch.setattr(module, "_SCORES_BYTES", 4 * n_rows * 2 * 30)
    for causal in (True, False):
        q, k, v = inputs(10, 30, 4, 2, 16)
        attend(numpy_ops, q, k, v, causal=causal, window=5, sinks=sinks_of(4))


@st.composite
def calls(draw):
    """q, k, v and options of any call that is allowed, all of them small."""
    kv_type = draw(st.sampled_from(["float32", "float16", "q8_0"]))
    n_kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    n_heads = n_kv_heads * group
    head_dim = draw(st.sampled_from([0, 32, 64]) if kv_type == "q8_0" else st.integers(0, 70))
    lengths = draw(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 70)), max_size=4))
    lengths_q, lengths_k = [n for n, _ in lengths], [n for _, n in lengths]
    options = {
        "causal": draw(st.booleans()),
        "scale": draw(st.sampled_from([None, None, 0.0, -0.3, 1.0])),
        "window": draw(st.none() | st.integers(1, 80)),
        "softcap": draw(st.none() | st.sampled_from([0.1, 1.0, 5.0, 1e6])),
        "sinks": draw(st.sampled_from([None, sinks_of(n_heads)])),
        "return_lse": draw(st.booleans()),
    }
    if len(lengths) != 1 or draw(st.booleans()):
        options["cu_seqlens"] = cumulative(lengths_q), cumulative(lengths_k)
    shape = sum(lengths_q), sum(lengths_k), n_heads, n_kv_heads, head_dim
    return inputs(*shape, kv_type, seed=sum(lengths_q)), options


@settings(max_examples=100)
@given(call=calls())
def test_any_call(ops, call):
    arrays, options = call
    attend(ops, *arrays, **options)
