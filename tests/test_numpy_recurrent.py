"""airllm.numpy_ops.recurrent against float64, and on batches of several sequences."""

import math

import numpy as np
import pytest
import reference
import reference_recurrent
from arrays import normal
from bounds import check_relative

from airllm.numpy_ops import recurrent
from airllm.numpy_ops.recurrent import RecurrentSequence

N = 11  # tokens
# Of the largest value: some 30 roundings of float32, 11 tokens in turn, sums of up to 16 products.
BOUND = 2e-6


def assert_close(actual, exact):
    assert actual.dtype == np.float32
    assert np.abs(actual - exact).max() <= BOUND * np.abs(exact).max()


class Conv:
    """causal_conv with 6 channels."""

    out_shape = (6,)

    def __init__(self, taps=4, silu=True, with_bias=True):
        self.x, self.weight = normal((N, 6), seed=1), normal((6, taps), seed=2)
        self.bias, self.silu = normal(6, seed=3) if with_bias else None, silu
        self.state_shape = (taps - 1, 6)

    def run(self, first, sequences, out):
        recurrent.causal_conv_apply(
            self.x[first : first + len(out)], self.weight, self.bias, self.silu, sequences, out
        )

    def exact(self, state):
        return reference_recurrent.causal_conv(self.x, self.weight, self.bias, self.silu, state)


class Delta:
    """delta_rule with 4 value heads."""

    out_shape = (4, 5)
    state_shape = (4, 8, 5)

    def __init__(self, n_k_heads=2, by_channel=False, tiled=False):
        self.q, self.k = normal((N, n_k_heads, 8), seed=1), normal((N, n_k_heads, 8), seed=2)
        for rows in (self.q, self.k):
            recurrent.l2_norm_apply(rows, 1e-6, rows)
        self.v = normal((N, 4, 5), seed=3)
        self.log_decay = -np.abs(normal((N, 4, 8) if by_channel else (N, 4), seed=4))
        self.beta = (1 / (1 + np.exp(-normal((N, 4), seed=5)))).astype(np.float32)
        self.tiled = tiled

    def run(self, first, sequences, out):
        last = first + len(out)
        arrays = [a[first:last] for a in (self.q, self.k, self.v, self.log_decay, self.beta)]
        recurrent.delta_rule_apply(*arrays, self.tiled, 0.25, sequences, out)

    def exact(self, state):
        arrays = self.q, self.k, self.v, self.log_decay, self.beta
        return reference_recurrent.delta_rule(*arrays, self.tiled, 0.25, state)


class Scan:
    """ssm_scan with 4 heads."""

    out_shape = (4, 3)
    state_shape = (4, 3, 16)

    def __init__(self, n_groups=2, limits=(0.0, math.inf), optional=True):
        self.x, self.dt = normal((N, 4, 3), seed=1), normal((N, 4), seed=2)
        self.b, self.c = normal((N, n_groups, 16), seed=3), normal((N, n_groups, 16), seed=4)
        self.a = -np.exp(normal(4, seed=5))
        self.skip = normal(4, seed=6) if optional else None
        self.bias = normal(4, seed=7) if optional else None
        self.limits = limits

    def run(self, first, sequences, out):
        last = first + len(out)
        arrays = [a[first:last] for a in (self.x, self.dt, self.b, self.c)]
        vectors = self.a, self.skip, self.bias
        recurrent.ssm_scan_apply(*arrays, *vectors, self.limits, sequences, out)

    def exact(self, state):
        arrays = self.x, self.dt, self.b, self.c
        vectors = self.a, self.skip, self.bias
        return reference_recurrent.ssm_scan(*arrays, *vectors, self.limits, state)


class SelectiveScan:
    """selective_scan with 5 channels."""

    out_shape = (5,)
    state_shape = (5, 16)

    def __init__(self):
        self.x, self.dt = normal((N, 5), seed=1), np.exp(normal((N, 5), seed=2))
        self.b, self.c = normal((N, 16), seed=3), normal((N, 16), seed=4)
        self.a = -np.exp(normal((5, 16), seed=5))

    def run(self, first, sequences, out):
        last = first + len(out)
        arrays = [a[first:last] for a in (self.x, self.dt, self.b, self.c)]
        recurrent.selective_scan_apply(*arrays, self.a, sequences, out)

    def exact(self, state):
        return reference_recurrent.selective_scan(self.x, self.dt, self.b, self.c, self.a, state)


CASES = {
    "conv": Conv(),
    "conv of 3 taps": Conv(taps=3, silu=False, with_bias=False),
    "conv of 1 tap": Conv(taps=1),
    "delta": Delta(),
    "delta, tiled": Delta(tiled=True),
    "delta, a decay for each channel": Delta(by_channel=True),
    "delta, a key for each head": Delta(n_k_heads=4),
    "scan": Scan(),
    "scan of one group": Scan(n_groups=1, optional=False),
    "scan with limits": Scan(limits=(0.5, 1.0)),
    "selective scan": SelectiveScan(),
}
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


def evaluate(case, sequences, first=0):
    n = sum(sequence.n_tokens for sequence in sequences)
    out = np.empty((n, *case.out_shape), np.float32)
    case.run(first, sequences, out)
    return out


@each_case
def test_a_sequence_is_within_rounding_of_float64(case):
    state = normal(case.state_shape, seed=9)
    out, after = case.exact(state.copy())
    assert_close(evaluate(case, [RecurrentSequence(N, state)]), out)
    if state.size:
        assert_close(state, after)


@each_case
def test_tokens_one_by_one_give_the_same(case):
    state, other = normal(case.state_shape, seed=9), normal(case.state_shape, seed=9)
    out = evaluate(case, [RecurrentSequence(N, state)])
    for token in range(N):
        one = evaluate(case, [RecurrentSequence(1, other)], token)
        np.testing.assert_array_equal(one[0], out[token])
    np.testing.assert_array_equal(other, state)


@each_case
def test_sequences_of_a_batch_do_not_see_each_other(case):
    lengths = [4, 0, 6, 1]
    states = [normal(case.state_shape, seed=seed) for seed in range(4)]
    others = [state.copy() for state in states]
    out = evaluate(case, [RecurrentSequence(*pair) for pair in zip(lengths, states, strict=True)])
    row = 0
    for length, state, other in zip(lengths, states, others, strict=True):
        alone = evaluate(case, [RecurrentSequence(length, other)], row)
        np.testing.assert_array_equal(out[row : row + length], alone)
        np.testing.assert_array_equal(state, other)
        row += length


@each_case
def test_entries_with_one_state_continue_each_other(case):
    state, other = normal(case.state_shape, seed=9), normal(case.state_shape, seed=9)
    out = evaluate(case, [RecurrentSequence(n, state) for n in (3, 1, 1, 6)])
    np.testing.assert_array_equal(out, evaluate(case, [RecurrentSequence(N, other)]))
    np.testing.assert_array_equal(state, other)


@each_case
def test_no_tokens_leave_the_state_as_it_is(case):
    state = normal(case.state_shape, seed=9)
    assert evaluate(case, []).shape == (0, *case.out_shape)
    evaluate(case, [RecurrentSequence(0, state)])
    np.testing.assert_array_equal(state, normal(case.state_shape, seed=9))


def test_causal_conv_may_overwrite_its_input():
    case, state, other = Conv(), np.zeros((3, 6), np.float32), np.zeros((3, 6), np.float32)
    out = evaluate(case, [RecurrentSequence(N, state)])
    case.run(0, [RecurrentSequence(N, other)], case.x)
    np.testing.assert_array_equal(case.x, out)


def test_causal_conv_of_minus_infinity_has_a_silu_of_zero():
    case, state = Conv(taps=1, with_bias=False), np.zeros((0, 6), np.float32)
    case.x[0] = -np.inf * np.sign(case.weight[:, 0])
    assert (evaluate(case, [RecurrentSequence(N, state)])[0] == 0).all()


def test_l2_norm_of_heads():
    x = normal((3, 4, 7))
    x[2, 1] = 0
    norms = [[math.sqrt(math.fsum(float(v) ** 2 for v in head) + 1e-6) for head in t] for t in x]
    exact = x / np.array(norms)[..., np.newaxis]
    out = np.empty_like(x)
    recurrent.l2_norm_apply(x, 1e-6, out)
    check_relative(out, exact, 2.0**-23)
    recurrent.l2_norm_apply(x, 1e-6, x)
    np.testing.assert_array_equal(x, out)


@pytest.mark.parametrize("n_a", [1, 3, 12])
@pytest.mark.parametrize("biased", [False, True])
def test_log_decay_is_a_times_the_softplus_of_the_biased_row(n_a, biased):
    x, a, bias = normal((5, 12), scale=9), -np.exp(normal(n_a, seed=1)), normal(12, seed=2)
    x[0, 0], x[0, 1] = 300.0, -60.0
    total = x + bias if biased else x
    factors = np.array([a[i * n_a // 12] for i in range(12)], np.float64)
    exact = reference.each(reference_recurrent.softplus, total) * factors
    out = np.empty_like(x)
    recurrent.log_decay_apply(x, bias if biased else None, a, out)
    check_relative(out, exact, 6 * 2.0**-23)


@pytest.mark.parametrize("n_a", [1, 3, 12])
@pytest.mark.parametrize("biased", [False, True])
def test_log_decay_with_a_bound_is_a_share_of_it(n_a, biased):
    x, a, bias = normal((5, 12), scale=3), -np.exp(normal(n_a, seed=1)), normal(12, seed=2)
    z = (x + bias if biased else x).astype(np.float64)
    z = z * np.array([a[i * n_a // 12] for i in range(12)], np.float64)
    out = np.empty_like(x)
    recurrent.log_decay_apply(x, bias if biased else None, a, out, -5.0)
    np.testing.assert_allclose(out, -5.0 / (1.0 + np.exp(z)), rtol=2e-5)


@pytest.mark.parametrize("n_groups", [1, 3, 12])
def test_group_norm_normalises_each_part_of_a_row_by_itself(n_groups):
    x, weight = normal((5, 12)), normal(12, seed=1)
    parts, weights = np.split(x, n_groups, axis=1), np.split(weight, n_groups)
    pairs = zip(parts, weights, strict=True)
    exact = np.concatenate([reference.rms_norm(p, w, 1e-5) for p, w in pairs], axis=1)
    out = np.empty_like(x)
    recurrent.group_norm_apply(x, weight, n_groups, 1e-5, out)
    check_relative(out, exact, 1e-6)
