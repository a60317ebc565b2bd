"""The C++ executor as Python calls it: what weights, runs, layers and sequences it refuses, and
what it keeps alive.

What its graphs compute is tested in tests/cpp/test_executor.cpp, and through models in
test_engine.py.
"""

import gc
import weakref

import numpy as np
import pytest
from executor_graphs import ATTENTION, GRAPH, LINEAR, X4, X_ATTENTION, matrix, ones
from extension import ISAS
from messages import check_message
from sequence_states import one_page_state

# ---- weights -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weight", "error", "says"),
    [
        (lambda cpp: None, TypeError, ["w is None"]),
        (lambda cpp: b"", TypeError, ["w is a bytes"]),
        (lambda cpp: ones(2, 4, 32), ValueError, ["w has shape (2, 4, 32)", "1 axis, [n], or"]),
        (lambda cpp: ones(4, 32), ValueError, ["'w' is no PackedMatrix"]),
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


CACHE = (1, 16, 4)  # [n_kv_heads, page_rows, head_dim]


def test_a_graph_with_attention_needs_a_state(cpp):
    executor = cpp.Executor(**ATTENTION)
    buffers = {name: ones(2, n) for name, n, _ in X_ATTENTION}
    with pytest.raises(ValueError, match="have 0 tokens, and the batch has 2"):
        executor.run(executor.bind({}), buffers, 2)
    empty = cpp.SequenceState([], [(None, 0, 0, None)])
    with pytest.raises(ValueError, match="this graph needs keys and values"):
        executor.run_layers([executor.bind({})], buffers, [(2, 0, empty)])


@pytest.mark.parametrize(
    ("past", "shape", "error", "says"),
    [
        (0, (2, 16, 4), ValueError, ["2 heads of 4, expected 1 heads of 4"]),
        (0, (1, 16, 8), ValueError, ["1 heads of 8, expected 1 heads of 4"]),
        (15, CACHE, ValueError, ["15 + 2 positions do not fit", "of 16"]),
        (2**64 - 2, CACHE, ValueError, ["positions do not fit"]),
        (-1, CACHE, TypeError, ["sequences holds a tuple"]),
    ],
)
def test_a_state_that_does_not_fit_is_refused(cpp, past, shape, error, says):
    executor = cpp.Executor(**ATTENTION)
    buffers = {name: ones(2, n) for name, n, _ in X_ATTENTION}
    sequences = [(2, past, one_page_state(cpp, ones(1, 2, *shape)))]
    check_message(
        cpp, lambda _: executor.run_layers([executor.bind({})], buffers, sequences), error, says
    )


KEYS = "f32", 1, 4, 4  # type, n_kv_heads, head_dim and value_dim of 256 bytes in a page of 16


def test_a_window_needs_the_pages_of_the_positions_that_it_reaches(cpp):
    append, (*attention, options) = ATTENTION["ops"]
    windowed = (*attention, options | {"window": 8})
    executor = cpp.Executor(**ATTENTION | {"ops": [append, windowed]})
    buffers = {name: ones(1, n) for name, n, _ in X_ATTENTION}
    state = cpp.SequenceState([(16, 512)], [((0, 0, 256, *KEYS), 0, 0, None)])
    state.set_page(0, 1, np.zeros(512, np.uint8))
    executor.run_layers([executor.bind({})], buffers, [(1, 23, state)])  # it reaches position 16
    with pytest.raises(ValueError, match="position 15 is needed, and the KV cache begins at 16"):
        executor.run_layers([executor.bind({})], buffers, [(1, 22, state)])


@pytest.mark.parametrize(
    ("kind", "inputs", "v_offset", "says"),
    [
        ("kv_append", ["k", "v"], 0, "the values are in the keys of the cache"),
        ("latent_append", ["k"], 256, "the values are in the keys of the op"),
    ],
)
def test_values_that_one_has_in_the_keys_and_the_other_apart_are_refused(
    cpp, kind, inputs, v_offset, says
):
    append = (kind, inputs, None, [], {"n_kv_heads": 1, "head_dim": 4})
    executor = cpp.Executor([(name, 4, True) for name in inputs], [], [append], 4)
    state = cpp.SequenceState([(16, 512)], [((0, 0, v_offset, *KEYS), 0, 0, None)])
    state.set_page(0, 0, np.zeros(512, np.uint8))
    buffers = {name: ones(1, 4) for name in inputs}
    with pytest.raises(ValueError, match=says):
        executor.run_layers([executor.bind({})], buffers, [(1, 0, state)])


# ---- layers and sequences ------------------------------------------------------------------------


def test_layers_run_one_after_the_other_and_sequences_keep_their_own_caches(cpp):
    executor = cpp.Executor(**ATTENTION)
    bound, rng = executor.bind({}), np.random.default_rng(0)
    buffers = {name: rng.standard_normal((3, n)).astype(np.float32) for name, n, _ in X_ATTENTION}
    cache = rng.standard_normal((2, 2, 2, *CACHE)).astype(np.float32)  # [sequence, layer, k or v]
    alone = cache.copy()
    sequences = [(1, 4, one_page_state(cpp, cache[0])), (2, 0, one_page_state(cpp, cache[1]))]
    executor.run_layers([bound, bound], buffers, sequences)
    expected = np.empty_like(buffers["y"])
    for rows, past, own in ((slice(0, 1), 4, alone[0]), (slice(1, 3), 0, alone[1])):
        part = {name: array[rows].copy() for name, array in buffers.items()}
        for layer in range(2):
            state = one_page_state(cpp, own[layer : layer + 1])
            executor.run_layers([bound], part, [(rows.stop - rows.start, past, state)])
        expected[rows] = part["y"]
    np.testing.assert_array_equal(buffers["y"], expected)
    np.testing.assert_array_equal(cache, alone)


def test_the_first_layer_says_where_in_the_caches_the_weights_begin(cpp):
    executor = cpp.Executor(**ATTENTION)
    buffers = {name: ones(1, n) for name, n, _ in X_ATTENTION}
    cache = np.zeros((3, 2, *CACHE), np.float32)
    executor.run_layers([executor.bind({})], buffers, [(1, 0, one_page_state(cpp, cache))], 1)
    assert [layer.any() for layer in cache] == [False, True, False]


@pytest.mark.parametrize(
    ("sequences", "first", "error", "says"),
    [
        ([(1, 0, None)], 0, TypeError, ["sequences holds", "not (n_tokens, past, SequenceState)"]),
        ([(1, 0)], 0, TypeError, ["sequences holds a tuple"]),
        ([None], 0, TypeError, ["sequences holds None"]),
        ("lists", 0, TypeError, ["sequences holds a list"]),  # which could let the state go
        ("caches", 1, ValueError, ["state of 2 layers, too few for 2 from layer 1 on"]),
        ("caches", 2**63, ValueError, ["too few for 2"]),
    ],
)
def test_sequences_that_make_no_sense_are_refused(cpp, sequences, first, error, says):
    executor = cpp.Executor(**ATTENTION)
    bound, buffers = executor.bind({}), {name: ones(1, n) for name, n, _ in X_ATTENTION}
    if sequences == "caches":
        sequences = [(1, 0, one_page_state(cpp, np.zeros((2, 2, *CACHE), np.float32)))]
    if sequences == "lists":
        sequences = [[1, 0, one_page_state(cpp, np.zeros((2, 2, *CACHE), np.float32))]]
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
    sequences = [(1, 0, one_page_state(cpp, np.zeros((1, 2, *CACHE), np.float32)))]
    with pytest.raises(TypeError):
        executor.run_layers(bound, buffers, sequences)


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (([(16, 64)], [None]), TypeError, ["tables or layers are not as expected"]),
        (([(16, 64)], [[None, 0, 0, None]]), TypeError, ["not as expected"]),
        (([(16, 64)], [(None, 0, 0)]), TypeError, ["not as expected"]),
        (([(16, 64)], [(None, 0, 0, *[None] * 5)]), TypeError, ["not as expected"]),
        (([(16, "64")], []), TypeError, ["tables or layers are not as expected"]),
        (([(16, 64)], [((0, 0, 0, "f32", 1, 1), 0, 0, None)]), TypeError, ["not as expected"]),
        (([(16, 64)], [((0, 0, 0, "f64", 1, 1, 1), 0, 0, None)]), ValueError, ['type is "f64"']),
        (
            ([(16, 64)], [((0, 0, 0, "q4_0", 1, 32, 32), 0, 0, None)]),
            ValueError,
            ["f32, f16 or q8_0"],
        ),
        (
            ([(16, 64)], [((1, 0, 0, "f32", 1, 1, 1), 0, 0, None)]),
            ValueError,
            ["there is no table 1"],
        ),
        (
            ([(16, 63)], [((0, 0, 0, "f32", 1, 1, 1), 0, 0, None)]),
            ValueError,
            ["do not fit a page of 63"],
        ),
        (([(20, 64)], []), ValueError, ["rows of a page are 20; expected a power of 2"]),
    ],
)
def test_layers_that_make_no_sense_are_refused(cpp, arguments, error, says):
    check_message(cpp, lambda ops: ops.SequenceState(*arguments), error, says)


@pytest.mark.parametrize(
    ("table", "index", "page", "error", "says"),
    [
        (0, 0, None, TypeError, ["page is None"]),
        (0, 0, ones(32), TypeError, ["page is float32"]),
        (0, 0, ones(127, dtype=np.uint8), ValueError, ["127 bytes; expected 128"]),
        (0, 0, ones(2, 64, dtype=np.uint8), ValueError, ["page has shape (2, 64)"]),
        (0, 0, ones(129, dtype=np.uint8)[1:], ValueError, ["not aligned to 4 bytes"]),
        (0, 2, ones(128, dtype=np.uint8), ValueError, ["page 2 does not follow"]),
        (1, 0, ones(128, dtype=np.uint8), ValueError, ["there is no table 1"]),
        (0, -1, ones(128, dtype=np.uint8), TypeError, ["index"]),
    ],
)
def test_pages_that_make_no_sense_are_refused(cpp, table, index, page, error, says):
    state = cpp.SequenceState([(16, 128)], [((0, 0, 64, "f32", 1, 1, 1), 0, 0, None)])
    state.set_page(0, 0, ones(128, dtype=np.uint8))
    check_message(cpp, lambda _: state.set_page(table, index, page), error, says)


def test_a_page_that_is_read_only_is_refused(cpp):
    page = ones(128, dtype=np.uint8)
    page.flags.writeable = False
    state = cpp.SequenceState([(16, 128)], [((0, 0, 64, "f32", 1, 1, 1), 0, 0, None)])
    with pytest.raises(ValueError, match="page is read-only"):
        state.set_page(0, 0, page)


def test_recurrent_memory_has_the_floats_that_the_layers_need(cpp):
    state = cpp.SequenceState([], [(None, 0, 3, None), (None, 3, 2, *[None] * 4)])
    assert state.recurrent_floats == 5
    state.set_recurrent(ones(5))
    with pytest.raises(ValueError, match="has 4 floats; expected 5"):
        state.set_recurrent(ones(4))


def test_a_state_keeps_its_pages(cpp):
    executor = cpp.Executor(**ATTENTION)
    state = one_page_state(cpp, np.full((1, 2, *CACHE), 3, np.float32))
    gc.collect()
    others = [np.full((1, 2, *CACHE), 7, np.float32) for _ in range(100)]
    buffers = {name: np.full((1, n), 3, np.float32) for name, n, _ in X_ATTENTION}
    executor.run_layers([executor.bind({})], buffers, [(1, 5, state)])
    np.testing.assert_allclose(buffers["y"], 3)
    assert len(others) == 100


def test_a_state_keeps_its_recurrent_memory(cpp):
    """And lets it go for another, and with the state."""
    state, gone = cpp.SequenceState([], [(None, 0, 3, None)]), []
    for _ in range(2):
        memory = ones(3)
        weakref.finalize(memory, gone.append, 1)
        state.set_recurrent(memory)
        del memory
        gc.collect()
    assert len(gone) == 1
    del state
    assert len(gone) == 2


def test_a_state_lets_go_of_the_pages_that_it_does_not_keep(cpp):
    state, gone = cpp.SequenceState([(16, 128)], [((0, 0, 64, "f32", 1, 1, 1), 0, 0, None)]), []
    for number in range(3):
        page = ones(128, dtype=np.uint8)
        weakref.finalize(page, gone.append, number)
        state.set_page(0, number, page)
        del page
    state.keep_pages(0, 1, 2)
    assert sorted(gone) == [0, 2]


def test_what_a_product_writes_second_is_quantised_anew(cpp):
    """The executor keeps the integers of a product's input for the next product of it. Here another
    product, of matrices in float32, writes that input meanwhile, as its second output."""
    widths = {"x": 32, "y": 4, "input": 32, "before": 4, "after": 4}
    ops = [
        ("linear", ["input"], "before", ["q"], {}),
        ("linear_many", ["x"], ["y", "input"], ["small", "square"], {}),
        ("linear", ["input"], "after", ["q"], {}),
    ]
    buffers = [(name, width, True) for name, width in widths.items()]
    executor = cpp.Executor(buffers, ["q", "small", "square"], ops, 4)
    random = np.random.default_rng(0).standard_normal
    w = random((4, 32)).astype(np.float32)
    q = cpp.PackedMatrix(cpp.quantize(w, "q8_0"), "q8_0", (4, 32))
    bound = executor.bind({"q": q, "small": matrix(cpp, 4, 32), "square": matrix(cpp, 32, 32)})
    arrays = {name: random((2, width)).astype(np.float32) for name, width in widths.items()}
    expected = cpp.linear(arrays["input"], q)
    executor.run(bound, arrays, 2)
    np.testing.assert_array_equal(arrays["before"], expected)
    np.testing.assert_array_equal(arrays["after"], cpp.linear(arrays["input"], q))


def test_an_executor_for_one_token_has_room_for_the_input_of_each_of_its_experts(cpp):
    """Each expert's input of 64 values is rounded to two blocks of 80 bytes."""
    buffers = [("x", 4 * 64, True), ("route", 8, True), ("y", 4 * 8, True)]
    op = ("expert_linear", ["x", "route"], "y", ["w"], {"n_used": 4})
    assert cpp.Executor(buffers, ["w"], [op], 1).nbytes >= 4 * 2 * 80
