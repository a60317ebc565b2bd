"""Subclasses of NumPy's arrays: what computes differently counts as a plain array, and a mask,
which nothing would look at, is refused."""

import numpy as np
import pytest
from arrays import normal
from messages import check_message

X = normal((4, 4))
KEYS = normal((1, 4, 4))

# Calls with an array of two axes, each with the argument that it becomes.
MATRIX_CALLS = {
    "rms_norm": ("x", lambda ops, x: ops.rms_norm(x, X[0])),
    "silu": ("x", lambda ops, x: ops.silu(x)),
    "gelu": ("x", lambda ops, x: ops.gelu(x)),
    "softmax": ("x", lambda ops, x: ops.softmax(x)),
    "swiglu": ("gate", lambda ops, x: ops.swiglu(x, X)),
    "matmul": ("a", lambda ops, x: ops.matmul(x, X)),
    "linear": ("w", lambda ops, x: ops.linear(X, x)),
    "float32_to_float16": ("x", lambda ops, x: ops.float32_to_float16(x)),
    "float32_to_bfloat16": ("x", lambda ops, x: ops.float32_to_bfloat16(x)),
    "PackedMatrix": ("data", lambda ops, x: ops.PackedMatrix(x, "f32", (4, 4)).dequantize()),
}
MASKED_CALLS = MATRIX_CALLS | {
    "rope": (
        "x",
        lambda ops, x: ops.rope(x.reshape(2, 2, 4), np.arange(2, dtype=np.int32)),
    ),
    "attention": ("q", lambda ops, x: ops.attention(x.reshape(4, 1, 4), KEYS, KEYS)),
    "quantize": ("x", lambda ops, x: ops.quantize(x, "q8_0")),
    "sample": ("logits", lambda ops, x: ops.sample(x.reshape(-1), 0.5)),
    "RawRows": ("data", lambda ops, x: ops.RawRows(x, "f32", (4, 4))),
}


@pytest.mark.parametrize("op", MATRIX_CALLS)
def test_a_matrix_counts_as_the_array_of_its_values(backend, op):
    call = MATRIX_CALLS[op][1]
    result, expected = call(backend, X.view(np.matrix)), call(backend, X)
    assert type(result) is np.ndarray
    np.testing.assert_array_equal(result, expected)


def test_a_matrix_as_out_receives_the_result_and_comes_back_as_an_array(backend):
    out = np.zeros((4, 4), np.float32).view(np.matrix)
    result = backend.swiglu(X, X, out=out)
    assert type(result) is np.ndarray
    assert np.shares_memory(result, out)
    np.testing.assert_array_equal(np.asarray(out), backend.swiglu(X, X))


@pytest.mark.parametrize("op", MASKED_CALLS)
def test_a_masked_array_is_refused(backend, op):
    argument, call = MASKED_CALLS[op]
    masked = np.ma.masked_array(X, mask=X > 0)
    says = [f"{op}: {argument} is a MaskedArray; expected", "mask", f"{argument}.filled(...)"]
    check_message(backend, lambda ops: call(ops, masked), TypeError, says)


def test_a_masked_array_as_out_is_refused(backend):
    out = np.ma.masked_array(np.zeros((4, 4), np.float32))
    says = ["silu: out is a MaskedArray; expected", "mask", "out.filled(...)"]
    check_message(backend, lambda ops: ops.silu(X, out=out), TypeError, says)


def test_a_file_mapped_into_memory_is_an_array_as_any_other(backend, tmp_path):
    mapped = np.memmap(tmp_path / "x", np.float32, "w+", shape=(4, 4))
    mapped[:] = X
    np.testing.assert_array_equal(backend.silu(mapped), backend.silu(X))
