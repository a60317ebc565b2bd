"""Whatever a caller passes: a result or a TypeError or ValueError, and the same from both backends.

Each example is a sound call of which up to two arguments are then replaced by anything at all.
"""

import numpy as np
import pytest
from extension import require_cpp
from hypothesis import given, settings
from hypothesis import strategies as st

from airllm import numpy_ops

# Few sizes, so that what replaces an array often has its shape; 32 is a block, 256 a large one.
SIZES = st.sampled_from([0, 1, 2, 4, 32])
SHAPES = st.lists(SIZES, max_size=4).map(tuple)
DTYPES = st.sampled_from(["f4"] * 8 + ["f2", "f8", "i4", "u2", "u1", ">f4", "O", "c8", "S3"])
LAYOUTS = st.sampled_from(["plain"] * 4 + ["transposed", "strided", "read-only", "misaligned"])
NUMBERS = st.sampled_from([0, 1, -1, 0.5, 10.0, np.nan, np.inf, 10**400, True, 1j])
WORDS = st.sampled_from(
    [
        "q8_0",
        "q4_0",
        "q5_1",
        "q4_k",
        "iq4_xs",
        "mxfp4",
        "iq2_xxs",
        "nvfp4",
        "f32",
        "f16",
        "bf16",
        "q8",
        "tanh",
        "none",
        "",
    ]
)
AXES = st.sampled_from([0, 1, 2, 32, 256, -1, 2**31, 2**63, 2**200, 0.5])


@st.composite
def arrays(draw):
    shape, dtype, layout = draw(SHAPES), np.dtype(draw(DTYPES)), draw(LAYOUTS)
    if layout == "misaligned" and not dtype.hasobject:
        n_bytes = int(np.prod(shape)) * dtype.itemsize
        return np.ones(n_bytes + 1, np.uint8)[1:].view(dtype).reshape(shape)
    if layout == "strided" and shape:
        return np.ones((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    array = np.ones(shape, dtype)
    array.flags.writeable = layout != "read-only"
    return array.T if layout == "transposed" else array


ANYTHING = st.one_of(
    arrays(), NUMBERS, WORDS, st.tuples(AXES, AXES), st.sampled_from([None, [1.0], b"", bytes(34)])
)


def ones(*shape, dtype=np.float32):
    return np.ones(shape, dtype)


def rows(type, n, k):
    block, size = {"f16": (1, 2), "q8_0": (32, 34), "mxfp4": (32, 17), "q4_k": (256, 144)}[type]
    return np.zeros((n, k // block * size), np.uint8)


def attention_with_everything(t, m, n, k):
    head_dim = 32 * min(k, 8)  # the extension takes up to 256
    cache = rows("q8_0", n * t, head_dim).reshape(n, t, head_dim // 32 * 34)
    return {
        "q": ones(m, 2 * n, head_dim),
        "k": cache,
        "v": cache,
        "window": 2,
        "chunked": True,
        "softcap": 10.0,
        "sinks": ones(2 * n),
        "cu_seqlens_q": np.array([0, m // 2, m], np.int32),
        "cu_seqlens_k": np.array([0, t // 2, t], np.int32),
        "return_lse": True,
    }


# Sound calls: the arguments of each operation by name, for any sizes t, m, n, k.
SOUND = {
    "rms_norm": lambda t, m, n, k: {"x": ones(t, m, k), "weight": ones(k), "eps": 0.5},
    "silu": lambda t, m, n, k: {"x": ones(t, k)},
    "gelu": lambda t, m, n, k: {"x": ones(t, k), "approximate": "none"},
    "softmax": lambda t, m, n, k: {"x": ones(t, k)},
    "swiglu": lambda t, m, n, k: {"gate": ones(t, k), "up": ones(t, k)},
    "rope": lambda t, m, n, k: {
        "x": ones(t, m, 2 * k),
        "positions": ones(t, dtype=np.int32),
        "theta": 10.0,
        "inv_freq": ones(k),
        "interleaved": True,
    },
    "matmul": lambda t, m, n, k: {"a": ones(t, m, k), "b": ones(k, n)},
    "linear": lambda t, m, n, k: {"x": ones(t, m, k), "w": ones(n, k), "activations": "q8"},
    "attention": lambda t, m, n, k: {
        "q": ones(m, 2 * n, k),
        "k": ones(n, t, k),
        "v": ones(n, t, k),
        "scale": 0.5,
        "causal": True,
    },
    "attention with everything": attention_with_everything,
    "quantize": lambda t, m, n, k: {"x": ones(t, 32 * m), "type": "q4_0"},
    "dequantize": lambda t, m, n, k: {"data": rows("q8_0", t, 32 * m), "type": "q8_0"},
    "float32_to_float16": lambda t, m, n, k: {"x": ones(t, k)},
    "float16_to_float32": lambda t, m, n, k: {"x": ones(t, k, dtype=np.float16)},
    "float32_to_bfloat16": lambda t, m, n, k: {"x": ones(t, k)},
    "bfloat16_to_float32": lambda t, m, n, k: {"x": ones(t, k, dtype=np.uint16)},
    "PackedMatrix": lambda t, m, n, k: {
        "data": rows("mxfp4", n, 32 * m), "type": "mxfp4", "shape": (n, 32 * m)
    },
    "PackedMatrix of super-blocks": lambda t, m, n, k: {
        "data": rows("q4_k", n, 256 * m), "type": "q4_k", "shape": (n, 256 * m)
    },
    "RawRows": lambda t, m, n, k: {"data": rows("f16", n, k), "type": "f16", "shape": (n, k)},
}  # fmt: skip
TAKE_OUT = list(SOUND)[: list(SOUND).index("quantize")]


def outcome(ops, op, arguments):
    """What the call gives, its type and shape, of several results each; or that it is refused."""
    try:
        result = getattr(ops, op.split()[0])(**arguments)
    except (TypeError, ValueError):  # which of the two depends on what is checked first
        return "refused"
    results = result if isinstance(result, tuple) else [result]
    return [(type(part).__name__, part.shape) for part in results]


@pytest.mark.parametrize("op", SOUND)
@settings(max_examples=25)
@given(data=st.data())
def test_both_backends_take_and_refuse_the_same(op, data):
    take_and_refuse_the_same(op, data)


@pytest.mark.fuzz
@pytest.mark.parametrize("op", SOUND)
@settings(max_examples=200)
@given(data=st.data())
def test_both_backends_take_and_refuse_the_same_however_often(op, data):
    take_and_refuse_the_same(op, data)


def take_and_refuse_the_same(op, data):
    cpp = require_cpp()
    arguments = SOUND[op](*(data.draw(SIZES) for _ in range(4)))
    if op in TAKE_OUT and data.draw(st.booleans()):
        arguments["out"] = data.draw(st.sampled_from([None, *arguments.values()]))
    for _ in range(data.draw(st.integers(0, 2))):
        arguments[data.draw(st.sampled_from(sorted(arguments)))] = data.draw(ANYTHING)
    assert outcome(cpp, op, arguments) == outcome(numpy_ops, op, arguments)
