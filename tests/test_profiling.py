"""Profiles: what is counted, that it adds up, and that nothing is different without one."""

import time

import numpy as np
import pytest
from extension import require_cpp
from family_models import write_family_model
from tiny_model import FAMILIES, Sizes, write_tiny_model

from airllm.backends import load_backend
from airllm.backends.profiling import OpProfile, Profile
from airllm.graph.builder import GraphBuilder
from airllm.layer_engine import LayerWiseInferenceEngine


@pytest.fixture(params=["numpy", "cpp"])
def engine(request, tmp_path):
    if request.param == "cpp":
        require_cpp()
    model = write_tiny_model(tmp_path, "f32")
    with LayerWiseInferenceEngine(
        model.path, backend=request.param, kv_type="f32", fusion=False
    ) as engine:
        yield engine


def profiled(engine, *prompts: list[int]) -> dict[str, OpProfile]:
    with engine.profile() as profile:
        for prompt in prompts:
            engine.forward(prompt)
    return {op.name: op for op in profile.ops()}


def test_every_op_is_counted_once_for_each_layer_that_it_runs_in(engine):
    ops = profiled(engine, [1, 2, 3], [4])
    assert ops["embed token_embd"].calls == 2
    assert ops["linear attn_q"].calls == 2 * 3
    assert ops["add"].calls == 2 * 2 * 3
    assert ops["linear output"].calls == 2


def test_flops_are_those_of_the_formula(engine):
    ops = profiled(engine, [1, 2, 3], [4])
    sizes = Sizes()
    assert ops["linear ffn_up"].flops == 2 * sizes.hidden * sizes.ffn * 3 * (3 + 1)
    # Each token sees itself and those before it: 1 + 2 + 3, and 4; q k and weights v, 2 each.
    assert ops["attention"].flops == 4 * sizes.n_heads * sizes.head_dim * 3 * (6 + 4)
    assert ops["linear output"].flops == 2 * sizes.hidden * 268 * (1 + 1)  # last rows only


def test_bytes_are_weights_inputs_outputs_and_what_is_read_of_the_cache(engine):
    ops = profiled(engine, [1, 2, 3], [4])
    sizes, layers = Sizes(), 3
    weights = 4 * sizes.hidden * sizes.ffn
    rows = 4 * (sizes.hidden + sizes.ffn)
    assert ops["linear ffn_up"].nbytes == layers * (2 * weights + (3 + 1) * rows)
    q, kv_row = sizes.n_heads * sizes.head_dim, sizes.n_kv_heads * sizes.head_dim
    positions = 3 + 4  # that the first call saw, and the second
    assert ops["attention"].nbytes == layers * 4 * (2 * q * (3 + 1) + 2 * kv_row * positions)


def flops_and_bytes(build) -> tuple[int, int]:
    """Of the last op that build(g) appends, for a batch of three tokens on the NumPy backend."""
    g = GraphBuilder("op")
    made = build(g)
    g.add(made, made, out=g.external("out", made.width))
    graph, backend = g.build(), load_backend("numpy")
    profile = Profile(kv_row_bytes=0)
    executor = profile.wrap(backend.executor(graph, 3), graph)
    arrays = {b.name: np.ones((3, b.width), np.float32) for b in graph.buffers if b.external}
    weights = {
        w.name: backend.weight(
            graph.roles[w.name], np.ones(w.shape, "f4").view("u1"), "f32", w.shape
        )
        for w in graph.weights
    }
    executor.run(executor.bind(weights), arrays, 3)
    op = profile.ops()[-2]
    return op.flops, op.nbytes


def test_an_elementwise_op_counts_for_each_element() -> None:
    flops, nbytes = flops_and_bytes(lambda g: g.sigmoid(g.external("x", 40)))
    assert (flops, nbytes) == (3 * 3 * 40, 4 * 3 * 2 * 40)


def test_a_route_counts_for_each_expert_and_reads_its_bias() -> None:
    def build(g):
        return g.route(g.external("x", 40), 2, normalized=True, bias=g.weight("b", 40))

    assert flops_and_bytes(build) == (3 * 5 * 40, 4 * 3 * (40 + 4) + 4 * 40)


def test_of_the_biases_of_experts_only_those_that_are_chosen_are_read() -> None:
    def build(g):
        x, route = g.external("x", 2 * 10), g.external("route", 4)
        return g.expert_bias(x, route, g.weight("b", 24, 10))

    assert flops_and_bytes(build) == (3 * 20, 4 * (3 * (20 + 4 + 20) + 3 * 2 * 10))


def test_the_filters_of_a_convolution_and_its_memory_are_read_once_a_call(tmp_path):
    path = write_family_model(tmp_path, "qwen35")  # of 8 layers, 6 have 108 filters of 4 taps
    with LayerWiseInferenceEngine(path, backend="numpy", kv_type="f32") as engine:
        found = profiled(engine, [1, 2, 3], [4])["conv ssm_conv1d"]
    rows, filters, memory = 2 * 108, 4 * 108, 2 * 3 * 108  # of a token; of a call
    assert found.nbytes == 6 * 4 * ((3 + 1) * rows + 2 * (filters + memory))


def test_a_window_bounds_what_attention_sees(tmp_path):
    sizes = FAMILIES["mistral"]  # a window of 20
    model = write_tiny_model(tmp_path, sizes=sizes)
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        engine.forward([1] * 40)
        ops = profiled(engine, [2])
    assert ops["attention"].flops == 4 * sizes.n_heads * sizes.head_dim * 3 * 20


def test_of_experts_only_those_that_are_chosen_are_counted(tmp_path):
    sizes = FAMILIES["qwen3moe"]
    model = write_tiny_model(tmp_path, sizes=sizes)
    with LayerWiseInferenceEngine(model.path, backend="numpy") as engine:
        op = profiled(engine, [2])["expert_linear ffn_up_exps"]
    assert op.flops == 2 * sizes.n_used * sizes.hidden * sizes.ffn * 3
    chosen = 4 * sizes.n_used * sizes.hidden * sizes.ffn
    route, x, out = 2 * sizes.n_used, sizes.hidden, sizes.n_used * sizes.ffn
    assert op.nbytes == 3 * (chosen + 4 * (route + x + out))


def test_the_ops_take_no_more_time_than_the_calls_and_these_no_more_than_all(engine):
    with engine.profile() as profile:
        start = time.perf_counter()
        for token in range(10):
            engine.forward([token])
        seconds = time.perf_counter() - start
    ops = profile.ops()
    assert all(op.seconds > 0 for op in ops)
    assert sum(op.seconds for op in ops) == pytest.approx(profile.op_seconds)
    assert profile.op_seconds < profile.call_seconds < seconds
    op = ops[1]
    assert op.gbytes_per_second == pytest.approx(op.nbytes / op.seconds / 1e9)
    assert op.gflops_per_second == pytest.approx(op.flops / op.seconds / 1e9)


def test_several_sequences_count_together(engine):
    with engine.profile() as profile, engine.sequences(3) as sequences:
        sequences.forward([1, 2, 3])
        sequences.forward([4, 5, 6])
    ops = {op.name: op for op in profile.ops()}
    sizes = Sizes()
    assert ops["linear ffn_up"].calls == 2 * 3
    assert ops["linear ffn_up"].flops == 2 * sizes.hidden * sizes.ffn * 3 * 6
    assert ops["attention"].flops == 4 * sizes.n_heads * sizes.head_dim * 3 * 3 * (1 + 2)


def test_a_profile_changes_no_numbers_and_leaves_no_trace(engine):
    expected = engine.forward([1, 2, 3])
    before = engine._model.decoder._layers
    engine.reset()
    with engine.profile():
        np.testing.assert_array_equal(engine.forward([1, 2, 3]), expected)
    assert engine._model.decoder._layers is before
    with pytest.raises(KeyboardInterrupt), engine.profile():
        raise KeyboardInterrupt
    assert engine._model.decoder._layers is before


def test_seconds_must_be_an_array_for_each_op():
    cpp = require_cpp()
    executor = cpp.Executor(
        [("x", 4, True), ("y", 4, True)], [], [("add", ["x", "x"], "y", [], {})], 4
    )
    x = np.ones((1, 4), np.float32)
    read_only = np.zeros(1)
    read_only.flags.writeable = False
    for seconds in (np.zeros(2), np.zeros(1, np.float32), [0.0], np.zeros((1, 1)), read_only):
        with pytest.raises(ValueError, match=r"seconds is .*; expected .* float64 .* \(1,\)"):
            executor.run(executor.bind({}), {"x": x, "y": x.copy()}, 1, seconds=seconds)
