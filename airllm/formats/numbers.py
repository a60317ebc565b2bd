"""Converts rows of tensors to float32 and back, for all types that this package writes."""

import numpy as np
from numpy.typing import NDArray

from airllm.formats.ggml_types import INTEGERS, TYPES

__all__ = ["FLOATS", "WEIGHTED", "WRITABLE", "decode", "encode", "row_bytes"]

FLOATS = ("f32", "f16", "bf16")
# Types whose scales are searched for, and for which the importance of columns counts.
WEIGHTED = ("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "q2_k", "q3_k", "q4_k", "q5_k", "q6_k")
WRITABLE = (*FLOATS, "q8_0", "mxfp4", *WEIGHTED)

_KINDS = {kind.name: kind for kind in TYPES.values()}


def row_bytes(type: str, k: int) -> int | None:
    """Bytes of a row of k values; None if k is not a multiple of the type's block."""
    kind = _KINDS[type]
    return None if k % kind.block_size else kind.row_bytes(k)


def decode(raw: NDArray[np.uint8], type: str) -> NDArray[np.float32]:
    """raw: uint8 [n, row_bytes], bytes of a file. Returns float32 [n, k], exact."""
    from airllm import tensor_ops_hybrid as ops

    raw = np.ascontiguousarray(raw)
    if type == "f32":
        return raw.view("<f4").astype(np.float32, copy=False)
    if type == "f16":
        return ops.float16_to_float32(raw.view("<f2").astype(np.float16, copy=False))
    if type == "bf16":
        return ops.bfloat16_to_float32(raw.view("<u2").astype(np.uint16, copy=False))
    return ops.dequantize(raw, type)


def encode(
    values: NDArray[np.float32], type: str, importance: NDArray[np.float32] | None = None
) -> NDArray[np.uint8]:
    """values: float32 [n, k], C-contiguous. Returns uint8 [n, row_bytes], rounded to the nearest.

    importance: float32 [k], for types in WEIGHTED: see ops.quantize.

    type: one of WRITABLE, or INTEGERS for values that are integers.

    ValueError for a value that `type` cannot hold: NaN, infinities, and values beyond F16's range,
    which is also the type of the scales of quantised blocks.
    """
    from airllm import tensor_ops_hybrid as ops

    largest = float(np.abs(values).max()) if values.size else 0.0
    if not np.isfinite(largest):
        raise ValueError("has values that are no finite numbers")
    # A block's largest value is the scale times 127 (8 or 15 for 4 bit): 65,504 is safe for all.
    if type not in ("f32", "bf16") and largest > 65504.0:
        raise ValueError(f"has values up to {largest:.3g}, more than {type} can hold; use bf16")
    if type == "f32":
        return values.astype("<f4", copy=False).view(np.uint8)
    if type == INTEGERS:
        return values.astype("<i4").view(np.uint8)
    if type == "f16":
        return ops.float32_to_float16(values).astype("<f2", copy=False).view(np.uint8)
    if type == "bf16":
        return ops.float32_to_bfloat16(values).astype("<u2", copy=False).view(np.uint8)
    return ops.quantize(values, type, importance)
