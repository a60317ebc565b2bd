"""Arrays that no operation takes, as input or as `out`: the same words from every operation.

An error says who complains, what came, what was expected and how to fix it. A wrong type (not an
array, or another dtype) is a TypeError, everything else a ValueError; nothing has been computed.
test_ops_errors_arguments.py has what is particular to one operation.
"""

import numpy as np
import pytest
from arrays import normal
from messages import check_message

X = normal((2, 4))
X64 = X.astype(np.float64)
STRIDED = normal((4, 2)).T
VECTOR = normal(4)
POSITIONS = np.arange(2, dtype=np.int32)
HEADS = normal((2, 2, 4))
KEYS = normal((1, 3, 4))
SWAPPED = X.astype(X.dtype.newbyteorder())


def read_only(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


def misaligned():
    return np.zeros(33, np.uint8)[1:].view(np.float32).reshape(2, 4)


# For every operation that takes a float32 x first: the same checks, the same words.
FIRST_ARGUMENT = {
    "rms_norm": ("x", lambda ops, x: ops.rms_norm(x, VECTOR)),
    "silu": ("x", lambda ops, x: ops.silu(x)),
    "gelu": ("x", lambda ops, x: ops.gelu(x)),
    "softmax": ("x", lambda ops, x: ops.softmax(x)),
    "swiglu": ("gate", lambda ops, x: ops.swiglu(x, X)),
    "rope": ("x", lambda ops, x: ops.rope(x, POSITIONS)),
    "matmul": ("a", lambda ops, x: ops.matmul(x, normal((4, 3)))),
    "linear": ("x", lambda ops, x: ops.linear(x, normal((3, 4)))),
    "attention": ("q", lambda ops, x: ops.attention(x, KEYS, KEYS)),
    "quantize": ("x", lambda ops, x: ops.quantize(x, "q8_0")),
    "float32_to_float16": ("x", lambda ops, x: ops.float32_to_float16(x)),
    "float32_to_bfloat16": ("x", lambda ops, x: ops.float32_to_bfloat16(x)),
}


@pytest.fixture(params=FIRST_ARGUMENT)
def first(request):
    """An operation, its first argument's name, and a call with that argument."""
    return request.param, *FIRST_ARGUMENT[request.param]


NO_ARRAYS = {"a list": [1.0, 2.0], "a float": 1.0, "an int": 1, "a str": "x", "None": None}


@pytest.mark.parametrize("kind", NO_ARRAYS)
def test_what_is_no_array_is_refused(backend, first, kind):
    op, argument, call = first
    says = [f"{op}: {argument} is {kind}; expected a numpy array of float32", "np.asarray"]
    check_message(backend, lambda ops: call(ops, NO_ARRAYS[kind]), TypeError, says)


@pytest.mark.parametrize("dtype", ["float64", "float16", "int32", "uint8", "bool", "complex64"])
def test_another_dtype_is_refused_and_never_converted(backend, first, dtype):
    op, argument, call = first
    says = [f"{op}: {argument} is {dtype}; expected float32", f"{argument}.astype(np.float32)"]
    check_message(backend, lambda ops: call(ops, X.astype(dtype)), TypeError, says)


def test_a_foreign_byte_order_is_refused(backend, first):
    op, argument, call = first
    says = [f"{op}: {argument} is ", "expected float32", f"{argument}.astype(np.float32)"]
    check_message(backend, lambda ops: call(ops, SWAPPED), TypeError, says)


def test_strided_memory_is_refused_and_never_copied(backend, first):
    op, argument, call = first
    says = [f"{op}: {argument} has shape (2, 4)", "strides", "contiguous"]
    says += [f"np.ascontiguousarray({argument})"]
    check_message(backend, lambda ops: call(ops, STRIDED), ValueError, says)


def test_a_misaligned_array_is_refused(backend, first):
    op, argument, call = first
    says = [f"{op}: {argument} ", "aligned", f"{argument}.copy()"]
    check_message(backend, lambda ops: call(ops, misaligned()), ValueError, says)


def test_an_array_without_axes_is_refused(backend, first):
    op, argument, call = first
    check_message(
        backend,
        lambda ops: call(ops, np.array(1.0, np.float32)),
        ValueError,
        [f"{op}: {argument} has shape ()", "expected"],
    )


# ---- out -----------------------------------------------------------------------------------------

WITH_OUT = {
    "rms_norm": ((2, 4), lambda ops, out: ops.rms_norm(X, VECTOR, out=out)),
    "silu": ((2, 4), lambda ops, out: ops.silu(X, out=out)),
    "gelu": ((2, 4), lambda ops, out: ops.gelu(X, out=out)),
    "softmax": ((2, 4), lambda ops, out: ops.softmax(X, out=out)),
    "swiglu": ((2, 4), lambda ops, out: ops.swiglu(X, X, out=out)),
    "rope": ((2, 2, 4), lambda ops, out: ops.rope(HEADS, POSITIONS, out=out)),
    "matmul": ((2, 3), lambda ops, out: ops.matmul(X, normal((4, 3)), out=out)),
    "linear": ((2, 3), lambda ops, out: ops.linear(X, normal((3, 4)), out=out)),
    "attention": ((2, 2, 4), lambda ops, out: ops.attention(HEADS, KEYS, KEYS, out=out)),
}


@pytest.fixture(params=WITH_OUT)
def writing(request):
    """An operation, the shape of its result, and a call with `out`."""
    return request.param, *WITH_OUT[request.param]


def test_out_of_another_shape_is_refused(backend, writing):
    op, shape, call = writing
    says = [f"{op}: out has shape (5, 7); expected {shape}"]
    out = np.zeros((5, 7), np.float32)
    check_message(backend, lambda ops: call(ops, out), ValueError, says)
    np.testing.assert_array_equal(out, 0.0)


def test_out_of_the_right_size_but_another_shape_is_refused(backend, writing):
    op, shape, call = writing
    out = np.zeros(int(np.prod(shape)), np.float32)
    says = [f"{op}: out has shape ({out.size},); expected {shape}"]
    check_message(backend, lambda ops: call(ops, out), ValueError, says)


def test_out_of_another_dtype_is_refused(backend, writing):
    op, shape, call = writing
    says = [f"{op}: out is float64; expected float32"]
    check_message(backend, lambda ops: call(ops, np.zeros(shape)), TypeError, says)


def test_out_that_is_no_array_is_refused(backend, writing):
    op, _, call = writing
    check_message(
        backend, lambda ops: call(ops, [0.0]), TypeError, [f"{op}: out is a list; expected"]
    )


def test_out_that_is_read_only_is_refused(backend, writing):
    op, shape, call = writing
    says = [f"{op}: out is read-only", "writeable", "np.empty"]
    check_message(backend, lambda ops: call(ops, read_only(shape)), ValueError, says)


def test_out_with_strides_is_refused(backend, writing):
    op, shape, call = writing
    out = np.zeros((*shape, 2), np.float32)[..., 0]
    says = [f"{op}: out has shape {shape}", "strides", "contiguous"]
    check_message(backend, lambda ops: call(ops, out), ValueError, says)


def halves_that_overlap():
    """Two arrays [2, 4] of which the second starts in the middle of the first."""
    memory = normal(12)
    return memory[:8].reshape(2, 4), memory[4:].reshape(2, 4)


def heads(x):
    return x.reshape(2, 1, 4)


def keys(x):
    return x.reshape(1, 2, 4)


EYE = np.eye(4, dtype=np.float32)

# Who complains about which argument: a call in which out is off by half from that argument, x.
OVERLAPS = {
    ("rms_norm", "x"): lambda ops, x, out: ops.rms_norm(x, VECTOR, out=out),
    ("rms_norm", "weight"): lambda ops, x, out: ops.rms_norm(X, x[1], out=out),
    ("silu", "x"): lambda ops, x, out: ops.silu(x, out=out),
    ("gelu", "x"): lambda ops, x, out: ops.gelu(x, out=out),
    ("softmax", "x"): lambda ops, x, out: ops.softmax(x, out=out),
    ("swiglu", "gate"): lambda ops, x, out: ops.swiglu(x, X, out=out),
    ("swiglu", "up"): lambda ops, x, out: ops.swiglu(X, x, out=out),
    ("rope", "x"): lambda ops, x, out: ops.rope(heads(x), POSITIONS, out=heads(out)),
    ("rope", "positions"): lambda ops, x, out: ops.rope(
        heads(X), x[1, :2].view(np.int32), out=heads(out)
    ),
    ("rope", "inv_freq"): lambda ops, x, out: ops.rope(
        heads(X), POSITIONS, inv_freq=x[1, :2], out=heads(out)
    ),
    ("matmul", "a"): lambda ops, x, out: ops.matmul(x, EYE, out=out),
    ("matmul", "b"): lambda ops, x, out: ops.matmul(np.eye(2, dtype=np.float32), x, out=out),
    ("linear", "x"): lambda ops, x, out: ops.linear(x, EYE, out=out),
    ("linear", "w"): lambda ops, x, out: ops.linear(EYE, x, out=out.reshape(4, 2)),
    ("attention", "q"): lambda ops, x, out: ops.attention(heads(x), KEYS, KEYS, out=heads(out)),
    ("attention", "k"): lambda ops, x, out: ops.attention(
        heads(X), keys(x), keys(X), out=heads(out)
    ),
    ("attention", "v"): lambda ops, x, out: ops.attention(
        heads(X), keys(X), keys(x), out=heads(out)
    ),
    ("attention", "sinks"): lambda ops, x, out: ops.attention(
        heads(X), KEYS, KEYS, sinks=x[1, :1], out=heads(out)
    ),
}


@pytest.mark.parametrize("who", OVERLAPS, ids="-".join)
def test_out_that_overlaps_an_input_in_part_is_refused(backend, who):
    op, argument = who
    x, out = halves_that_overlap()
    before = out.copy()
    says = [f"{op}: out overlaps {argument}", "np.empty"]
    check_message(backend, lambda ops: OVERLAPS[who](ops, x, out), ValueError, says)
    np.testing.assert_array_equal(out, before)


@pytest.mark.parametrize(
    "call",
    [
        lambda ops, x: ops.matmul(x, EYE, out=x),
        lambda ops, x: ops.matmul(EYE, x, out=x),
        lambda ops, x: ops.linear(x, EYE, out=x),
        lambda ops, x: ops.linear(EYE, x, out=x),
    ],
    ids=["matmul-a", "matmul-b", "linear-x", "linear-w"],
)
def test_a_product_cannot_be_written_over_its_own_factor(backend, call):
    with pytest.raises(ValueError, match="out overlaps"):
        call(backend, normal((4, 4)))


def test_rms_norm_cannot_be_written_over_its_weight(backend):
    weight = normal(4)
    with pytest.raises(ValueError, match="rms_norm: out overlaps weight"):
        backend.rms_norm(normal(4), weight, out=weight)


@pytest.mark.parametrize("name", ["cu_seqlens_q", "cu_seqlens_k"])
def test_attention_cannot_be_written_over_its_sequences(backend, name):
    out = np.zeros((2, 1, 4), np.float32)
    lengths = dict.fromkeys(["cu_seqlens_q", "cu_seqlens_k"], np.array([0, 2], np.int32))
    lengths[name] = out[0, 0, :2].view(np.int32)
    lengths[name][1] = 2
    with pytest.raises(ValueError, match=f"attention: out overlaps {name}; expected separate mem"):
        backend.attention(heads(X), keys(X), keys(X), out=out, **lengths)


@pytest.mark.parametrize("shift", [-7, 7])
def test_out_that_shares_a_single_element_with_an_input_is_refused(backend, shift):
    memory = np.zeros(22, np.float32)
    x, out = memory[7:15], memory[7 + shift : 15 + shift]
    with pytest.raises(ValueError, match="silu: out overlaps x"):
        backend.silu(x, out=out)


def test_out_may_touch_an_input_without_overlapping(backend):
    memory = normal(16)
    x, out = memory[:8], memory[8:]
    np.testing.assert_array_equal(backend.silu(x, out=out), backend.silu(x))


def test_an_empty_out_overlaps_nothing(backend):
    x = normal(8)
    assert backend.silu(x[2:2], out=x[2:2]).size == 0
