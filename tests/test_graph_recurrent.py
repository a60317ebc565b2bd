"""Graphs with recurrent ops: both backends, whatever the tokens come in, and what a profile counts.

What the ops compute is tested in tests/cpp/test_recurrent.cpp and test_numpy_recurrent.py.
"""

import numpy as np
import pytest
from one_op import assert_close, backend_named, random
from sequence_states import new_state

from airllm.backends.profiling import Profile
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Graph, GraphError
from airllm.graph.state import recurrent_places, state_of

WIDTHS = {"x": 24, "q": 12, "k": 12, "decay": 4, "beta": 4, "dt": 3, "b": 10, "c": 10, "y": 24}
WEIGHTS = {"taps": (24, 4), "a": (3,), "skip": (3,), "bias": (3,), "slope": (2,), "shift": (4,)}
CONV, DELTA, SCAN = 3 * 24, 4 * 6 * 6, 24 * 10  # floats of recurrent memory


def graph() -> Graph:
    """A convolution, the delta rule and a scan, one after the other."""
    g = GraphBuilder("recurrent")
    x, q, k, decay, beta, dt, b, c, y = (g.external(n, w) for n, w in WIDTHS.items())
    weights = {name: g.weight(name, *shape) for name, shape in WEIGHTS.items()}
    h = g.conv(x, weights["taps"], silu=True)
    q, k = g.l2_norm(q, 2, 1e-6), g.l2_norm(k, 2, 1e-6)
    decay = g.log_decay(decay, weights["slope"], weights["shift"])
    h = g.delta_rule(q, k, h, decay, g.sigmoid(beta), 4, 2, scale=0.5, tiled=True)
    scan = weights["a"], weights["skip"], weights["bias"]
    h = g.ssm_scan(h, dt, b, c, scan, n_groups=1, dt_limits=(0.1, 2.0))
    g.add(y, h, out=y)
    return g.build()


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    return backend_named(request.param)


def bound(backend, executor):
    values = {
        name: random(*shape, seed=index) for index, (name, shape) in enumerate(WEIGHTS.items())
    }
    values["a"], values["slope"] = -np.abs(values["a"]), -np.abs(values["slope"])
    roles = graph().roles
    return executor.bind(
        {
            name: backend.weight(roles[name], value.view(np.uint8), "f32", value.shape)
            for name, value in values.items()
        }
    )


def inputs(n_tokens: int) -> dict[str, np.ndarray]:
    found = {name: random(n_tokens, width, seed=len(name)) for name, width in WIDTHS.items()}
    return found | {"y": np.zeros((n_tokens, WIDTHS["y"]), np.float32)}


def run(backend, cuts: list[int]) -> np.ndarray:
    """The outputs of all tokens, which come in batches that end at `cuts`."""
    executor = backend.executor(graph(), cuts[-1])
    weights, state = bound(backend, executor), new_state(backend, [state_of(graph())], 64)
    everything, begin = inputs(cuts[-1]), 0
    for end in cuts:
        part = {name: array[begin:end] for name, array in everything.items()}
        executor.run_layers([weights], part, [(end - begin, begin, state.backing)])
        begin = end
    return everything["y"]


def test_each_op_has_memory_of_its_own():
    places = recurrent_places(graph())
    assert list(dict.fromkeys(places)) == [
        0,
        CONV,
        CONV + DELTA,
        CONV + DELTA + SCAN,
    ]
    assert state_of(graph()).recurrent_floats == CONV + DELTA + SCAN


@pytest.mark.parametrize("decays", [4, 24], ids=["of heads", "of channels"])
def test_the_backends_agree(monkeypatch, decays):
    monkeypatch.setitem(WIDTHS, "decay", decays)
    monkeypatch.setitem(WEIGHTS, "shift", (decays,))
    assert_close(run(backend_named("cpp"), [20]), run(backend_named("numpy"), [20]), 1e-5)


@pytest.mark.parametrize("cuts", [[1, 20], [7, 8, 20], list(range(1, 21))])
def test_the_batches_that_tokens_come_in_change_no_bit(backend, cuts):
    np.testing.assert_array_equal(run(backend, cuts), run(backend, [20]))


def test_a_sequence_that_comes_several_times_goes_on_from_itself(backend):
    """As guesses are evaluated: each token is a sequence of its own with the same state."""
    executor = backend.executor(graph(), 6)
    weights, state = bound(backend, executor), new_state(backend, [state_of(graph())], 64)
    found = inputs(6)
    executor.run_layers([weights], found, [(1, i, state.backing) for i in range(6)])
    np.testing.assert_array_equal(found["y"], run(backend, [6]))


def test_sequences_of_a_batch_do_not_touch_each_other(backend):
    executor = backend.executor(graph(), 8)
    weights = bound(backend, executor)
    states = [new_state(backend, [state_of(graph())], 64) for _ in range(2)]
    found = inputs(8)
    executor.run_layers([weights], found, [(5, 0, states[0].backing), (3, 0, states[1].backing)])
    np.testing.assert_array_equal(found["y"][:5], run(backend, [8])[:5])


@pytest.mark.parametrize("cuts", [[23], [1, 2, 3, 4, 10, 23], list(range(1, 24))])
@pytest.mark.parametrize(("taps", "dilation"), [(4, 3), (2, 7), (1, 2)])
def test_the_taps_of_a_convolution_may_lie_apart(backend, cuts, taps, dilation):
    g = GraphBuilder("conv")
    x = g.external("x", 40)
    g.conv(x, g.weight("w", 40, taps), dilation=dilation, out=g.external("y", 40))
    made, x, weight = g.build(), random(23, 40), random(40, taps, seed=1)
    executor, state = backend.executor(made, 23), new_state(backend, [state_of(made)], 64)
    assert state_of(made).recurrent_floats == (taps - 1) * dilation * 40
    w = backend.weight(made.roles["w"], weight.view(np.uint8), "f32", weight.shape)
    y, begin = np.full((23, 40), 7, np.float32), 0
    for end in cuts:
        part, n = {"x": x[begin:end], "y": y[begin:end]}, end - begin
        executor.run_layers([executor.bind({"w": w})], part, [(n, begin, state.backing)])
        begin = end
    before = np.zeros(((taps - 1) * dilation, 40))
    padded = np.concatenate([before, x.astype(np.float64)])
    expected = sum(weight[:, j] * padded[j * dilation : j * dilation + 23] for j in range(taps))
    assert_close(y, expected, 4e-7)


@pytest.mark.parametrize("dilation", [0, 65])
def test_taps_that_lie_too_far_apart_are_refused(dilation):
    g = GraphBuilder("conv")
    with pytest.raises(GraphError, match=f"dilation is {dilation}, expected"):
        g.conv(g.external("x", 4), g.weight("w", 4, 2), dilation=dilation)


def test_a_profile_counts_the_memory_of_the_ops(backend):
    profile = Profile(lambda width: 2 * width)
    executor = profile.wrap(backend.executor(graph(), 4), graph())
    weights, state = bound(backend, executor), new_state(backend, [state_of(graph())], 64)
    executor.run_layers([weights], inputs(4), [(4, 0, state.backing)])
    found = {op.name.split()[0]: op for op in profile.ops()}
    assert found["delta_rule"].flops == 4 * 7 * DELTA
    assert found["ssm_scan"].flops == 4 * 5 * SCAN
    rows = 4 * 4 * (24 + 24)  # 4 tokens of float32, in and out
    assert found["conv"].nbytes == rows + 4 * 24 * 4 + 2 * 4 * CONV


def test_memory_that_is_missing_is_refused():
    backend = backend_named("cpp")
    executor = backend.executor(graph(), 4)
    state = backend.sequence_state([], [(None, 0, CONV, None)])
    state.set_recurrent(np.zeros(CONV, np.float32))
    with pytest.raises(
        ValueError, match=f"has {CONV} floats; this graph needs {CONV + DELTA + SCAN}"
    ):
        executor.run_layers([bound(backend, executor)], inputs(1), [(1, 0, state)])


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"taps": (23, 4)}, r"weight 'taps' is \[23, 4\], expected \[24, 4\]"),
        ({"taps": (24, 9)}, "taps is 9, expected at most 8"),
        ({"a": (4,)}, r"weight 'a' is \[4\], expected \[3\], the heads"),
        ({"slope": (3,)}, r"weight 'slope' is \[3\], expected a length that divides 4"),
        ({"shift": (5,)}, r"expected 5 .the length of weight 'shift'"),
    ],
)
def test_weights_of_another_shape_are_refused(monkeypatch, change, fault):
    monkeypatch.setitem(WEIGHTS, *next(iter(change.items())))
    with pytest.raises(GraphError, match=fault):
        graph()


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"q": 13}, "input .q. is no 2 heads"),
        ({"k": 14}, "input .* has width 14, expected 12"),
        ({"decay": 5}, "length of weight"),
        ({"beta": 5}, "expected 4 .one for each head"),
        ({"c": 11}, "input 'c' has width 11, expected 10"),
        ({"dt": 5}, "input .* is no 5 heads"),
    ],
)
def test_inputs_of_another_width_are_refused(monkeypatch, change, fault):
    monkeypatch.setitem(WIDTHS, *next(iter(change.items())))
    with pytest.raises(GraphError, match=fault):
        graph()
