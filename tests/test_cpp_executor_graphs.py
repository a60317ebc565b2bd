"""Graphs that the C++ executor refuses when Python hands them over."""

import pytest
from executor_graphs import GRAPH, Q8, TAKE, matrix, ones
from extension import require_cpp
from messages import check_message
from subprocess_python import run_python

# They say what ops of some kinds read; the executor would divide by these zeros for any op.
OF_OTHER_KINDS = {
    **{"every": 0, "n_choices": 0, "block_size": 0},
    **{"pooled": True, "window": 4, "chunked": True},
}


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
        *(
            ({"ops": [("add", ["x", "x"], "y", [], {name: value})]}, ["add", f"has no {name}"])
            for name, value in OF_OTHER_KINDS.items()
        ),
        ({"buffers": [("x", 4, True), ("y", 5, True)]}, ["'x' has width 4, expected 5"]),
        (
            {
                "buffers": Q8,
                "ops": [("take_columns", ["q"], "y", [], TAKE), ("silu", ["q"], "q", [], {})],
            },
            ["silu", "takes 'q' for float32"],
        ),
        (
            {
                "buffers": [*Q8, ("z", 64, True)],
                "weights": ["w", "v"],
                "ops": [
                    ("take_columns", ["q"], "y", [], TAKE),
                    ("linear_many", ["y"], ["z", "q"], ["w", "v"], {}),
                ],
            },
            ["linear_many", "takes 'q' for float32"],
        ),
        (
            {
                "buffers": [*Q8, ("z", 64, True)],
                "ops": [("merge_add", ["q", "q"], "z", [], {"quantized": True})],
            },
            ["merge_add", "takes 'q' for float32"],
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


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        ([("linear", ["x"], ["y", "z"], ["a"], {})], ["linear -> 'y'", "has several outputs"]),
        ([("linear", ["x"], "y", ["a", "b"], {})], ["linear -> 'y'", "has 2 weights"]),
        ([("linear_many", ["x"], ["y", "z"], ["a"], {})], ["linear_many", "has 1 weights"]),
        ([("linear_many", ["x"], ["y", "y"], ["a", "b"], {})], ["writes a buffer twice"]),
        ([("linear_many", ["x"], ["y", "x"], ["a", "b"], {})], ["cannot overwrite its input"]),
        (
            [("linear_many", ["x"], ["y"] * 9, ["a"] * 9, {})],
            ["linear_many", "has 9 weights, expected 1 to 8"],
        ),
        ([("linear_add", ["x", "y"], "x", ["a"], {})], ["cannot overwrite its input"]),
        ([("glu_linear", ["x"], "y", ["a"], {})], ["glu_linear -> 'y'", "has 1 weights"]),
        ([("glu_linear", ["x"], "y", ["a", "b"], {"activation": "tanh"})], ['"tanh"', '"gelu"']),
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


@pytest.mark.parametrize(
    ("op", "inputs", "weights", "given", "says"),
    [
        ("log_decay", [64], 2, (1,), "is [1, 1], expected [1, 64]"),
        ("hyper_factors", [24], 2, (3,), "is [1, 3], expected [1, 24]"),
        ("selective_scan", [64, 64, 16, 16], 1, (1, 16), "is [1, 16], expected [64, 16]"),
    ],
)
def test_a_vector_that_an_op_would_read_beyond_is_refused(cpp, op, inputs, weights, given, says):
    """A slot may be an op's twice: it must fit both places."""
    names = [f"x{i}" for i in range(len(inputs))]
    buffers = [(name, n, True) for name, n in zip([*names, "y"], [*inputs, inputs[0]], strict=True)]
    attributes = {"n_streams": 4} if op == "hyper_factors" else {}
    executor = cpp.Executor(buffers, ["a"], [(op, names, "y", ["a"] * weights, attributes)], 1)
    check_message(executor, lambda made: made.bind({"a": ones(*given)}), ValueError, [says])


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
