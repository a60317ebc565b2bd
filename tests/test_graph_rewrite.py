"""Fusion: each rewrite gives the same numbers, bit for bit, and leaves alone what it must."""

import numpy as np
import pytest
from extension import ISAS, require_cpp
from tiny_model import FAMILIES, write_tiny_model

from airllm import numpy_ops
from airllm.backends import load_backend
from airllm.graph import rewrite as graph_rewrite
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer, Graph, GraphError, Op
from airllm.graph.rewrite import (
    fuse,
    fuse_add,
    fuse_glu,
    fuse_linears,
    fuse_norm,
    fuse_rope_append,
    only_appends,
)
from airllm.layer_engine import LayerWiseInferenceEngine

TOKENS = np.random.default_rng(1).integers(0, 268, 70).tolist()
MADE = {  # by each rewrite, in a Llama's layer
    fuse_glu: "glu_linear",
    fuse_add: "linear_add",
    fuse_linears: "linear_many",
    fuse_rope_append: "rope_append",
    fuse_norm: "quantized_norm",
}


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def logits(model, backend, **settings):
    """Of a prompt beyond 64 tokens, which rounds activations otherwise, and of single tokens."""
    with LayerWiseInferenceEngine(model.path, backend=backend, **settings) as engine:
        prompt = engine.forward(TOKENS[:66], last_only=False)
        return np.vstack([prompt, *(engine.forward([token]) for token in TOKENS[66:])])


# ---- the same numbers ----------------------------------------------------------------------------


@pytest.mark.parametrize("rewrite", MADE, ids=lambda rewrite: rewrite.__name__)
@pytest.mark.parametrize("type", ["q4_1", "f16"])
def test_each_rewrite_by_itself_changes_no_bit(tmp_path, monkeypatch, backend, rewrite, type):
    model = write_tiny_model(tmp_path, type)
    expected = logits(model, backend, fusion=False)
    monkeypatch.setattr(graph_rewrite, "REWRITES", (rewrite,))
    np.testing.assert_array_equal(logits(model, backend, fusion=True), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("activations", ["auto", "f32"])
def test_all_of_them_change_no_bit_in_any_family(tmp_path, backend, family, activations):
    model = write_tiny_model(tmp_path, "q8_0", sizes=FAMILIES[family])
    plain, fused = (
        logits(model, backend, fusion=fusion, activations=activations) for fusion in (False, True)
    )
    np.testing.assert_array_equal(fused, plain)


@pytest.mark.parametrize(
    "types",
    [
        {"attn_k": "f32", "ffn_up": "f32"},  # groups of other sizes than the quantised ones
        {"attn_q": "f16", "ffn_gate": "f16"},
        {"attn_v": "q4_0", "ffn_up": "q5_1", "attn_output": "f32"},
    ],
)
def test_matrices_of_different_types_may_be_fused(tmp_path, backend, types):
    model = write_tiny_model(tmp_path, "q8_0", types=types)
    plain, fused = (logits(model, backend, fusion=fusion) for fusion in (False, True))
    np.testing.assert_array_equal(fused, plain)


@pytest.mark.skipif(len(ISAS) < 2, reason="one ISA here")
def test_matrices_that_were_packed_for_different_isas_may_be_fused():
    cpp = require_cpp()
    graph, backend, before = llama_half(), load_backend("cpp"), cpp.simd_level
    fused = fuse(graph)
    assert [op.kind for op in fused.ops] == ["quantized_norm", "linear_many", "glu_linear"]
    rng = np.random.default_rng(0)
    weights = {}
    try:
        for index, weight in enumerate(graph.weights):
            cpp.set_isa(ISAS[index % len(ISAS)])
            weights[weight.name] = prepared(backend, weight, rng)
    finally:
        cpp.set_isa(before)
    x = rng.standard_normal((9, 64)).astype(np.float32)
    np.testing.assert_array_equal(run(backend, fused, weights, x), run(backend, graph, weights, x))


@pytest.mark.parametrize("seed", range(25))
def test_random_graphs_give_the_same_bits_when_fused(backend, seed):
    """Outputs over inputs, results that are read late or never, one input of several matrices."""
    rng = np.random.default_rng(seed)
    graph = random_graph(rng)
    fused, runner = fuse(graph), load_backend(backend)
    weights = {weight.name: prepared(runner, weight, rng) for weight in graph.weights}
    for n_tokens in (1, 11):
        x = rng.standard_normal((n_tokens, 64)).astype(np.float32)
        expected = run(runner, graph, weights, x)
        np.testing.assert_array_equal(run(runner, fused, weights, x), expected)


def test_random_graphs_are_fused_at_all():
    kinds = [
        op.kind for seed in range(25) for op in fuse(random_graph(np.random.default_rng(seed))).ops
    ]
    assert all(kinds.count(kind) >= 5 for kind in MADE.values() if kind != "rope_append")


def random_graph(rng: np.random.Generator) -> Graph:
    g = GraphBuilder("random")
    written = [g.external("x", 64), g.external("y", 64)]
    internal: list[Buffer] = []
    norm = g.weight("norm", 64)
    matrices = [g.weight(name, 64, 64) for name in ("q8_0", "q4_1", "f32")]
    for _ in range(30):
        recent = rng.random() < 0.6  # fusion needs results that are read soon
        pool = written[-2:] if recent else written
        first, second = (pool[i] for i in rng.permutation(len(pool))[:2])
        if rng.random() < 0.3:  # two matrices of one input
            second = g.linear(first, matrices[rng.integers(3)])
            first = g.linear(first, matrices[rng.integers(3)])
            written += [first, second]
            internal += [first, second]
        out = None if not internal or rng.random() < 0.6 else internal[rng.integers(len(internal))]
        if rng.random() < 0.15:
            out = written[rng.integers(2)]
        kind = rng.integers(8)
        if kind < 4:
            out = None if out == first else out
            made = g.linear(first, matrices[rng.integers(3)], out=out)
        elif kind == 4:
            made = g.rms_norm(first, norm, 1e-5, out=out)
        elif kind == 5:
            made = g.add(first, second, out=out)
        else:
            made = (g.swiglu, g.geglu)[kind - 6](first, second, out=out)
        if made not in written:
            written.append(made)
            internal.append(made)
    for weight in (norm, *matrices):  # each is used
        g.rms_norm(written[0], norm, 1e-5) if weight is norm else g.linear(written[0], weight)
    return g.build()


def llama_half() -> Graph:
    """A norm, two matrices that share it, and a gated pair."""
    g = GraphBuilder("half")
    x, out = g.external("x", 64), g.external("y", 64)
    h = g.rms_norm(x, g.weight("norm", 64), 1e-5)
    g.linear(h, g.weight("q", 64, 64), out=x)
    g.linear(h, g.weight("k", 64, 64))
    gate, up = (g.linear(h, g.weight(name, 64, 64)) for name in ("gate", "up"))
    g.swiglu(gate, up, out=out)
    return g.build()


def prepared(backend, weight, rng):
    """A random weight; a matrix is quantised as its name says, or as q8_0."""
    values = rng.standard_normal(weight.shape).astype(np.float32)
    if len(weight.shape) == 1:
        return backend.weight("vector", values.view(np.uint8), "f32", weight.shape)
    type = weight.name if weight.name in ("f32", "q4_1") else "q8_0"
    data = values.view(np.uint8) if type == "f32" else numpy_ops.quantize(values, type)
    return backend.weight("matrix", data, type, weight.shape)


def run(backend, graph: Graph, weights, x):
    buffers = {buffer.name: x.copy() for buffer in graph.buffers if buffer.external}
    executor = backend.executor(graph, len(x))
    executor.run(executor.bind(weights), buffers, len(x))
    return np.stack(list(buffers.values()))


# ---- what is fused, and what is not --------------------------------------------------------------


def kinds(graph: Graph) -> list[str]:
    return [op.kind for op in graph.ops]


def test_a_llama_layer_becomes_nine_ops(tmp_path):
    model = write_tiny_model(tmp_path, "q8_0")
    with LayerWiseInferenceEngine(model.path, backend="numpy", fusion=True) as engine:
        layer = engine._model.decoder._layers[0].graph
        head = engine._model.decoder._head.graph
    assert kinds(layer) == [
        "quantized_norm", "linear_many", "rope", "rope_append", "attention", "linear_add",
        "quantized_norm", "glu_linear", "linear_add",
    ]  # fmt: skip
    assert layer.ops[1].weights == ("attn_q", "attn_k", "attn_v")
    assert kinds(head) == ["quantized_norm", "linear"]


def pair(g: GraphBuilder, x: Buffer) -> tuple[Buffer, Buffer]:
    return g.linear(x, g.weight("gate", 64, 64)), g.linear(x, g.weight("up", 64, 64))


def graph_of(build, external=("x", "y")) -> Graph:
    g = GraphBuilder("test")
    build(g, *(g.external(name, 64) for name in external))
    return g.build()


def test_a_gate_that_something_else_reads_too_stays():
    def build(g, x, y):
        gate, up = pair(g, x)
        g.add(g.swiglu(gate, up), gate, out=y)

    assert "glu_linear" not in kinds(fuse_glu(graph_of(build)))


def test_a_gate_whose_input_is_overwritten_stays():
    def build(g, x, y):
        gate, up = pair(g, x)
        g.add(x, y, out=x)
        g.swiglu(gate, up, out=y)

    assert "glu_linear" not in kinds(fuse_glu(graph_of(build)))


def test_a_product_that_the_caller_gets_is_not_fused_away():
    def build(g, x, y):
        g.linear(x, g.weight("w", 64, 64), out=y)
        g.add(x, y, out=x)

    assert kinds(fuse_add(graph_of(build))) == ["linear", "add"]


def test_an_add_onto_the_products_own_input_stays():
    def build(g, x, y):
        g.add(x, g.linear(x, g.weight("w", 64, 64)), out=x)

    assert kinds(fuse_add(graph_of(build, ("x", "y")))) == ["linear", "add"]


def test_a_linear_does_not_move_before_what_reads_its_output_buffer():
    def build(g, x, y):
        g.linear(x, g.weight("a", 64, 64), out=y)
        h = g.add(x, y)
        g.linear(x, g.weight("b", 64, 64), out=y)
        g.add(h, y, out=x)

    assert kinds(fuse_linears(graph_of(build))) == ["linear", "add", "linear", "add"]


def test_linears_before_and_after_a_change_of_their_input_stay_apart():
    def build(g, x, y):
        g.linear(x, g.weight("a", 64, 64))
        g.add(x, y, out=x)
        g.linear(x, g.weight("b", 64, 64))

    assert kinds(fuse_linears(graph_of(build))) == ["linear", "add", "linear"]


def test_rotated_keys_that_something_else_reads_stay():
    def build(g, x, y):
        k = g.rope(x, g.external("table", 16), 4, 16, interleaved=False)
        g.kv_append(k, y, 4, 16)
        g.add(k, y, out=y)

    assert kinds(fuse_rope_append(graph_of(build))) == ["rope", "kv_append", "add"]


def test_a_norm_that_more_than_matrices_read_stays():
    def build(g, x, y):
        h = g.rms_norm(x, g.weight("norm", 64), 1e-5)
        g.add(h, g.linear(h, g.weight("w", 64, 64)), out=y)

    assert "quantized_norm" not in kinds(fuse(graph_of(build)))


def test_a_norm_for_exact_activations_stays():
    g = GraphBuilder("test", activations="f32")
    x = g.external("x", 64)
    g.linear(g.rms_norm(x, g.weight("norm", 64), 1e-5), g.weight("w", 64, 64), out=x)
    assert kinds(fuse_norm(g.build())) == ["rms_norm", "linear"]


def test_a_linear_many_takes_eight_matrices_at_most():
    def build(g, x, y):
        for index in range(11):
            g.linear(x, g.weight(f"w{index}", 64, 64))

    fused = fuse(graph_of(build, ("x", "y")))
    assert [len(op.weights) for op in fused.ops] == [8, 3]


# ---- what a graph of fused ops refuses -----------------------------------------------------------


def refused(fault: str, *ops: Op) -> None:
    g = GraphBuilder("test")
    for buffer in ("x", "y", "z"):
        g.external(buffer, 64)
    g.external("table", 16)
    for name in ("a", "b"):
        g.weight(name, 64, 64)
    g.weight("norm", 64)
    graph = (tuple(g._buffers.values()), tuple(g._weights.values()))
    with pytest.raises(GraphError, match=fault):
        Graph("test", *graph, ops)


AUTO = {"activations": "auto"}


def test_fused_ops_that_do_not_fit_together_are_refused():
    refused("it writes a buffer twice", Op("linear_many", ("x",), "y", ("a", "b"), AUTO, ("y",)))
    refused("has weights 2, expected 1", Op("linear_many", ("x",), "y", ("a", "b"), AUTO))
    refused("cannot overwrite its input x", Op("linear_add", ("x", "y"), "x", ("a",), AUTO))
    refused("it has one output", Op("linear", ("x",), "y", ("a",), AUTO, ("z",)))
    glu = {**AUTO, "activation": "tanh"}
    refused("activation is 'tanh'", Op("glu_linear", ("x",), "y", ("a", "b"), glu))
    heads = {"n_kv_heads": 8, "head_dim": 8, "interleaved": False}
    append = Op("rope_append", ("x", "y", "table"), None, (), heads)
    refused("'table' has width 16, expected an even", append)


def test_what_is_quantised_for_matrices_cannot_be_read_as_numbers():
    norm = Op("quantized_norm", ("x",), "y", ("norm",), {"eps": 1e-5, "activations": "q8"})
    refused("'y' is quantised for matrices", norm, Op("add", ("x", "y"), "z"))
    refused("'y' is quantised for matrices", norm, Op("linear", ("y",), "z", ("a",), AUTO))


# ---- the switch ----------------------------------------------------------------------------------


def test_fusion_is_on_unless_the_variable_or_the_argument_says_no(tmp_path, monkeypatch):
    path = write_tiny_model(tmp_path).path

    def is_fused(**settings) -> bool:
        with LayerWiseInferenceEngine(path, backend="numpy", **settings) as engine:
            return "linear_many" in kinds(engine._model.decoder._layers[0].graph)

    monkeypatch.delenv("AIRLLM_FUSION", raising=False)
    assert is_fused()
    assert not is_fused(fusion=False)
    monkeypatch.setenv("AIRLLM_FUSION", "0")
    assert not is_fused()
    assert is_fused(fusion=True)
    monkeypatch.setenv("AIRLLM_FUSION", "yes")
    with pytest.raises(ValueError, match="AIRLLM_FUSION is 'yes'; expected '0' or '1'"):
        is_fused()


# ---- a part of a graph ---------------------------------------------------------------------------


def test_what_writes_keys_and_values_needs_nothing_that_reads_them() -> None:
    g = GraphBuilder("layer")
    x = g.external("residual", 8)
    h = g.rms_norm(x, g.weight("attn_norm", 8), 1e-6)
    q, k, v = (g.linear(h, g.weight(f"attn_{name}", 8, 8)) for name in "qkv")
    table = g.external("rope", 8)
    q, k = (g.rope(each, table, 1, 8, interleaved=False, out=each) for each in (q, k))
    g.kv_append(k, v, 1, 8)
    a = g.attention(q, 1, 1, 8, scale=1.0)
    g.add(x, g.linear(a, g.weight("attn_output", 8, 8)), out=x)
    part = only_appends(g.build())
    kinds = [op.kind for op in part.ops]
    assert kinds == ["rms_norm", "linear", "linear", "rope", "kv_append"]
    assert [weight.name for weight in part.weights] == ["attn_norm", "attn_k", "attn_v"]
    assert not part.has(q.name)
