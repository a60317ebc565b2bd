"""Arguments that one operation cannot take, by what the error says about them.

"..." stands for words in between. test_ops_errors.py has what is common to all operations.
"""

import numpy as np
import pytest
from arrays import normal
from messages import check_message

X = normal((2, 4))
WEIGHT = normal(4)
POSITIONS = np.arange(2, dtype=np.int32)
Q = normal((2, 2, 4))
K = normal((1, 3, 4))
ROW = normal(32)
BLOCKS = np.zeros((2, 34), np.uint8)
K_Q8_0 = np.zeros((1, 3, 34), np.uint8)
ENDS_Q = np.array([0, 1, 2], np.int32)
ENDS_K = np.array([0, 1, 3], np.int32)


def ends(*values):
    return np.array(values, np.int32)


def in_sequences(ops, ends_q=ENDS_Q, ends_k=ENDS_K):
    return ops.attention(Q, K, K, cu_seqlens_q=ends_q, cu_seqlens_k=ends_k)


def packed(ops):
    return ops.PackedMatrix(np.zeros((3, 34), np.uint8), "q8_0", (3, 32))


TYPE_ERRORS = {
    "rms_norm: weight is float64; expected float32...weight.astype(np.float32)": (
        lambda ops: ops.rms_norm(X, WEIGHT.astype(np.float64))
    ),
    "eps": lambda ops: ops.rms_norm(X, WEIGHT, "1"),
    "approximate": lambda ops: ops.gelu(X, None),
    "swiglu: up is float64; expected float32": lambda ops: ops.swiglu(X, X.astype(np.float64)),
    "rope: positions is int64; expected int32...positions.astype(np.int32)": (
        lambda ops: ops.rope(Q, POSITIONS.astype(np.int64))
    ),
    "rope: positions is a list; expected": lambda ops: ops.rope(Q, [0, 1]),
    "rope: inv_freq is float64; expected float32": (
        lambda ops: ops.rope(Q, POSITIONS, inv_freq=np.ones(2))
    ),
    "interleaved": lambda ops: ops.rope(Q, POSITIONS, interleaved=1),
    "causal": lambda ops: ops.attention(Q, K, K, causal=1),
    "matmul: b is float16; expected float32": (
        lambda ops: ops.matmul(X, np.zeros((4, 3), np.float16))
    ),
    "linear: w is float64; expected float32 or float16": (
        lambda ops: ops.linear(X, X.astype(np.float64))
    ),
    "linear: w is a list; expected...PackedMatrix": lambda ops: ops.linear(X, [[1.0]]),
    "activations": lambda ops: ops.linear(X, X, activations=8),
    "type": lambda ops: ops.quantize(ROW, None),
    "dequantize: data is int8; expected uint8": (
        lambda ops: ops.dequantize(BLOCKS.astype(np.int8), "q8_0")
    ),
    "dequantize: data is a bytes; expected": lambda ops: ops.dequantize(bytes(34), "q8_0"),
    "float16_to_float32: x is float32; expected float16": lambda ops: ops.float16_to_float32(X),
    "bfloat16_to_float32: x is float32; expected uint16": lambda ops: ops.bfloat16_to_float32(X),
    "attention: k is float64; expected float32 or float16 or uint8...k.astype(np.float32)": (
        lambda ops: ops.attention(Q, K.astype(np.float64), K)
    ),
    "attention: k is a list; expected a numpy array of float32 or float16 or uint8": (
        lambda ops: ops.attention(Q, [0.0], K)
    ),
    "attention: v is int8; expected float32 or float16 or uint8...v.astype(np.float32)": (
        lambda ops: ops.attention(Q, K, K.astype(np.int8))
    ),
    "attention: v is float16; expected float32, as k is. Convert with v.astype(np.float32).": (
        lambda ops: ops.attention(Q, K, K.astype(np.float16))
    ),
    'attention: v is float32; expected uint8, as k is. Convert with quantize(v, "q8_0").': (
        lambda ops: ops.attention(Q, K_Q8_0, K)
    ),
    'attention: v is uint8; expected float32, as k is. Convert with dequantize(v, "q8_0").': (
        lambda ops: ops.attention(Q, K, K_Q8_0)
    ),
    "scale": lambda ops: ops.attention(Q, K, K, scale="1"),
    "attention: window is a float; expected an integer of at least 1, or None for no window.": (
        lambda ops: ops.attention(Q, K, K, window=1.0)
    ),
    "attention: window is a bool; expected an integer of at least 1": (
        lambda ops: ops.attention(Q, K, K, window=True)
    ),
    "attention: softcap is a str; expected a number.": (
        lambda ops: ops.attention(Q, K, K, softcap="1")
    ),
    "attention: sinks is a list; expected a numpy array of float32": (
        lambda ops: ops.attention(Q, K, K, sinks=[0.0, 0.0])
    ),
    "attention: sinks is float64; expected float32...sinks.astype(np.float32)": (
        lambda ops: ops.attention(Q, K, K, sinks=np.zeros(2))
    ),
    "attention: cu_seqlens_q is a list; expected a numpy array of int32": (
        lambda ops: in_sequences(ops, ends_q=[0, 1, 2])
    ),
    "attention: cu_seqlens_q is None; expected a numpy array of int32, as cu_seqlens_k is given. "
    "Pass both or neither.": lambda ops: in_sequences(ops, ends_q=None),
    "attention: cu_seqlens_k is None; expected a numpy array of int32, as cu_seqlens_q is given. "
    "Pass both or neither.": lambda ops: in_sequences(ops, ends_k=None),
    "attention: cu_seqlens_k is int64; expected int32...cu_seqlens_k.astype(np.int32)": (
        lambda ops: in_sequences(ops, ends_k=ENDS_K.astype(np.int64))
    ),
    "attention: return_lse is an int; expected True or False.": (
        lambda ops: ops.attention(Q, K, K, return_lse=1)
    ),
    "set_num_threads": lambda ops: ops.set_num_threads(1.5),
    "set_num_threads: n is ...bool": lambda ops: ops.set_num_threads(True),
}

VALUE_ERRORS = {
    "rms_norm: weight has shape (3,); expected (4,)": lambda ops: ops.rms_norm(X, normal(3)),
    "rms_norm: weight has shape (1, 4); expected (4,)": lambda ops: ops.rms_norm(X, normal((1, 4))),
    "rms_norm: eps is -0.5; expected a finite number at least 0": (
        lambda ops: ops.rms_norm(X, WEIGHT, -0.5)
    ),
    "rms_norm: eps is nan; expected a finite number": lambda ops: ops.rms_norm(X, WEIGHT, np.nan),
    'gelu: approximate is "erf"; expected "tanh" or "none"': lambda ops: ops.gelu(X, "erf"),
    "swiglu: up has shape (4, 2); expected (2, 4)": lambda ops: ops.swiglu(X, normal((4, 2))),
    "rope: x has shape (2, 4); expected 3 axes, [n_tokens, n_heads, head_dim]": (
        lambda ops: ops.rope(X, POSITIONS)
    ),
    "rope: positions has shape (3,); expected (2,)": (
        lambda ops: ops.rope(Q, np.zeros(3, np.int32))
    ),
    "rope: x has head_dim 5; expected an even number...inv_freq": (
        lambda ops: ops.rope(normal((2, 2, 5)), POSITIONS)
    ),
    "rope: inv_freq has shape (3,); expected at most (2,)": (
        lambda ops: ops.rope(Q, POSITIONS, inv_freq=normal(3))
    ),
    "rope: inv_freq has shape (1, 2); expected 1 axis": (
        lambda ops: ops.rope(Q, POSITIONS, inv_freq=normal((1, 2)))
    ),
    "rope: theta is 0...expected a finite number above 0": (
        lambda ops: ops.rope(Q, POSITIONS, theta=0.0)
    ),
    "matmul: a has shape (2, 4); expected [..., m, 3]...(3, 4)": (
        lambda ops: ops.matmul(X, normal((3, 4)))
    ),
    "matmul: a has shape (4,); expected at least 2 axes": (
        lambda ops: ops.matmul(WEIGHT, normal((4, 3)))
    ),
    "matmul: b has shape (1, 4, 3); expected 2 axes, [k, n]": (
        lambda ops: ops.matmul(X, normal((1, 4, 3)))
    ),
    "linear: x has shape (2, 4); expected [..., 3]...(4, 3)": (
        lambda ops: ops.linear(X, normal((4, 3)))
    ),
    "linear: x has shape (2, 4); expected [..., 32]...(3, 32)": (
        lambda ops: ops.linear(X, packed(ops))
    ),
    "linear: w has shape (4,); expected 2 axes, [n, k]": lambda ops: ops.linear(X, WEIGHT),
    'linear: activations is "f16"; expected "auto", "q8", "q16" or "f32"': (
        lambda ops: ops.linear(X, X, activations="f16")
    ),
    'quantize: type is "iq4_xs"; expected "q8_0", "q4_0"..."q6_k", "iq4_nl" or "mxfp4"': (
        lambda ops: ops.quantize(ROW, "iq4_xs")
    ),
    "quantize: x has shape (2, 33); expected...multiple of 32": (
        lambda ops: ops.quantize(normal((2, 33)), "q4_0")
    ),
    'dequantize: type is "f16"; expected "q8_0", "q4_0"..."q5_1", "q2_k"..."tq2_0" or "nvfp4"': (
        lambda ops: ops.dequantize(BLOCKS, "f16")
    ),
    "dequantize: data has shape (2, 34); expected...multiple of 18": (
        lambda ops: ops.dequantize(BLOCKS, "q4_0")
    ),
    "attention: q has shape (2, 4); expected 3 axes, [n_q, n_heads, head_dim]": (
        lambda ops: ops.attention(X, K, K)
    ),
    "attention: k has shape (2, 4); expected 3 axes, [n_kv_heads, n_kv, head_dim]": (
        lambda ops: ops.attention(Q, X, X)
    ),
    "attention: v has shape (1, 2, 4); expected (1, 3, 4)": (
        lambda ops: ops.attention(Q, K, normal((1, 2, 4)))
    ),
    "attention: k has shape (1, 3, 5); expected [n_kv_heads, n_kv, 4]": (
        lambda ops: ops.attention(Q, normal((1, 3, 5)), normal((1, 3, 5)))
    ),
    "attention: k has 2 heads...divides q's 3": (
        lambda ops: ops.attention(normal((2, 3, 4)), normal((2, 3, 4)), normal((2, 3, 4)))
    ),
    "attention: k has 0 heads": lambda ops: ops.attention(Q, normal((0, 3, 4)), normal((0, 3, 4))),
    "attention: scale is nan; expected a finite number": (
        lambda ops: ops.attention(Q, K, K, scale=np.nan)
    ),
    "attention: q has head_dim 4; expected a multiple of 32, the block of Q8_0, as k is uint8. "
    "Pass k and v as float32 or float16.": lambda ops: ops.attention(Q, K_Q8_0, K_Q8_0),
    "attention: k has shape (1, 3, 34); expected [n_kv_heads, n_kv, 68], rows of Q8_0, as q has "
    "head_dim 64 (shape (2, 2, 64)).": lambda ops: ops.attention(
        normal((2, 2, 64)), K_Q8_0, K_Q8_0
    ),
    "attention: chunked is True, and window is None; expected a window, the positions of a": (
        lambda ops: ops.attention(Q, K, K, chunked=True)
    ),
    "attention: window is 0; expected an integer of at least 1, or None for no window.": (
        lambda ops: ops.attention(Q, K, K, window=0)
    ),
    "attention: window is -1; expected an integer of at least 1, or None for no window.": (
        lambda ops: ops.attention(Q, K, K, window=-1)
    ),
    "attention: window is -1000000000000000000000000000000; expected an integer of at least 1": (
        lambda ops: ops.attention(Q, K, K, window=-(10**30))
    ),
    "attention: softcap is 0.0; expected a finite number above 0.": (
        lambda ops: ops.attention(Q, K, K, softcap=0)
    ),
    "attention: softcap is -30.0; expected a finite number above 0.": (
        lambda ops: ops.attention(Q, K, K, softcap=-30.0)
    ),
    "attention: softcap is inf; expected a finite number above 0.": (
        lambda ops: ops.attention(Q, K, K, softcap=np.inf)
    ),
    "attention: softcap is 1e-50; expected 1.2e-38 to 3.4e+38, float32's range. Pass None": (
        lambda ops: ops.attention(Q, K, K, softcap=1e-50)
    ),
    "attention: softcap is 1e+50; expected 1.2e-38 to 3.4e+38, float32's range. Pass None": (
        lambda ops: ops.attention(Q, K, K, softcap=1e50)
    ),
    "attention: sinks has shape (3,); expected (2,), one sink for each head of q.": (
        lambda ops: ops.attention(Q, K, K, sinks=normal(3))
    ),
    "attention: sinks has shape (1, 2); expected (2,)": (
        lambda ops: ops.attention(Q, K, K, sinks=normal((1, 2)))
    ),
    "attention: sinks[1] is nan; expected a finite number, or -inf for a head without a sink.": (
        lambda ops: ops.attention(Q, K, K, sinks=np.array([0.0, np.nan], np.float32))
    ),
    "attention: sinks[0] is inf; expected a finite number, or -inf": (
        lambda ops: ops.attention(Q, K, K, sinks=np.array([np.inf, 0.0], np.float32))
    ),
    "attention: cu_seqlens_q has shape (1, 3); expected 1 axis, [n_sequences + 1]. Reshape": (
        lambda ops: in_sequences(ops, ends_q=ENDS_Q[np.newaxis])
    ),
    "attention: cu_seqlens_q has shape (); expected at least 1 axis": (
        lambda ops: in_sequences(ops, ends_q=np.array(0, np.int32))
    ),
    "attention: cu_seqlens_k has shape (2,); expected (3,), that of cu_seqlens_q.": (
        lambda ops: in_sequences(ops, ends_k=ends(0, 3))
    ),
    "attention: cu_seqlens_q is empty; expected 0 and each sequence's end. "
    "Make cu_seqlens_q with np.cumsum([0, *lengths], dtype=np.int32).": (
        lambda ops: in_sequences(ops, ends(), ends())
    ),
    "attention: cu_seqlens_q starts with 1; expected 0. "
    "Make cu_seqlens_q with np.cumsum([0, *lengths], dtype=np.int32).": (
        lambda ops: in_sequences(ops, ends_q=ends(1, 1, 2))
    ),
    "attention: cu_seqlens_k falls from 3 to 2; expected numbers that never fall. "
    "Make cu_seqlens_k with np.cumsum([0, *lengths], dtype=np.int32).": (
        lambda ops: in_sequences(ops, ends(0, 0, 1, 2), ends(0, 3, 2, 3))
    ),
    "attention: cu_seqlens_k falls from 0 to -1; expected": (
        lambda ops: in_sequences(ops, ends_k=ends(0, -1, 3))
    ),
    "attention: cu_seqlens_q ends with 1; expected 2, the n_q of q. "
    "Make cu_seqlens_q with np.cumsum([0, *lengths], dtype=np.int32).": (
        lambda ops: in_sequences(ops, ends_q=ends(0, 1, 1))
    ),
    "attention: cu_seqlens_k ends with 4; expected 3, the n_kv of k. Make cu_seqlens_k": (
        lambda ops: in_sequences(ops, ends_k=ends(0, 1, 4))
    ),
    "set_num_threads: n is 0; expected at least 1": lambda ops: ops.set_num_threads(0),
    "set_num_threads: n is 1025; expected": lambda ops: ops.set_num_threads(1025),
}


@pytest.mark.parametrize("message", TYPE_ERRORS)
def test_a_wrong_type_is_a_type_error(backend, message):
    check_message(backend, TYPE_ERRORS[message], TypeError, message.split("..."))


@pytest.mark.parametrize("message", VALUE_ERRORS)
def test_a_wrong_value_is_a_value_error(backend, message):
    # "[..., m, 3]" is a shape, not a gap.
    parts = message.replace("[...,", "[\0,").split("...")
    says = [part.replace("\0", "...") for part in parts]
    check_message(backend, VALUE_ERRORS[message], ValueError, says)


# ---- PackedMatrix and RawRows: `make` is one or the other ----------------------------------------

MATRIX_TYPE_ERRORS = {
    "type": lambda make: make(b"", None, (0, 0)),
    "shape": lambda make: make(b"", "f32", 0),
    "shape (floats)": lambda make: make(b"", "f32", (0.5, 0)),
    "data is None; expected": lambda make: make(None, "f32", (0, 0)),
    "data is a list; expected": lambda make: make([0], "f32", (0, 0)),
    "data is a str; expected": lambda make: make("", "f32", (0, 0)),
    "data is object; expected": lambda make: make(np.array([None]), "f32", (1, 2)),
    "data is (fields)": (
        lambda make: make(np.zeros(1, [("bytes", "u1", 8), ("more", object)]), "f32", (1, 4))
    ),
}

MATRIX_VALUE_ERRORS = {
    "data has 101 bytes; expected 102": (
        lambda make: make(np.zeros(101, np.uint8), "q8_0", (3, 32))
    ),
    "data has 103 bytes; expected 102": (
        lambda make: make(np.zeros(103, np.uint8), "q8_0", (3, 32))
    ),
    'type is "q8_k"; expected "f32", "f16", "bf16", "q8_0"..."q5_1", "q2_k"..."nvfp4"': (
        lambda make: make(b"", "q8_k", (0, 0))
    ),
    "shape is (1, 33); expected...multiple of 32": lambda make: make(bytes(34), "q8_0", (1, 33)),
    "shape is (-1, 0); expected": lambda make: make(b"", "f32", (-1, 0)),
    "shape is (2147483648, 0); expected": lambda make: make(b"", "f32", (2**31, 0)),
    "shape is (0, 2147483648); expected": lambda make: make(b"", "f32", (0, 2**31)),
    "shape is (1, 0, 0); expected": lambda make: make(b"", "f32", (1, 0, 0)),
    "data has shape (4, 4) and strides...contiguous...np.ascontiguousarray(data)": (
        lambda make: make(np.zeros((4, 8), np.uint8)[:, :4], "f32", (4, 1))
    ),
}


@pytest.fixture(params=["PackedMatrix", "RawRows"])
def matrix(request):
    return request.param


@pytest.mark.parametrize("message", MATRIX_TYPE_ERRORS)
def test_a_matrix_of_wrong_types_is_a_type_error(backend, matrix, message):
    call = MATRIX_TYPE_ERRORS[message]
    says = message.removesuffix(" (floats)").removesuffix(" (fields)")
    check_message(backend, lambda ops: call(getattr(ops, matrix)), TypeError, [says])


@pytest.mark.parametrize("message", MATRIX_VALUE_ERRORS)
def test_a_matrix_that_cannot_be_is_a_value_error(backend, matrix, message):
    call = MATRIX_VALUE_ERRORS[message]
    says = f"{matrix}: {message}".split("...")
    check_message(backend, lambda ops: call(getattr(ops, matrix)), ValueError, says)


@pytest.mark.parametrize("shape", [(2**62, 2**62), (2**31 - 1, 2**31 - 1), (2**200, 1)])
def test_a_size_that_would_overflow_is_refused(backend, matrix, shape):
    with pytest.raises(ValueError, match=f"{matrix}: "):
        getattr(backend, matrix)(b"", "f32", shape)


def test_a_memoryview_that_was_released_is_called_so(backend, matrix):
    data = memoryview(bytes(8))
    data.release()
    with pytest.raises(ValueError, match="released memoryview"):
        getattr(backend, matrix)(data, "f32", (1, 2))


class Fails:
    """A number whose own code has a fault."""

    def __index__(self):
        raise ZeroDivisionError("of the number")

    __float__ = __index__


@pytest.mark.parametrize(
    "call",
    [
        lambda cpp: cpp.sample(np.ones(3, np.float32), 0.5, top_k=Fails()),
        lambda cpp: cpp.sample(np.ones(3, np.float32), 0.5, temperature=Fails()),
        lambda cpp: cpp.set_num_threads(Fails()),
    ],
    ids=["count", "number", "threads"],
)
def test_an_error_in_the_code_of_a_number_is_told(cpp, call):
    with pytest.raises(ZeroDivisionError, match="of the number"):
        call(cpp)


def test_attention_takes_heads_of_up_to_576(cpp):
    widest, wider = (np.ones((1, 1, n), np.float32) for n in (576, 577))
    np.testing.assert_array_equal(cpp.attention(widest, widest, widest), widest)
    with pytest.raises(ValueError, match="q has head_dim 577; the C"):
        cpp.attention(wider, wider, wider)


def test_a_packed_matrix_takes_other_rows_of_as_many_bytes(cpp):
    matrix = cpp.PackedMatrix(bytes(8), "f32", (1, 2))
    matrix.fill(np.float32([3, 4]).tobytes())
    np.testing.assert_array_equal(matrix.dequantize(), [[3, 4]])
    with pytest.raises(ValueError, match="data has 12 bytes; expected 8"):
        matrix.fill(bytes(12))
