"""linear_many: several matrices that share an input, as one call."""

import numpy as np
import pytest
from arrays import normal
from file_rows import QUANTIZED, file_rows

TYPES = ["f32", "f16", *QUANTIZED]
K = 512


def matrices(ops, types, sizes=(40, 8, 17)):
    rows = [file_rows(n, K, t, seed=n) for n, t in zip(sizes, types, strict=True)]
    return [ops.PackedMatrix(r.data, t, (n, K)) for r, t, n in zip(rows, types, sizes, strict=True)]


@pytest.mark.parametrize("activations", ["auto", "q8", "q16", "f32"])
@pytest.mark.parametrize("n_tokens", [1, 9, 70])
def test_the_results_are_those_of_single_calls_bit_for_bit(ops, n_tokens, activations):
    x = normal((n_tokens, K))
    for types in (
        ["q4_0"] * 3,
        ["q8_0", "f16", "q6_k"],
        ["mxfp4", "iq4_nl", "q4_0"],
        ["f32", "f32", "q4_1"],
    ):
        ws = matrices(ops, types)
        single = [ops.linear(x, w, activations=activations) for w in ws]
        together = ops.linear_many(x, ws, activations=activations)
        assert isinstance(together, tuple)
        for one, other in zip(single, together, strict=True):
            np.testing.assert_array_equal(one, other)


def test_out_receives_the_results_and_is_returned(ops):
    x, ws = normal((3, K)), matrices(ops, ["q4_0", "q8_0", "q4_1"])
    out = [np.full((3, w.shape[0]), np.nan, np.float32) for w in ws]
    results = ops.linear_many(x, ws, out=out)
    assert all(result is array for result, array in zip(results, out, strict=True))
    assert not any(np.isnan(array).any() for array in out)


def test_no_matrices_give_no_results(ops):
    assert ops.linear_many(normal((3, K)), []) == ()


def test_what_is_no_packed_matrix_is_refused(ops):
    with pytest.raises(TypeError, match="linear_many: ws holds a ndarray; expected a list or tup"):
        ops.linear_many(normal((3, K)), [normal((4, K))])


def test_one_matrix_without_a_list_is_refused(ops):
    (w,) = matrices(ops, ["q4_0"], sizes=(8,))
    with pytest.raises(TypeError, match="ws is a PackedMatrix; expected a list or tuple"):
        ops.linear_many(normal((3, K)), w)


@pytest.mark.parametrize(
    "out",
    [
        pytest.param([np.empty((3, 8), np.float32)], id="too few"),
        pytest.param(np.empty((2, 3, 8), np.float32), id="an array"),
    ],
)
def test_outputs_that_are_no_list_of_an_array_for_each_matrix_are_refused(ops, out):
    ws = matrices(ops, ["q4_0", "q4_0"], sizes=(8, 8))
    with pytest.raises(TypeError, match="expected a list or tuple of 2 arrays"):
        ops.linear_many(normal((3, K)), ws, out=out)


def test_outputs_that_overlap_each_other_are_refused(ops):
    ws = matrices(ops, ["q4_0", "q4_0"], sizes=(8, 8))
    out = np.empty((3, 8), np.float32)
    with pytest.raises(ValueError, match="two arrays of out overlap"):
        ops.linear_many(normal((3, K)), ws, out=[out, out])


def test_a_wrong_depth_is_refused_with_both_shapes(ops):
    ws = matrices(ops, ["q4_0"], sizes=(8,))
    with pytest.raises(ValueError, match=r"x has shape \(3, 64\); expected \[\.\.\., 512\], as w"):
        ops.linear_many(normal((3, 64)), ws)


@pytest.mark.parametrize("shift", [-7, 7])
def test_arrays_of_out_that_share_a_single_element_are_refused(backend, shift):
    w = backend.PackedMatrix(np.ones((4, 3), np.float32), "f32", (4, 3))
    memory = np.zeros(22, np.float32)
    out = [memory[at : at + 8].reshape(2, 4) for at in (7, 7 + shift)]
    with pytest.raises(ValueError, match="linear_many: two arrays of out overlap"):
        backend.linear_many(np.ones((2, 3), np.float32), [w, w], out=out)
    assert (memory == 0).all()
