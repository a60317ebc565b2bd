"""Arrays of no bytes may have 2^60 rows: no operation visits rows that have no elements.

In a process of its own, as a loop over them ends after years, without giving the GIL back.
"""

import numpy as np
import pytest
from extension import EVERY_BACKEND, require_cpp
from subprocess_python import run_python

CALLS = [
    "ops.softmax(zeros((2**60, 0)))",
    "ops.rms_norm(zeros((2**60, 0)), zeros(0))",
    "ops.silu(zeros((2**60, 0)))",
    "ops.gelu(zeros((2**60, 0)))",
    "ops.swiglu(zeros((2**60, 0)), zeros((2**60, 0)))",
    "ops.rope(zeros((0, 2**50, 64)), integers(0))",
    "ops.rope(zeros((3, 0, 2**58)), integers(3))",
    "ops.rope(zeros((2**10, 0, 2**50)), integers(2**10), inv_freq=zeros(2**20))",
    "ops.matmul(zeros((0, 0)), zeros((0, 2**60)))",
    "ops.matmul(zeros((2**60, 0)), zeros((0, 0)))",
    "ops.matmul(zeros((2**60, 0)), zeros((0, 0)), out=zeros((2**60, 0)))",
    "ops.linear(zeros((2**60, 0)), zeros((0, 0)))",
    "ops.linear(zeros((0, 0)), zeros((2**60, 0)))",
    "ops.linear(zeros((0, 0)), zeros((2**60, 0), 'float16'))",
    "ops.linear(zeros((2**60, 0)), packed('q8_0', 0, 0))",
    "ops.linear(zeros((2**60, 0)), packed('q4_k', 0, 0), activations='q16')",
    "ops.linear(zeros((2**60, 0)), packed('f32', 0, 0), activations='f32')",
    "ops.linear(zeros((0, 0)), packed('q8_0', 2**31 - 1, 0))",
    "ops.linear_many(zeros((2**60, 0)), [packed('q8_0', 0, 0)] * 3)",
    "ops.linear_many(zeros((0, 0)), [packed('q5_k', 2**31 - 1, 0)] * 3)",
    "packed('q8_0', 2**31 - 1, 0).dequantize()",
    "packed('q6_k', 2**31 - 1, 0).dequantize()",
    "packed('f16', 2**31 - 1, 0).dequantize()",
    "packed('f32', 0, 2**31 - 1).dequantize()",
    "ops.RawRows(b'', 'q8_0', (2**31 - 1, 0))",
    "ops.quantize(zeros((2**60, 0)), 'q8_0')",
    "ops.quantize(zeros((0, 2**58)), 'q4_1')",
    "ops.dequantize(zeros((2**60, 0), 'uint8'), 'q6_k')",
    "ops.float32_to_float16(zeros((2**60, 0)))",
    "ops.float16_to_float32(zeros((2**60, 0), 'float16'))",
    "ops.float32_to_bfloat16(zeros((2**60, 0)))",
    "ops.bfloat16_to_float32(zeros((2**60, 0), 'uint16'))",
    "ops.attention(zeros((2**60, 1, 0)), *[zeros((1, 5, 0))] * 2)",
    "ops.attention(zeros((3, 2**58, 0)), *[zeros((2**58, 2, 0))] * 2)",
    "ops.attention(zeros((3, 0, 0)), *[zeros((2**58, 2, 0))] * 2, return_lse=True)",
    "ops.attention(zeros((0, 2**50, 8)), *[zeros((2**50, 0, 8))] * 2, return_lse=True)",
    "ops.attention(zeros((3, 1, 0)), *[zeros((1, 2**60, 0))] * 2, return_lse=True)",
    "ops.attention(zeros((3, 1, 0)), *[zeros((1, 2**60, 0))] * 2, causal=False, return_lse=True)",
    "ops.attention(zeros((3, 1, 0)), *[zeros((1, 2**60, 0))] * 2, window=2**59, return_lse=True)",
    "ops.attention(zeros((3, 1, 0)), *[zeros((1, 2**60, 0), 'uint8')] * 2, sinks=zeros(1))",
]

CODE = """
import sys
import numpy as np
from airllm.tensor_ops_hybrid import backend
import airllm.tensor_ops_hybrid as ops

def zeros(shape, dtype="float32"):
    return np.zeros(shape, dtype)

def integers(n):
    return np.zeros(n, np.int32)

def packed(type, n, k):
    return ops.PackedMatrix(b"", type, (n, k))

for call in CALLS:
    print(call, flush=True)
    eval(call)
print("done on", backend, ops.simd_level)
"""


@pytest.mark.parametrize("on", EVERY_BACKEND)
def test_rows_of_no_elements_take_no_time(on):
    backend, _, isa = on.partition("-")
    variables = {"AIRLLM_BACKEND": backend}
    if backend == "cpp":
        require_cpp()
        variables["TENSOR_OPS_ISA"] = isa
    done = run_python(CODE.replace("in CALLS", f"in {CALLS!r}"), timeout=120, **variables)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == [*CALLS, f"done on {backend} {isa or backend}"]


# Of 6 positions, what each of the last 4 sees.
SEEN = {
    (True, None, False): [3, 4, 5, 6],
    (True, 3, False): [3, 3, 3, 3],
    (True, 4, True): [3, 4, 1, 2],
    (False, None, False): [6, 6, 6, 6],
    (False, 3, False): [5, 5, 4, 3],
    (False, 4, True): [4, 4, 2, 2],
}


@pytest.mark.parametrize(("causal", "window", "chunked"), SEEN)
@pytest.mark.parametrize("sink", [None, -np.inf, 0.0, 300.0])
def test_heads_of_no_features_count_the_keys_that_they_see(backend, causal, window, chunked, sink):
    """Every score is 0, so the softmax's denominator is their number, and the sink's part."""
    q, k = np.zeros((4, 1, 0), np.float32), np.zeros((1, 6, 0), np.float32)
    sinks = None if sink is None else np.array([sink], np.float32)
    options = {"causal": causal, "window": window, "chunked": chunked}
    options |= {"sinks": sinks, "return_lse": True}
    _, lse = backend.attention(q, k, k, **options)
    expected = np.logaddexp(
        np.log(SEEN[causal, window, chunked]), -np.inf if sink is None else sink
    )
    np.testing.assert_allclose(lse[:, 0], expected, rtol=1e-6)
