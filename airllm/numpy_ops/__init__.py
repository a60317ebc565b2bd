"""Every operation in plain NumPy: slow, obvious and complete.

The functions, their arguments and their errors are those of the C++ extension `tensor_ops_cpp`.
So the whole package runs where the extension cannot be built, and tests can compare two
implementations. Use it through `airllm.tensor_ops_hybrid`, which picks one of the two.

Unless an operation says otherwise, arrays are float32 and C-contiguous, with any leading axes; the
last axis is the feature axis. Axes of size zero are fine. `out` receives the result and is
returned; it may be an input only if the operation says so. A wrong type raises TypeError; a wrong
shape, layout or overlap raises ValueError. No argument is converted silently.
"""

from airllm.numpy_ops.attention import alibi_slopes as alibi_slopes
from airllm.numpy_ops.attention import attention
from airllm.numpy_ops.attention import attention_apply as attention_apply
from airllm.numpy_ops.elementwise import gelu, rms_norm, silu, softmax, swiglu
from airllm.numpy_ops.elementwise import sigmoid_apply as sigmoid_apply
from airllm.numpy_ops.elementwise import softplus_apply as softplus_apply
from airllm.numpy_ops.matrix import PackedMatrix, RawRows, linear, linear_many, matmul
from airllm.numpy_ops.matrix import linear_apply as linear_apply
from airllm.numpy_ops.quants import (
    bfloat16_to_float32,
    dequantize,
    float16_to_float32,
    float32_to_bfloat16,
    float32_to_float16,
    quantize,
)
from airllm.numpy_ops.rope import rope
from airllm.numpy_ops.rope import rope_apply as rope_apply
from airllm.numpy_ops.rope import rope_table as rope_table
from airllm.numpy_ops.runtime import (
    available_isas,
    cpu_budget,
    get_num_threads,
    get_optimization_info,
    has_simd,
    set_num_threads,
    simd_level,
)
from airllm.numpy_ops.sampling import sample

# The names that `tensor_ops_cpp` has, too, and `airllm.tensor_ops_hybrid` re-exports. `*_apply` and
# `rope_table` are the arithmetic without the checks, for the executor of `airllm.backends`.
__all__ = [
    "PackedMatrix",
    "RawRows",
    "attention",
    "available_isas",
    "bfloat16_to_float32",
    "cpu_budget",
    "dequantize",
    "float16_to_float32",
    "float32_to_bfloat16",
    "float32_to_float16",
    "gelu",
    "get_num_threads",
    "get_optimization_info",
    "has_simd",
    "linear",
    "linear_many",
    "matmul",
    "quantize",
    "rms_norm",
    "rope",
    "sample",
    "set_num_threads",
    "silu",
    "simd_level",
    "softmax",
    "swiglu",
]
