"""The C++ executor as Python calls it: what it refuses, what it keeps alive, threads, forks, exit.

What its graphs compute is tested in tests/cpp/test_executor.cpp, and through models in
test_engine.py. What may end the process is tried in a process of its own.
"""

import gc
import threading

import numpy as np
import pytest
from extension import ISAS, require_cpp
from messages import check_message
from subprocess_python import run_python

# pybind11 allocates what was never initialised; CPython < 3.14 ends such threads by unwinding.
UNFIXED = pytest.mark.xfail(strict=True, reason="pybind11 and CPython end the process here")

X4 = [("x", 4, True), ("y", 4, True)]
ADD = [("add", ["x", "x"], "y", [], {})]
Q8 = [("q", 64, True), ("y", 32, True)]
TAKE = {"offset": 32, "quantized": True}
GRAPH = {"buffers": X4, "weights": [], "ops": ADD, "max_tokens": 4}
LINEAR = {
    "buffers": [("x", 32, True), ("y", 4, True)],
    "weights": ["w"],
    "ops": [("linear", ["x"], "y", ["w"], {})],
    "max_tokens": 4,
}
ATTENTION = {
    "buffers": [("q", 8, True), ("k", 4, True), ("v", 4, True), ("y", 8, True)],
    "weights": [],
    "ops": [
        ("kv_append", ["k", "v"], None, [], {"n_kv_heads": 1, "head_dim": 4}),
        ("attention", ["q"], "y", [], {"n_heads": 2, "n_kv_heads": 1, "head_dim": 4}),
    ],
    "max_tokens": 4,
}


X_ATTENTION = ATTENTION["buffers"]


@pytest.fixture
def cpp():
    return require_cpp()


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def matrix(cpp, n, k):
    """Ones, so that a product is a sum."""
    return cpp.PackedMatrix(ones(n, k), "f32", (n, k))


# ---- graphs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({"ops": [("sub", ["x", "x"], "y", [], {})]}, ["'sub'", "there are:", "add"]),
        ({"ops": [("add", ["x", "z"], "y", [], {})]}, ["nothing is named 'z'"]),
        ({"ops": [("add", ["x"], "y", [], {})]}, ["add -> 'y'", "1 inputs, expected 2"]),
        ({"ops": [("add", ["x", "x"], None, [], {})]}, ["add", "has no output"]),
        ({"ops": [("add", ["x", "x"], "y", ["w"], {})]}, ["nothing is named 'w'"]),
        ({"ops": [("add", ["x", "x"], "y", [], {"eps": 1, "size": 2})]}, ["add", "'size'"]),
        ({"ops": [("rms_norm", ["x"], "y", [], {})]}, ["rms_norm -> 'y'", "has no weight"]),
        ({"ops": [("rope", ["x", "x"], "y", [], {})]}, ["rope -> 'y'", "heads is out of range"]),
        ({"buffers": [("x", 4, True), ("y", 5, True)]}, ["'x' has width 4, expected 5"]),
        (
            {
                "buffers": Q8,
                "ops": [("take_columns", ["q"], "y", [], TAKE), ("silu", ["q"], "q", [], {})],
            },
            ["silu", "takes 'q' for float32"],
        ),
        (
            {"buffers": Q8, "ops": [("take_columns", ["q"], "y", [], TAKE | {"offset": 64})]},
            ["take_columns", "columns from 64 to 96 of 64"],
        ),
        (
            {"buffers": Q8, "ops": [("take_columns", ["q"], "y", [], TAKE | {"offset": 5})]},
            ["take_columns", "5 values are no whole blocks of 32"],
        ),
        (
            {
                "buffers": [("q", 64, False), ("y", 32, True)],
                "ops": [("take_columns", ["q"], "y", [], TAKE)],
            },
            ["take_columns", "'q' is internal"],
        ),
        (
            {
                "buffers": [("x", 4, True), ("y", 4, False)],
                "ops": [("put_columns", ["x"], "y", [], {})],
            },
            ["put_columns", "writes a part of its buffer"],
        ),
        (
            {
                "buffers": [("x", 4, True), ("y", 3, True)],
                "ops": [("merge_add", ["y", "x"], "y", [], {})],
            },
            ["merge_add", "the parts' width is no multiple"],
        ),
    ],
)
def test_a_graph_that_does_not_fit_together_is_a_value_error(cpp, graph, says):
    check_message(cpp, lambda ops: ops.Executor(**GRAPH | graph), ValueError, says)


NO_GRAPHS = [
    {"buffers": None},
    {"buffers": 5},
    {"weights": [None]},
    {"ops": None},
    {"max_tokens": -1},
    {"max_tokens": 2**70},
    {"max_tokens": 1.5},
]
NO_PARTS = [
    {"buffers": "x"},
    {"buffers": [5]},
    {"buffers": [("x", 4)]},
    {"buffers": [("x", -1, True)]},
    {"buffers": [("x", 2**70, True)]},
    {"buffers": [(5, 4, True)]},
    {"buffers": [("\ud800", 4, True)]},
    {"ops": [5]},
    {"ops": [("add",)]},
    {"ops": [("add", None, "y", [], {})]},
    {"ops": [("add", ["x", None], "y", [], {})]},
    {"ops": [("add", ["x", "x"], "y", [], None)]},
    {"ops": [("add", ["x", "x"], "y", [], {"eps": "a"})]},
    {"ops": [("add", ["x", "x"], "y", [], {"n_heads": -1})]},
]


@pytest.mark.parametrize("graph", NO_GRAPHS, ids=repr)
def test_what_is_no_graph_is_a_type_error(cpp, graph):
    with pytest.raises(TypeError):
        cpp.Executor(**GRAPH | graph)


@pytest.mark.parametrize("graph", NO_PARTS, ids=ascii)
def test_what_is_no_buffer_or_op_is_a_type_error(cpp, graph):
    with pytest.raises(TypeError):
        cpp.Executor(**GRAPH | graph)


def test_widths_and_token_counts_of_zero_are_fine(cpp):
    executor = cpp.Executor(
        buffers=[("x", 0, True), ("h", 0, False), ("y", 0, True)],
        weights=["w"],
        ops=[("add", ["x", "x"], "h", [], {}), ("rms_norm", ["h"], "y", ["w"], {})],
        max_tokens=2,
    )
    bound = executor.bind({"w": ones(0)})
    executor.run(bound, {"x": ones(2, 0), "y": ones(2, 0)}, 2)
    executor.run(bound, {"x": ones(0, 0), "y": ones(0, 0)}, 0)


HUGE = """
import numpy as np, tensor_ops_cpp
try:
    executor = tensor_ops_cpp.Executor(
        buffers=[("x", {width}, {external}), ("h", {width}, False)],
        weights=[],
        ops=[("add", ["x", "x"], "h", [], {{}})],
        max_tokens={max_tokens},
    )
    x = {{"x": np.ones((4, {width}), np.float32)}} if {external} else {{}}
    executor.run(executor.bind({{}}), x, min({max_tokens}, 4))
except (MemoryError, ValueError) as error:
    print("refused")
"""


@pytest.mark.parametrize(
    ("width", "max_tokens", "external"),
    [
        (4, 2**58, True),  # too much, but a number that 64 bits hold
        (4, 2**62, True),  # 2^66 bytes
        (2**60, 4, False),
        (2**62, 1, False),
    ],
)
def test_buffers_beyond_any_memory_are_refused(width, max_tokens, external):
    require_cpp()
    done = run_python(HUGE.format(width=width, max_tokens=max_tokens, external=external))
    assert (done.returncode, done.stdout) == (0, "refused\n")


# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "error", "says"),
    [
        (lambda cpp: None, TypeError, ["w is None"]),
        (lambda cpp: b"", TypeError, ["w is a bytes"]),
        (lambda cpp: ones(4, 32), ValueError, ["w has shape (4, 32)", "1 axis"]),
        (lambda cpp: ones(4), ValueError, ["'w' is no PackedMatrix"]),
        (lambda cpp: matrix(cpp, 5, 32), ValueError, ["'w' is [5, 32], expected [4, 32]"]),
        (
            lambda cpp: cpp.RawRows(ones(4, 32), "f32", (4, 32)),
            ValueError,
            ["'w' is no PackedMatrix"],
        ),
    ],
)
def test_a_weight_that_does_not_fit_its_slot_is_refused_by_name(cpp, weight, error, says):
    executor = cpp.Executor(**LINEAR)
    check_message(cpp, lambda ops: executor.bind({"w": weight(ops)}), error, says)


EXPERTS = {
    "buffers": [("x", 32, True), ("route", 4, True), ("y", 8, True)],
    "weights": ["w"],
    "ops": [("expert_linear", ["x", "route"], "y", ["w"], {"n_used": 2, "shared": True})],
    "max_tokens": 4,
}


@pytest.mark.parametrize(
    ("weight", "error", "says"),
    [
        (lambda cpp: [], ValueError, ["'w' has no experts"]),
        (lambda cpp: [matrix(cpp, 4, 32), None], TypeError, ["'w' holds", "no PackedMatrix"]),
        (lambda cpp: matrix(cpp, 4, 32), ValueError, ["'w' is no list of PackedMatrix"]),
        (lambda cpp: [matrix(cpp, 5, 32)], ValueError, ["'w' is [10, 32], expected [8, 32]"]),
        (
            lambda cpp: [matrix(cpp, 4, 32), matrix(cpp, 4, 64)],
            ValueError,
            ["'w' has experts of different shapes"],
        ),
    ],
)
def test_experts_that_do_not_fit_their_slot_are_refused_by_name(cpp, weight, error, says):
    executor = cpp.Executor(**EXPERTS)
    check_message(cpp, lambda ops: executor.bind({"w": weight(ops)}), error, says)


@pytest.mark.parametrize("weights", [{}, {"v": 1}, {5: 1}])
def test_a_weight_that_is_missing_is_named(cpp, weights):
    with pytest.raises(ValueError, match="weight 'w' is missing"):
        cpp.Executor(**LINEAR).bind(weights)


def test_weights_bound_by_another_executor_are_refused(cpp):
    norm = cpp.Executor(X4, ["w"], [("rms_norm", ["x"], "y", ["w"], {})], 4)
    linear = cpp.Executor(**LINEAR)
    x = {"x": ones(1, 32), "y": ones(1, 4)}
    with pytest.raises(ValueError, match="'w' is no PackedMatrix"):
        linear.run(norm.bind({"w": ones(4)}), x, 1)
    with pytest.raises(ValueError, match="bound by another executor"):
        linear.run(cpp.Executor(**GRAPH).bind({}), x, 1)


def test_bound_weights_keep_their_memory(cpp):
    executor = cpp.Executor(
        [("x", 4096, True), ("y", 4096, True)], ["w"], [("rms_norm", ["x"], "y", ["w"], {})], 1
    )
    bound = executor.bind({"w": np.full(4096, 3, np.float32)})
    gc.collect()
    others = [np.full(4096, 7, np.float32) for _ in range(100)]  # in its place, were it free
    y = ones(1, 4096)
    executor.run(bound, {"x": ones(1, 4096), "y": y}, 1)
    np.testing.assert_allclose(y, 3, rtol=1e-5)
    assert len(others) == 100


def test_memory_that_raw_rows_look_at_cannot_be_taken_away(cpp):
    memory = bytearray(ones(4, 32).tobytes())
    rows = cpp.RawRows(memory, "f32", (4, 32))
    with pytest.raises(BufferError):
        memory.extend(b"more")
    assert rows.shape == (4, 32)


@pytest.mark.skipif(len(ISAS) < 2, reason="one ISA here")
def test_a_matrix_that_was_packed_on_one_isa_runs_on_every_other(cpp):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 64)).astype(np.float32)
    packed = cpp.quantize(rng.standard_normal((40, 64)).astype(np.float32), "q4_0")
    expected = x.astype(np.float64) @ cpp.dequantize(packed, "q4_0").astype(np.float64).T
    executor = cpp.Executor(
        [("x", 64, True), ("y", 40, True)],
        ["w"],
        [("linear", ["x"], "y", ["w"], {"activations": "f32"})],
        5,
    )
    before = cpp.simd_level
    try:
        for isa in ISAS:
            cpp.set_isa(isa)
            bound = executor.bind({"w": cpp.PackedMatrix(packed, "q4_0", (40, 64))})
            for other in ISAS:
                cpp.set_isa(other)
                y = ones(5, 40)
                executor.run(bound, {"x": x, "y": y}, 5)
                np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    finally:
        cpp.set_isa(before)


# ---- runs ----------------------------------------------------------------------------------------


READ_ONLY = ones(2, 4)
READ_ONLY.flags.writeable = False


@pytest.mark.parametrize(
    ("buffers", "n_tokens", "error", "says"),
    [
        ({"y": None}, 2, TypeError, ["y is None"]),
        ({"y": ones(2, 4, dtype=np.float64)}, 2, TypeError, ["y is float64", "expected float32"]),
        ({"x": [[1.0] * 4] * 2}, 2, TypeError, ["x is a list"]),
        ({"x": memoryview(ones(2, 4))}, 2, TypeError, ["x is a memoryview"]),
        ({"y": ones(4, 2).T}, 2, ValueError, ["y has shape", "C-contiguous"]),
        ({"y": READ_ONLY}, 2, ValueError, ["'y' is read-only"]),
        ({"y": ones(3, 4)}, 2, ValueError, ["y has shape (3, 4); expected (2, 4)"]),
        ({"y": ones(2, 5)}, 2, ValueError, ["y has shape (2, 5); expected (2, 4)"]),
        ({}, 3, ValueError, ["x has shape (2, 4); expected (3, 4)"]),
        ({}, 2**63, ValueError, ["x has shape (2, 4)"]),
        ({}, -1, TypeError, ["n_tokens"]),
        ({}, 2.0, TypeError, ["n_tokens"]),
    ],
)
def test_a_batch_that_does_not_fit_is_refused_and_nothing_has_run(
    cpp, buffers, n_tokens, error, says
):
    executor = cpp.Executor(**GRAPH)
    valid = {"x": ones(2, 4), "y": np.zeros((2, 4), np.float32)}
    with_fault = valid | buffers
    check_message(cpp, lambda _: executor.run(executor.bind({}), with_fault, n_tokens), error, says)
    assert not valid["y"].any()


def test_more_tokens_than_the_executor_was_made_for_are_refused(cpp):
    executor = cpp.Executor(**GRAPH)
    with pytest.raises(ValueError, match="n_tokens is 5; this executor takes up to 4"):
        executor.run(executor.bind({}), {"x": ones(5, 4), "y": ones(5, 4)}, 5)


def test_a_buffer_that_is_missing_is_named_and_one_too_many_does_not_matter(cpp):
    executor = cpp.Executor(**GRAPH)
    bound = executor.bind({})
    with pytest.raises(ValueError, match="buffer 'y' is missing"):
        executor.run(bound, {"x": ones(1, 4)}, 1)
    y = ones(1, 4)
    executor.run(bound, {"x": ones(1, 4), "y": y, "z": None}, 1)
    assert (y == 2).all()


def test_elementwise_ops_may_write_over_what_they_read(cpp):
    executor = cpp.Executor(**GRAPH)
    x = ones(3, 4)
    executor.run(executor.bind({}), {"x": x, "y": x}, 3)
    assert (x == 2).all()


def test_a_buffer_that_is_read_before_it_is_written_holds_some_number(cpp):
    executor = cpp.Executor(
        [("h", 4, False), ("y", 4, True)], [], [("add", ["h", "h"], "y", [], {})], 4
    )
    y = ones(4, 4)
    executor.run(executor.bind({}), {"y": y}, 4)
    assert y.shape == (4, 4)  # and the process is still there


CACHE = (1, 8, 4)  # [n_kv_heads, capacity, head_dim]


@pytest.mark.parametrize(
    ("past", "k", "v", "error", "says"),
    [
        (0, None, None, ValueError, ["needs k_cache and v_cache"]),
        (0, ones(*CACHE), None, TypeError, ["v_cache is None"]),
        (0, ones(1, 8), ones(1, 8), ValueError, ["k_cache has shape (1, 8); expected 3 axes"]),
        (0, ones(*CACHE), ones(1, 7, 4), ValueError, ["v_cache has shape (1, 7, 4)"]),
        (0, ones(*CACHE), ones(*CACHE, dtype=np.float16), TypeError, ["v_cache is float16"]),
        (0, ones(*CACHE, dtype=np.int16), ones(*CACHE), TypeError, ["k_cache is int16"]),
        (0, ones(2, 8, 4), ones(2, 8, 4), ValueError, ["2 heads of 4, expected 1 of 4"]),
        (0, ones(1, 8, 8), ones(1, 8, 8), ValueError, ["1 heads of 8, expected 1 of 4"]),
        (0, ones(1, 0, 4), ones(1, 0, 4), ValueError, ["0 + 2 positions do not fit"]),
        (7, ones(*CACHE), ones(*CACHE), ValueError, ["7 + 2 positions do not fit", "of 8"]),
        (2**64 - 2, ones(*CACHE), ones(*CACHE), ValueError, ["positions do not fit"]),
        (-1, ones(*CACHE), ones(*CACHE), TypeError, ["past"]),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(cpp, past, k, v, error, says):
    executor = cpp.Executor(**ATTENTION)
    buffers = {"q": ones(2, 8), "k": ones(2, 4), "v": ones(2, 4), "y": ones(2, 8)}
    check_message(
        cpp, lambda _: executor.run(executor.bind({}), buffers, 2, past, k, v), error, says
    )


# ---- layers and sequences ------------------------------------------------------------------------


def test_layers_run_one_after_the_other_and_sequences_keep_their_own_caches(cpp):
    executor = cpp.Executor(**ATTENTION)
    bound, rng = executor.bind({}), np.random.default_rng(0)
    buffers = {name: rng.standard_normal((3, n)).astype(np.float32) for name, n, _ in X_ATTENTION}
    cache = rng.standard_normal((2, 2, 2, *CACHE)).astype(np.float32)  # [sequence, layer, k or v]
    alone = cache.copy()
    sequences = [(1, 4, kv_layers(cpp, cache[0])), (2, 0, kv_layers(cpp, cache[1]))]
    executor.run_layers([bound, bound], buffers, sequences)
    expected = np.empty_like(buffers["y"])
    for rows, past, own in ((slice(0, 1), 4, alone[0]), (slice(1, 3), 0, alone[1])):
        part = {name: array[rows].copy() for name, array in buffers.items()}
        for k, v in own:
            executor.run(bound, part, rows.stop - rows.start, past, k, v)
        expected[rows] = part["y"]
    np.testing.assert_array_equal(buffers["y"], expected)
    np.testing.assert_array_equal(cache, alone)


def test_the_first_layer_says_where_in_the_caches_the_weights_begin(cpp):
    executor = cpp.Executor(**ATTENTION)
    buffers = {name: ones(1, n) for name, n, _ in X_ATTENTION}
    cache = np.zeros((3, 2, *CACHE), np.float32)
    executor.run_layers([executor.bind({})], buffers, [(1, 0, kv_layers(cpp, cache))], 1)
    assert [layer.any() for layer in cache] == [False, True, False]


@pytest.mark.parametrize(
    ("sequences", "first", "error", "says"),
    [
        ([(1, 0, None)], 0, TypeError, ["sequences holds", "not (n_tokens, past, KvLayers)"]),
        ([(1, 0)], 0, TypeError, ["sequences holds a tuple"]),
        ([None], 0, TypeError, ["sequences holds None"]),
        ("caches", 1, ValueError, ["caches of 2 layers, too few for 2 from layer 1 on"]),
        ("caches", 2**63, ValueError, ["too few for 2"]),
    ],
)
def test_sequences_that_make_no_sense_are_refused(cpp, sequences, first, error, says):
    executor = cpp.Executor(**ATTENTION)
    bound, buffers = executor.bind({}), {name: ones(1, n) for name, n, _ in X_ATTENTION}
    if sequences == "caches":
        sequences = [(1, 0, kv_layers(cpp, np.zeros((2, 2, *CACHE), np.float32)))]
    check_message(
        cpp,
        lambda _: executor.run_layers([bound, bound], buffers, sequences, first),
        error,
        says,
    )


@pytest.mark.parametrize("bound", [None, [None], [5], 5])
def test_what_are_no_weights_is_a_type_error(cpp, bound):
    executor = cpp.Executor(**ATTENTION)
    buffers = {name: ones(1, n) for name, n, _ in X_ATTENTION}
    sequences = [(1, 0, kv_layers(cpp, np.zeros((1, 2, *CACHE), np.float32)))]
    with pytest.raises(TypeError):
        executor.run_layers(bound, buffers, sequences)


@pytest.mark.parametrize(
    ("layers", "error", "says"),
    [
        ([None], TypeError, ["layers holds None", "pairs"]),
        ([(ones(*CACHE),)], TypeError, ["layers holds a tuple", "pairs"]),
        ([(ones(1, 8), ones(1, 8))], ValueError, ["k_cache has shape (1, 8)"]),
        ([(ones(*CACHE), ones(*CACHE, dtype=np.float16))], TypeError, ["v_cache is float16"]),
    ],
)
def test_caches_that_make_no_sense_are_refused(cpp, layers, error, says):
    check_message(cpp, lambda ops: ops.KvLayers(layers), error, says)


def test_the_caches_of_a_sequence_keep_their_memory(cpp):
    executor = cpp.Executor(**ATTENTION)
    layers = kv_layers(cpp, np.full((1, 2, *CACHE), 3, np.float32))
    gc.collect()
    others = [np.full((1, 2, *CACHE), 7, np.float32) for _ in range(100)]
    buffers = {name: np.full((1, n), 3, np.float32) for name, n, _ in X_ATTENTION}
    executor.run_layers([executor.bind({})], buffers, [(1, 5, layers)])
    np.testing.assert_allclose(buffers["y"], 3)
    assert len(others) == 100


def kv_layers(cpp, cache):
    """cache: [n_layers, 2, n_kv_heads, capacity, head_dim]"""
    return cpp.KvLayers([(k, v) for k, v in cache])


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        ([("linear", ["x"], ["y", "z"], ["a"], {})], ["linear -> 'y'", "has several outputs"]),
        ([("linear", ["x"], "y", ["a", "b"], {})], ["linear -> 'y'", "has 2 weights"]),
        ([("linear_many", ["x"], ["y", "z"], ["a"], {})], ["linear_many", "has 1 weights"]),
        ([("linear_many", ["x"], ["y", "y"], ["a", "b"], {})], ["writes a buffer twice"]),
        ([("linear_many", ["x"], ["y", "x"], ["a", "b"], {})], ["cannot overwrite its input"]),
        ([("linear_many", ["x"], ["y"] * 9, ["a"] * 9, {})], ["too many matrices"]),
        ([("linear_add", ["x", "y"], "x", ["a"], {})], ["cannot overwrite its input"]),
        ([("glu_linear", ["x"], "y", ["a"], {})], ["glu_linear -> 'y'", "has 1 weights"]),
        ([("glu_linear", ["x"], "y", ["a", "b"], {"activation": "tanh"})], ["'tanh'", "'gelu'"]),
        (
            [("rope_append", ["x", "y", "z"], None, [], {"n_kv_heads": 1, "head_dim": 32})],
            ["rope_append", "the table's width is 33"],
        ),
    ],
)
def test_fused_ops_that_do_not_fit_together_are_value_errors(cpp, ops, says):
    buffers = [("x", 32, True), ("y", 32, True), ("z", 33, True)]
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        cpp.Executor(buffers, ["a", "b"], ops, 4)
    assert all(word in str(caught.value) for word in says), caught.value


def test_each_matrix_of_a_fused_op_must_fit_its_output(cpp):
    buffers = [("x", 32, True), ("y", 8, True), ("z", 4, True)]
    many = cpp.Executor(
        buffers, ["a", "b"], [("linear_many", ["x"], ["y", "z"], ["a", "b"], {})], 4
    )
    with pytest.raises(ValueError, match=r"'b' is \[8, 32\], expected \[4, 32\]"):
        many.bind({"a": matrix(cpp, 8, 32), "b": matrix(cpp, 8, 32)})
    glu = cpp.Executor(buffers, ["a", "b"], [("glu_linear", ["x"], "y", ["a", "b"], {})], 4)
    with pytest.raises(ValueError, match=r"'b' is \[4, 32\], expected \[8, 32\]"):
        glu.bind({"a": matrix(cpp, 8, 32), "b": matrix(cpp, 4, 32)})


@pytest.mark.parametrize("external", [True, False])
def test_a_graph_that_computes_token_ids_is_refused(cpp, external):
    """Ids are checked before anything runs, so nothing may write them after that."""
    with pytest.raises(ValueError, match="tokens"):
        cpp.Executor(
            buffers=[("tokens", 1, external), ("x", 1, True), ("y", 32, True)],
            weights=["rows"],
            ops=[("add", ["x", "x"], "tokens", [], {}), ("embed", ["tokens"], "y", ["rows"], {})],
            max_tokens=4,
        )


# ---- threads, forks, the end ---------------------------------------------------------------------


def wide_product(cpp):
    """An executor whose run takes a millisecond or two, its weights, and its buffers."""
    executor = cpp.Executor(
        [("x", 512, True), ("y", 2048, True)], ["w"], [("linear", ["x"], "y", ["w"], {})], 64
    )
    return executor, executor.bind({"w": matrix(cpp, 2048, 512)})


def run_in_threads(work, n):
    """Runs `work` in n threads at once; what one of them raises is raised here."""
    errors = []

    def guarded():
        try:
            work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=guarded) for _ in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_executors_of_several_threads_do_not_disturb_one_another(cpp):
    def work():
        executor, bound = wide_product(cpp)
        x, y = ones(64, 512), ones(64, 2048)
        for _ in range(20):
            y[:] = 0
            executor.run(bound, {"x": x, "y": y}, 64)
            assert (y == 512).all()

    run_in_threads(work, 4)


def test_an_executor_that_is_running_refuses_a_second_thread(cpp):
    executor, bound = wide_product(cpp)
    refused = []

    def work():
        x, y = ones(64, 512), ones(64, 2048)
        for _ in range(20):
            y[:] = 0
            try:
                executor.run(bound, {"x": x, "y": y}, 64)
            except RuntimeError as error:
                refused.append(str(error))
            else:
                assert (y == 512).all()

    run_in_threads(work, 4)
    assert set(refused) <= {
        "Executor.run: it runs on another thread already; use one executor for each thread"
    }


@pytest.mark.parametrize("threads", [0, 1, 3, 100, 2**31 - 1])
def test_any_number_of_threads_gives_the_same_result(cpp, threads):
    executor, bound = wide_product(cpp)
    y = np.zeros((64, 2048), np.float32)
    executor.run(bound, {"x": ones(64, 512), "y": y}, 64, threads=threads)
    assert (y == 512).all()


def test_a_negative_number_of_threads_is_refused(cpp):
    executor = cpp.Executor(**GRAPH)
    with pytest.raises(ValueError, match="threads is negative"):
        executor.run(executor.bind({}), {"x": ones(1, 4), "y": ones(1, 4)}, 1, threads=-1)


PRODUCT = """
import os, sys, threading, time, numpy as np, tensor_ops_cpp

def product():
    executor = tensor_ops_cpp.Executor(
        [("x", 512, True), ("y", 2048, True)], ["w"], [("linear", ["x"], "y", ["w"], {})], 64
    )
    w = np.ones((2048, 512), np.float32)
    bound = executor.bind({"w": tensor_ops_cpp.PackedMatrix(w, "f32", (2048, 512))})
    buffers = {"x": np.ones((64, 512), np.float32), "y": np.zeros((64, 2048), np.float32)}
    return executor, bound, buffers

executor, bound, buffers = product()
started = threading.Event()

def work(until):
    while not until():
        executor.run(bound, buffers, 64)
        started.set()
"""


def test_a_child_that_is_forked_in_the_middle_of_a_run_can_run_graphs_of_its_own():
    require_cpp()
    done = run_python(
        PRODUCT + "stop = []\n"
        "thread = threading.Thread(target=work, args=(lambda: stop,))\n"
        "thread.start()\n"
        "started.wait()\n"
        "for _ in range(5):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        executor, bound, buffers = product()\n"
        "        executor.run(bound, buffers, 64)\n"
        "        os._exit(0 if (buffers['y'] == 512).all() else 1)\n"
        "    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "stop.append(True)\n"
        "thread.join()\n"
    )
    assert (done.returncode, done.stdout.split()) == (0, ["0"] * 5), done.stderr


@UNFIXED
@pytest.mark.parametrize(
    "use",
    [
        "executor.run(bound, {'x': x, 'y': x}, 128)",
        "tensor_ops_cpp.matmul(x, x)",
        "tensor_ops_cpp.linear(x, packed)",
    ],
)
def test_the_interpreter_can_end_while_a_thread_computes(use):
    """A daemon thread that comes back from C++ finds no interpreter; that must not abort."""
    require_cpp()
    done = run_python(
        "import threading, numpy as np, tensor_ops_cpp\n"
        "x = np.ones((128, 128), np.float32)\n"
        "packed = tensor_ops_cpp.PackedMatrix(x, 'f32', x.shape)\n"
        "executor = tensor_ops_cpp.Executor(\n"
        "    [('x', 128, True), ('y', 128, True)], [], [('add', ['x', 'x'], 'y', [], {})], 128)\n"
        "bound, started = executor.bind({}), threading.Event()\n"
        "def work():\n"
        "    while True:\n"
        f"        {use}\n"
        "        started.set()\n"
        "threading.Thread(target=work, daemon=True).start()\n"
        "started.wait()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@UNFIXED
@pytest.mark.parametrize(
    "use", ["PackedMatrix.shape", "RawRows.shape", "Executor.nbytes", "PackedMatrix.__repr__()"]
)
def test_an_object_that_was_never_initialised_is_an_error(use):
    require_cpp()
    kind, attribute = use.split(".")
    done = run_python(
        f"import tensor_ops_cpp\nobject = tensor_ops_cpp.{kind}.__new__(tensor_ops_cpp.{kind})\n"
        f"try:\n    print(object.{attribute})\nexcept TypeError:\n    print('refused')\n"
    )
    assert (done.returncode, done.stdout) == (0, "refused\n")
