"""Ops on several residual streams of a token, and on a row's distribution: both backends against
float64."""

import numpy as np
import pytest
from one_op import assert_close, backend_named, random, run

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import GraphError


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def streams(x, n_streams):
    return x.astype(np.float64).reshape(len(x), n_streams, -1)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize(("n_in", "n_out", "width"), [(4, 4, 96), (1, 4, 5), (3, 1, 700)])
def test_streams_are_mixed_by_the_factors_of_the_token(backend, n_tokens, n_in, n_out, width):
    x, factors = random(n_tokens, n_in * width), random(n_tokens, n_out * n_in, seed=1)
    inputs = {"x": x, "factors": factors}
    out = run(backend, lambda g, x, factors: g.mix_streams(x, factors, n_in), inputs, {})
    matrices = factors.astype(np.float64).reshape(n_tokens, n_out, n_in)
    assert_close(out, (matrices @ streams(x, n_in)).reshape(n_tokens, -1))


def hyper_factors(x, scale, base, n, n_iterations, eps):
    """float64 of what ops.SIGNATURES says, one matrix at a time."""
    mixes = x.astype(np.float64)
    mixes = mixes * np.repeat(scale.astype(np.float64), [n, n, n * n][: len(scale)]) + base
    out = np.empty_like(mixes)
    out[:, :n] = 1 / (1 + np.exp(-mixes[:, :n])) + eps
    if x.shape[1] == n:
        return out
    out[:, n : 2 * n] = 2 / (1 + np.exp(-mixes[:, n : 2 * n]))
    for row, to in zip(mixes[:, 2 * n :], out[:, 2 * n :], strict=True):
        m = np.exp(row.reshape(n, n))
        m = m / m.sum(axis=1, keepdims=True) + eps
        for step in range(2 * n_iterations - 1):
            axis = step % 2
            m = m / (m.sum(axis=axis, keepdims=True) + eps)
        to[:] = m.T.ravel()
    return out


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize(("n", "n_iterations"), [(4, 20), (1, 3), (3, 1), (16, 5)])
@pytest.mark.parametrize("whole", [True, False])
def test_factors_of_hyper_connections(backend, n_tokens, n, n_iterations, whole):
    width = n * (2 + n) if whole else n
    x, base = 2 * random(n_tokens, width), random(width, seed=1)
    scale = random(3 if whole else 1, seed=2)

    def build(g, x, scale, base):
        return g.hyper_factors(x, scale, base, n, n_iterations, 1e-6)

    out = run(backend, build, {"x": x}, {"scale": scale, "base": base})
    assert_close(out, hyper_factors(x, scale, base, n, n_iterations, 1e-6))


@pytest.mark.parametrize("eps", [1e-6, 0.3])
def test_factors_of_scores_far_beyond_those_of_exp_are_finite(backend, eps):
    n = 3
    x, base = random(5, 15), np.zeros(15, np.float32)
    x[:, 2 * n :] = 5000 + np.round(100 * x[:, 2 * n :])

    def build(g, x, scale, base):
        return g.hyper_factors(x, scale, base, n, 3, eps)

    out = run(backend, build, {"x": x}, {"scale": np.ones(3, "f4"), "base": base})
    x[:, 2 * n :] -= np.repeat(x[:, 2 * n :].reshape(5, 3, 3).max(axis=2), 3, axis=1)
    assert_close(out, hyper_factors(x, np.ones(3), base, n, 3, eps))


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize("in_place", [True, False])
@pytest.mark.parametrize(("n", "width"), [(4, 300), (1, 5), (16, 128)])
def test_streams_are_mixed_and_a_part_is_added(backend, n_tokens, in_place, n, width):
    x, part = random(n_tokens, n * width), random(n_tokens, width, seed=1)
    factors = random(n_tokens, n * (2 + n), seed=2)

    def build(g, x, part, factors):
        copied = g.scale(x)
        return g.hyper_mix(copied, part, factors, n, out=copied if in_place else None)

    out = run(backend, build, {"x": x, "part": part, "factors": factors}, {})
    matrices = factors[:, 2 * n :].astype(np.float64).reshape(n_tokens, n, n)
    added = factors[:, n : 2 * n, np.newaxis].astype(np.float64) * part[:, np.newaxis]
    assert_close(out, (matrices @ streams(x, n) + added).reshape(n_tokens, -1))


def test_streams_that_hyper_connections_mix_stay_as_large(backend):
    x = 3 * random(50, 24)

    def build(g, x, scale, base):
        return g.hyper_factors(x, scale, base, 4, 20, 1e-6)

    out = run(backend, build, {"x": x}, {"scale": np.ones(3, "f4"), "base": np.zeros(24, "f4")})
    matrices = out[:, 8:].reshape(50, 4, 4)
    np.testing.assert_allclose(matrices.sum(axis=2), 1.0, atol=1e-5)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize("first", [0, 1, 3, 9])
def test_a_part_is_added_to_the_streams_from_the_first_on(backend, n_tokens, first):
    x, part = random(n_tokens, 3 * 33), random(n_tokens, 33, seed=1)
    inputs = {"x": x, "part": part}
    out = run(backend, lambda g, x, part: g.add_to_streams(x, part, first=first), inputs, {})
    expected = x.copy()
    for stream in range(first, 3):
        expected[:, 33 * stream : 33 * (stream + 1)] += part
    np.testing.assert_array_equal(out, expected)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize(("n_streams", "width"), [(3, 96), (1, 5), (2, 701)])
def test_streams_are_multiplied_and_summed_up(backend, n_tokens, n_streams, width):
    a, b = random(n_tokens, n_streams * width), random(n_tokens, n_streams * width, seed=1)
    inputs = {"a": a, "b": b}
    out = run(backend, lambda g, a, b: g.stream_products(a, b, n_streams, 0.3), inputs, {})
    assert_close(out, 0.3 * (streams(a, n_streams) * streams(b, n_streams)).sum(axis=-1))


def test_a_root_keeps_the_sign(backend):
    x = np.array([[4.0, -9.0, 0.0, -0.0, 1e-9, -1e-9, np.inf, -np.inf]], np.float32)
    out = run(backend, lambda g, x: g.signed_root(x, 1e-6), {"x": x}, {})
    np.testing.assert_allclose(out[0], [2, -3, 0, 0, 1e-3, -1e-3, np.inf, -np.inf], rtol=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize(("n_streams", "width"), [(3, 96), (1, 5), (2, 701)])
def test_streams_get_the_size_of_another_row(backend, n_tokens, n_streams, width):
    x, like = random(n_tokens, n_streams * width), 5 * random(n_tokens, width, seed=1)
    inputs = {"x": x, "like": like}
    out = run(backend, lambda g, x, like: g.match_rms(x, like, 1e-5), inputs, {})
    wide = streams(x, n_streams)
    size = np.sqrt((like.astype(np.float64) ** 2).mean(axis=-1))[:, np.newaxis, np.newaxis]
    expected = wide * size / np.sqrt((wide**2).mean(axis=-1, keepdims=True))
    assert_close(out, expected.reshape(n_tokens, -1))


def test_a_stream_of_nothing_stays_nothing_and_a_small_one_small(backend):
    x = np.array([[0.0, 0.0, 1e-4, -1e-4]], np.float32)
    inputs = {"x": x, "like": np.array([[3.0, -3.0]], np.float32)}
    out = run(backend, lambda g, x, like: g.match_rms(x, like, 1e-4), inputs, {})
    np.testing.assert_allclose(out, x * 300, rtol=1e-6)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize("factor", [1.6448536, 0.0, -0.5])
@pytest.mark.parametrize("width", [7, 1000])
def test_what_is_above_the_mean_and_so_many_deviations_is_kept(backend, n_tokens, factor, width):
    x = random(n_tokens, width) + np.float32(2)
    out = run(backend, lambda g, x: g.keep_above(x, factor), {"x": x}, {})
    wide = x.astype(np.float64)
    deviation = np.sqrt(((wide - wide.mean(axis=1, keepdims=True)) ** 2).mean(axis=1))
    least = wide.mean(axis=1) + factor * deviation
    expected = np.maximum(wide - least[:, np.newaxis], 0)
    assert np.abs(out - expected).max() <= 2e-7 * np.abs(x).max()
    assert (out == 0).any()


def test_equal_values_are_neither_above_nor_below(backend):
    x = np.full((2, 9), 3.25, np.float32)
    np.testing.assert_array_equal(run(backend, lambda g, x: g.keep_above(x, 1.0), {"x": x}, {}), 0)


def test_streams_that_do_not_divide_are_refused():
    g = GraphBuilder("broken")
    x, part = g.external("x", 12), g.external("part", 5)
    with pytest.raises(
        GraphError, match=r"mix_streams.*'part' has width 5, expected a multiple of 4"
    ):
        g.mix_streams(x, part, 4)
    with pytest.raises(
        GraphError, match=r"mix_streams.*'x' has width 12, expected a multiple of 5"
    ):
        g.mix_streams(x, part, 5)
    with pytest.raises(
        GraphError, match=r"add_to_streams.*'x' has width 12, expected a multiple of 5"
    ):
        g.add_to_streams(x, part)
    with pytest.raises(GraphError, match=r"match_rms.*'x' has width 12, expected a multiple of 5"):
        g.match_rms(x, part, 1e-5)
    with pytest.raises(GraphError, match=r"keep_above.*factor is inf, expected a finite float"):
        g.keep_above(x, float("inf"))
