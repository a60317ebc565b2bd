"""silu, gelu and swiglu against float64, within the bounds that kernels.h states."""

import numpy as np
import pytest
import reference
from arrays import SIZES, normal, placed, watched
from bounds import SMALLEST_NORMAL, TINY, check, check_ulp


def silu_floor(x):
    """Below -87.33, exp(x) is a denormal and may be taken for 0."""
    return np.where(x < -87.33, 2.0**-119, TINY)


EDGES = np.array(
    [
        sign * v
        for v in (0.0, TINY, SMALLEST_NORMAL, 1e-20, 88.0, 104.0, 1e4, 3e38)
        for sign in (1, -1)
    ]
    + [np.inf, -np.inf, np.nan],
    np.float32,
)
# Every binade of both signs, and the range in which the functions bend.
SWEEP = np.concatenate(
    [np.linspace(-110, 110, 4097), np.geomspace(1e-44, 3e38, 600), -np.geomspace(1e-44, 3e38, 600)]
).astype(np.float32)


def check_silu(actual, x):
    check_ulp(actual, reference.silu(x), 3, floor=silu_floor(x), what="silu")


def check_gelu_tanh(actual, x):
    exact = reference.gelu_tanh(x)
    wide = np.where(np.isfinite(x), x, 0.0).astype(np.float64)
    v = 2 * np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)
    relative = 2e-7 * (2 + np.abs(v)) * np.abs(np.where(np.isfinite(exact), exact, 0.0))
    floor = np.where(v < -87, 1e-36, TINY)
    check(actual, exact, np.maximum(relative, floor), "gelu tanh")


def check_gelu_erf(actual, x):
    exact = reference.gelu_erf(x)
    finite = np.where(np.isfinite(exact), np.abs(exact), 0.0)
    bound = np.where(finite < 1e-36, np.where(x < -13.21, 1e-38, 1e-42), 1e-6 * finite)
    check(actual, exact, bound, "gelu erf")


UNARY = {
    "silu": (lambda ops, x, **kw: ops.silu(x, **kw), check_silu),
    "gelu_tanh": (lambda ops, x, **kw: ops.gelu(x, **kw), check_gelu_tanh),
    "gelu_erf": (lambda ops, x, **kw: ops.gelu(x, "none", **kw), check_gelu_erf),
}


@pytest.fixture(params=UNARY)
def unary(request):
    return UNARY[request.param]


def test_every_size_has_its_tail_computed_with_the_same_care(ops, unary):
    function, check_result = unary
    for n in SIZES:
        x = normal(n, seed=n, scale=4.0)
        check_result(function(ops, placed(x)), x)


def test_the_whole_range_of_float32_is_within_the_bound(ops, unary):
    function, check_result = unary
    check_result(function(ops, SWEEP), SWEEP)


def test_infinities_nan_denormals_and_huge_values_give_the_limit(ops, unary):
    function, check_result = unary
    check_result(function(ops, EDGES), EDGES)


def test_a_nan_touches_no_other_element(ops, unary):
    function, check_result = unary
    for n in (1, 15, 33, 70):
        for at in {0, n // 2, n - 1}:
            x = normal(n, seed=n)
            x[at] = np.nan
            check_result(function(ops, x), x)


def test_an_array_may_start_at_any_float(ops, unary):
    function, check_result = unary
    x = normal(67)
    for offset in range(16):
        check_result(function(ops, placed(x, offset)), x)


def test_out_is_filled_and_returned_and_nothing_around_it_is_touched(ops, unary):
    function, check_result = unary
    for n in SIZES[:-1]:
        x = normal(n, seed=n)
        with watched((n,), offset=n % 16) as out:
            assert function(ops, placed(x), out=out) is out
        check_result(out, x)


def test_in_place_gives_the_same_as_into_a_new_array(ops, unary):
    function, _ = unary
    for n in (0, 1, 7, 64, 70, 4097):
        x = normal(n, seed=n, scale=4.0)
        expected = function(ops, x)
        assert function(ops, x, out=x) is x
        np.testing.assert_array_equal(x, expected)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3), (2, 0, 4), (2, 3, 5), (1, 1, 1, 17)])
def test_any_shape_is_kept(ops, unary, shape):
    function, check_result = unary
    x = normal(shape)
    check_result(function(ops, x), x)


def test_gelu_is_the_tanh_form_unless_told_otherwise(backend):
    x = normal(100, scale=2.0)
    np.testing.assert_array_equal(backend.gelu(x), backend.gelu(x, "tanh"))
    assert (backend.gelu(x) != backend.gelu(x, approximate="none")).any()


# ---- swiglu --------------------------------------------------------------------------------------


def check_swiglu(actual, gate, up):
    with np.errstate(invalid="ignore"):
        floor = np.maximum(silu_floor(gate) * np.nan_to_num(np.abs(up), posinf=0.0), TINY)
    check_ulp(actual, reference.swiglu(gate, up), 4, floor=floor, what="swiglu")


def test_swiglu_of_every_size(ops):
    for n in SIZES:
        gate, up = normal(n, seed=n, scale=4.0), normal(n, seed=n + 1000)
        check_swiglu(ops.swiglu(placed(gate), placed(up, offset=3)), gate, up)


def test_swiglu_of_the_whole_range_of_gates(ops):
    up = normal(SWEEP.shape)
    check_swiglu(ops.swiglu(SWEEP, up), SWEEP, up)


def test_swiglu_of_every_pair_of_edge_values(ops):
    # Not an infinite up: where silu(gate) underflows to 0, 0 * inf is NaN.
    grids = np.meshgrid(EDGES, EDGES[~np.isinf(EDGES)])
    gate, up = (np.ascontiguousarray(grid) for grid in grids)
    check_swiglu(ops.swiglu(gate, up), gate, up)


def test_swiglu_of_an_infinite_up_is_infinite_with_the_gates_sign(ops):
    gate = np.array([1.0, -1.0, 50.0, -50.0], np.float32)
    up = np.full(4, np.inf, np.float32)
    np.testing.assert_array_equal(ops.swiglu(gate, up), gate * np.inf)


def test_swiglu_into_its_gate_or_its_up(ops):
    for n in (1, 17, 70):
        gate, up = normal(n, seed=1), normal(n, seed=2)
        expected = ops.swiglu(gate, up)
        for target in (0, 1):
            inputs = [gate.copy(), up.copy()]
            assert ops.swiglu(*inputs, out=inputs[target]) is inputs[target]
            np.testing.assert_array_equal(inputs[target], expected)


def test_swiglu_of_an_array_with_itself(ops):
    x = normal(35)
    check_swiglu(ops.swiglu(x, x), x, x)


def test_swiglu_writes_nothing_around_out(ops):
    for n in SIZES[:-1]:
        gate, up = normal(n, seed=1), normal(n, seed=2)
        with watched((n,), offset=5) as out:
            assert ops.swiglu(gate, up, out=out) is out
        check_swiglu(out, gate, up)
