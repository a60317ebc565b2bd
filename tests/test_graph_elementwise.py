"""Elementwise ops and norms of graphs, by themselves: both backends against float64."""

import numpy as np
import pytest
import reference
from one_op import assert_close, backend_named, random, run

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import GraphError

NUMBERS = {"positive": 0.8, "negative": 1.1, "beta": 0.5, "eps": -1e-6}
LIMITS = {"alpha": 1.702, "limit": 7.0}
SPECIAL = np.array([[np.nan, np.inf, -np.inf, 0.0, -0.0, 1e30, -1e30, 3e-39]], np.float32)


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def xielu(x, positive, negative, beta, eps):
    above = positive * x**2 + beta * x
    return np.where(x > 0, above, negative * (np.expm1(np.minimum(x, eps)) - x) + beta * x)


def swiglu_oai(gate, up, alpha=1.702, limit=7.0, shift=1.0):
    gate, up = np.minimum(gate.astype(np.float64), limit), np.clip(up, -limit, limit)
    return gate * sigmoid(alpha * gate) * (up + shift)


@pytest.mark.parametrize("n_tokens", [1, 5])
@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("sigmoid", sigmoid),
        ("relu_squared", lambda z: np.maximum(z, 0) ** 2),
        ("softplus", lambda z: np.logaddexp(0.0, z)),
        ("gelu_erf", reference.gelu_erf),
    ],
)
def test_activations_by_themselves(backend, name, function, n_tokens):
    x = 3 * random(n_tokens, 700)
    out = run(backend, lambda g, x: getattr(g, name)(x), {"x": x}, {})
    assert_close(out, function(x.astype(np.float64)))


@pytest.mark.parametrize(
    "numbers",
    [
        NUMBERS,
        {"positive": 3.0, "negative": 0.4, "beta": 0.0, "eps": -0.5},
    ],
    ids=["as published", "others"],
)
def test_xielu_is_within_the_bound_that_its_header_states(backend, numbers):
    x = np.concatenate([3 * random(1, 701), -np.geomspace(1e-9, 100, 701)[None]]).astype("f4")
    x[0, 0] = 0.0  # has the bend of the numbers below it
    out = run(backend, lambda g, x: g.xielu(x, **numbers), {"x": x}, {})
    exact = xielu(x.astype(np.float64), **numbers)
    of_below = (numbers["negative"] + numbers["beta"]) * np.maximum(np.abs(x), -numbers["eps"])
    bound = np.where(x > 0, 2.4e-7 * np.abs(exact), 5e-7 * of_below)
    assert (np.abs(out - exact) <= bound).all()


def test_xielu_of_special_values_is_its_limit(backend):
    out = run(backend, lambda g, x: g.xielu(x, **NUMBERS | {"eps": 0.0}), {"x": SPECIAL}, {})
    at_denormal = 0.5 * SPECIAL[0, 7]
    expected = [np.nan, np.inf, np.inf, 0, 0, np.inf, 6e29, at_denormal]
    np.testing.assert_allclose(out, [expected], rtol=1e-5)


def test_sigmoid_of_special_values_is_its_limit(backend):
    out = run(backend, lambda g, x: g.sigmoid(x), {"x": SPECIAL}, {})
    np.testing.assert_array_equal(out, [[np.nan, 1, 0, 0.5, 0.5, 1, 0, 0.5]])


def test_relu_squared_of_special_values_is_its_limit(backend):
    out = run(backend, lambda g, x: g.relu_squared(x), {"x": SPECIAL}, {})
    np.testing.assert_array_equal(out, [[np.nan, np.inf, 0, 0, 0, np.inf, 0, 0]])


@pytest.mark.parametrize("width", [5, 700])
def test_swiglu_oai_holds_gate_and_up_within_the_limit(backend, width):
    gate, up = 8 * random(4, width), 8 * random(4, width, seed=1)
    assert (np.abs(gate) > 7).any()
    assert (np.abs(up) > 7).any()
    inputs = {"gate": gate, "up": up}
    out = run(backend, lambda g, gate, up: g.swiglu_oai(gate, up, **LIMITS), inputs, {})
    assert_close(out, swiglu_oai(gate, up))


@pytest.mark.parametrize("alpha", [0.5, 1.0])
@pytest.mark.parametrize("limit", [0.25, 100.0])
def test_swiglu_oai_takes_any_alpha_and_limit(backend, alpha, limit):
    gate, up = random(2, 300), random(2, 300, seed=1)

    def build(g, gate, up):
        return g.swiglu_oai(gate, up, alpha=alpha, limit=limit)

    out = run(backend, build, {"gate": gate, "up": up}, {})
    assert_close(out, swiglu_oai(gate, up, alpha, limit))


def test_swiglu_oai_adds_another_number_to_up(backend):
    gate, up = 3 * random(2, 300), 3 * random(2, 300, seed=1)

    def build(g, gate, up):
        return g.swiglu_oai(gate, up, alpha=1.0, limit=2.0, shift=0.0)

    out = run(backend, build, {"gate": gate, "up": up}, {})
    assert_close(out, swiglu_oai(gate, up, 1.0, 2.0, 0.0))


def test_swiglu_oai_of_special_values_is_its_limit(backend):
    gate = np.array([[np.nan, 1.0, np.inf, -np.inf, 1.0, 1.0]], np.float32)
    up = np.array([[1.0, np.nan, 1.0, 1.0, np.inf, -np.inf]], np.float32)
    inputs = {"gate": gate, "up": up}
    out = run(backend, lambda g, gate, up: g.swiglu_oai(gate, up, **LIMITS), inputs, {})
    held = sigmoid(1.702)
    np.testing.assert_allclose(
        out, [[np.nan, np.nan, 14 * sigmoid(7 * 1.702), 0, 8 * held, -6 * held]], rtol=1e-6
    )


@pytest.mark.parametrize("factor", [0.22, -12.0, 1.0])
def test_scale_multiplies_by_the_factor_in_float32(backend, factor):
    x = random(3, 1100)
    out = run(backend, lambda g, x: g.scale(x, factor), {"x": x}, {})
    np.testing.assert_array_equal(out, x * np.float32(factor))


@pytest.mark.parametrize("factor", [1.0, -0.5])
def test_scale_multiplies_by_a_weight_too(backend, factor):
    x, weight = random(3, 1100), np.array([0.7], np.float32)
    out = run(backend, lambda g, x, w: g.scale(x, factor, w), {"x": x}, {"w": weight})
    np.testing.assert_array_equal(out, x * (np.float32(factor) * weight[0]))


@pytest.mark.parametrize("width", [2, 700])
def test_scale_may_have_a_weight_for_each_column(backend, width):
    x, weight = random(3, width), random(width, seed=1)
    out = run(backend, lambda g, x, w: g.scale(x, -0.5, w), {"x": x}, {"w": weight})
    np.testing.assert_array_equal(out, x * (np.float32(-0.5) * weight))


def test_a_scale_of_another_length_is_refused():
    g = GraphBuilder("broken")
    with pytest.raises(GraphError, match=r"'w' is \[3\], expected \[1\] or \[4\]"):
        g.scale(g.external("x", 4), weight=g.weight("w", 3))


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize(("width", "n_factors"), [(1, 1), (700, 1), (700, 20), (5, 5)])
def test_scale_rows_multiplies_each_row_by_its_factors(backend, n_tokens, width, n_factors):
    inputs = {"x": random(n_tokens, width), "factors": random(n_tokens, n_factors, seed=1)}
    out = run(backend, lambda g, x, factors: g.scale_rows(x, factors), inputs, {})
    factors = np.repeat(inputs["factors"], width // n_factors, axis=1)
    np.testing.assert_array_equal(out, inputs["x"] * factors)


@pytest.mark.parametrize(("low", "high"), [(-0.5, 0.25), (-3e38, 1.0)])
def test_clamp_holds_values_between_its_limits(backend, low, high):
    x = np.concatenate([SPECIAL, random(1, 700)], axis=1)
    out = run(backend, lambda g, x: g.clamp(x, low, high), {"x": x}, {})
    assert (out[:, 8:] == np.float32(high)).any()
    np.testing.assert_array_equal(out, np.clip(x, np.float32(low), np.float32(high)))


@pytest.mark.parametrize("n_tokens", [1, 7])
@pytest.mark.parametrize("mean", [0.0, -300.0])
def test_layer_norm_takes_the_mean_away(backend, n_tokens, mean):
    x, weight = random(n_tokens, 333) + np.float32(mean), random(333, seed=1)
    out = run(backend, lambda g, x, w: g.layer_norm(x, w, 1e-5), {"x": x}, {"w": weight})
    wide = x.astype(np.float64) - x.astype(np.float64).mean(axis=-1, keepdims=True)
    normed = wide / np.sqrt((wide**2).mean(axis=-1, keepdims=True) + 1e-5)
    assert_close(out, normed * weight)
    assert_close(run(backend, lambda g, x: g.layer_norm(x, None, 1e-5), {"x": x}, {}), normed)


def residual_attention(rows, weight, eps):
    """rows: [n_tokens, n, width], of which each token has a mean."""
    rows = rows.astype(np.float64)
    normed = rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + eps)
    scores = (normed * weight).sum(axis=-1)
    shares = np.exp(scores) / np.exp(scores).sum(axis=-1, keepdims=True)
    return (shares[..., np.newaxis] * rows).sum(axis=1)


@pytest.mark.parametrize("n_tokens", [1, 70])
@pytest.mark.parametrize("width", [1, 333])
@pytest.mark.parametrize("n_earlier", [1, 3])
def test_residual_attention_is_a_mean_of_the_first_earlier_rows_and_x(
    backend, n_tokens, width, n_earlier
):
    x, earlier = random(n_tokens, width), random(n_tokens, 3 * width, seed=1)
    weight = random(width, seed=2) * np.float32(width**-0.5)

    def build(g, x, earlier, w):
        return g.residual_attention(x, earlier, w, n_earlier, 1e-5)

    out = run(backend, build, {"x": x, "earlier": earlier}, {"w": weight})
    rows = np.concatenate([earlier, x], axis=1).reshape(n_tokens, 4, width)
    rows = np.delete(rows, slice(n_earlier, 3), axis=1)
    assert_close(out, residual_attention(rows, weight, 1e-5))


def test_residual_attention_with_large_scores_takes_the_row_with_the_largest(backend):
    x, earlier = np.full((1, 4), 2.0, np.float32), np.full((1, 8), -2.0, np.float32)
    earlier[0, 4:] = 3.0, 3.0, 3.0, -3.0
    weight = np.full(4, 1000.0, np.float32)

    def build(g, x, earlier, w):
        return g.residual_attention(x, earlier, w, 2, 0.0)

    out = run(backend, build, {"x": x, "earlier": earlier}, {"w": weight})
    np.testing.assert_array_equal(out, x)


@pytest.mark.parametrize("place", ["x", "earlier"])
def test_residual_attention_spreads_nan_over_its_row_alone(backend, place):
    inputs = {"x": random(2, 5), "earlier": random(2, 10, seed=1)}
    inputs[place][0, 3] = np.nan

    def build(g, x, earlier, w):
        return g.residual_attention(x, earlier, w, 2, 1e-5)

    out = run(backend, build, inputs, {"w": random(5, seed=2)})
    assert np.isnan(out[0]).all()
    assert np.isfinite(out[1]).all()


@pytest.mark.parametrize("n_a", [1, 5, 30])
def test_log_decay_with_a_bound_is_a_share_of_it(backend, n_a):
    x, bias, a = 3 * random(7, 30), random(30, seed=1), -np.exp(random(n_a, seed=2))
    x[0, :3] = 1e30, -1e30, 0.0

    def build(g, x, a, bias):
        return g.log_decay(x, a, bias, bound=-5.0)

    out = run(backend, build, {"x": x}, {"a": a, "bias": bias})
    z = -np.repeat(a.astype(np.float64), 30 // n_a) * (x.astype(np.float64) + bias)
    assert_close(out, -5.0 * np.exp(-np.logaddexp(0.0, -z)))


IN_PLACE = {
    "sigmoid": (["x"], lambda g, x, out: g.sigmoid(x, out=out)),
    "relu_squared": (["x"], lambda g, x, out: g.relu_squared(x, out=out)),
    "gelu_erf": (["x"], lambda g, x, out: g.gelu_erf(x, out=out)),
    "xielu": (["x"], lambda g, x, out: g.xielu(x, **NUMBERS, out=out)),
    "scale": (["x"], lambda g, x, out: g.scale(x, 0.3, out=out)),
    "swiglu_oai": (["x", "y"], lambda g, x, y, out: g.swiglu_oai(x, y, **LIMITS, out=out)),
    "scale_rows": (["x", "one"], lambda g, x, one, out: g.scale_rows(x, one, out=out)),
    "clamp": (["x"], lambda g, x, out: g.clamp(x, -1.0, 0.5, out=out)),
    "softplus": (["x"], lambda g, x, out: g.softplus(x, out=out)),
}


@pytest.mark.parametrize(
    ("name", "over"),
    [(name, over) for name in IN_PLACE for over in IN_PLACE[name][0] if over != "one"],
)
def test_an_op_may_overwrite_its_input(backend, name, over):
    names, make = IN_PLACE[name]
    values = {"x": random(4, 300), "y": random(4, 300, seed=1), "one": random(4, 1, seed=2)}
    inputs = {key: values[key] for key in names}
    apart = run(backend, lambda g, *buffers: make(g, *buffers, None), inputs, {})
    place = names.index(over)
    copies = {key: value.copy() for key, value in inputs.items()}
    on_it = run(backend, lambda g, *buffers: make(g, *buffers, buffers[place]), copies, {})
    np.testing.assert_array_equal(on_it, apart)


FAULTS = {
    "factor is nan, expected a finite float": lambda g, x, y, z: g.scale(x, float("nan")),
    "factor is 2, expected a finite float": lambda g, x, y, z: g.scale(x, 2),
    r"weight 'w' is \[2\], expected \[1\]": lambda g, x, y, z: g.scale(x, weight=g.weight("w", 2)),
    "eps is 1e-06, expected at most 0": lambda g, x, y, z: g.xielu(x, **NUMBERS | {"eps": 1e-6}),
    "negative is -1.0": lambda g, x, y, z: g.xielu(x, **NUMBERS | {"negative": -1.0}),
    "alpha is 0.0": lambda g, x, y, z: g.swiglu_oai(x, y, alpha=0.0, limit=7.0),
    "limit is -7.0": lambda g, x, y, z: g.swiglu_oai(x, y, alpha=1.0, limit=-7.0),
    "'z' has width 32": lambda g, x, y, z: g.swiglu_oai(x, z, **LIMITS),
    "'z' has width 32, expected a divisor of 48": lambda g, x, y, z: g.scale_rows(
        g.external("half", 48), z
    ),
    "high is 1.0, expected a float of at least 2.0": lambda g, x, y, z: g.clamp(x, 2.0, 1.0),
    r"input 'z' has width 32, expected a multiple of 96": lambda g, x, y, z: g.residual_attention(
        x, z, g.weight("w", 96), 1, 1e-5
    ),
    "expected a multiple of 96, and 2 rows or more": lambda g, x, y, z: g.residual_attention(
        x, y, g.weight("w", 96), 2, 1e-5
    ),
    "n_earlier is 257, above 256": lambda g, x, y, z: g.residual_attention(
        x, g.external("many", 257 * 96), g.weight("w", 96), 257, 1e-5
    ),
    "n_earlier is 0": lambda g, x, y, z: g.residual_attention(x, y, g.weight("w", 96), 0, 1e-5),
    "bound is 1.0, expected it below 0": lambda g, x, y, z: g.log_decay(
        x, g.weight("w", 96), g.weight("b", 96), bound=1.0
    ),
    "cannot overwrite its input factors": lambda g, x, y, z: g.scale_rows(
        g.external("one", 1), g.external("two", 1), out=g.external("two", 1)
    ),
}


@pytest.mark.parametrize("says", FAULTS)
def test_what_does_not_fit_is_refused(says):
    g = GraphBuilder("broken")
    buffers = g.external("x", 96), g.external("y", 96), g.external("z", 32)
    with pytest.raises(GraphError, match=says):
        FAULTS[says](g, *buffers)
