"""Random weights in the types of model files, made as fast as random bytes.

The quants are random bits; the float16 scales set the standard deviation. Block layouts
are those of ggml-common.h.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm import numpy_ops
from airllm.formats.ggml_types import TYPES

BY_NAME = {kind.name: kind for kind in TYPES.values()}

Bytes = NDArray[np.uint8]


@dataclass(frozen=True)
class _Scale:
    """A float16 field of a block: `factor` times the block's random scale. MXFP4's is a byte for
    the nearest power of two, NVFP4's are four bytes of E4M3, IQ1_M's is four nibbles apart."""

    offset: int
    factor: float


# The first factor of a type is 1 / (standard deviation of a value with scale 1 and random quants).
# The second factor centres the values on zero.
_SCALES = {
    "q8_0": [_Scale(0, 1 / 74)],
    "q4_0": [_Scale(0, 1 / 4.6)],
    "q4_1": [_Scale(0, 1 / 4.6), _Scale(2, -7.5 / 4.6)],
    "q5_0": [_Scale(0, 1 / 9.2)],
    "q5_1": [_Scale(0, 1 / 9.2), _Scale(2, -15.5 / 9.2)],
    "q2_k": [_Scale(80, 1 / 13.9), _Scale(82, 1.5 / 13.9)],
    "q3_k": [_Scale(108, 1 / 43)],
    "q4_k": [_Scale(0, 1 / 258), _Scale(2, 7.5 / 258)],
    "q5_k": [_Scale(0, 1 / 527), _Scale(2, 15.5 / 527)],
    "q6_k": [_Scale(208, 1 / 1367)],
    "iq4_nl": [_Scale(0, 1 / 67.4)],
    "iq4_xs": [_Scale(0, 1 / 1246)],
    "mxfp4": [_Scale(0, 1 / 5.85)],
    "iq3_xxs": [_Scale(0, 1 / 141)],
    "iq3_s": [_Scale(0, 1 / 142)],
    "iq2_xxs": [_Scale(0, 1 / 53.4)],
    "iq2_xs": [_Scale(0, 1 / 56)],
    "iq2_s": [_Scale(0, 1 / 56.6)],
    "iq1_s": [_Scale(0, 1 / 7.1)],
    "iq1_m": [_Scale(0, 1 / 7.1)],
    "tq1_0": [_Scale(52, 1 / 0.81)],
    "tq2_0": [_Scale(64, 1 / 0.72)],
    "nvfp4": [_Scale(0, 1 / 5.85)],
}
# The numbers of E4M3 without a sign, in the order of their bytes.
_E4M3 = [
    *(m / 512 for m in range(8)),
    *((8 + m) * 2.0 ** (e - 10) for e in range(1, 16) for m in range(8)),
][:-1]
FLOATS = ("f32", "f16", "bf16")
NAMES = (*FLOATS, *_SCALES)


def random_rows(
    type: str, n: int, k: int, rng: np.random.Generator, deviation: float | None = None
) -> Bytes:
    """n rows of k values in the bytes of a GGUF file: uint8 [n, row_bytes].

    deviation: the standard deviation of the values; with the default, k^-0.5, x @ w.T is as large
        as x.
    Raises ValueError for an unknown type, or a k that is not a multiple of its block.
    """
    deviation = k**-0.5 if deviation is None else deviation
    if type in FLOATS:
        values = rng.standard_normal((n, k), np.float32) * np.float32(deviation)
        return _float_bytes(values, type)
    if type not in _SCALES:
        raise ValueError(f"no random weights of type {type!r}; possible: {', '.join(NAMES)}")
    kind = BY_NAME[type]
    if k % kind.block_size:
        raise ValueError(f"rows of {k} values; {type} needs a multiple of {kind.block_size}")
    shape = (n, k // kind.block_size, kind.block_bytes)
    blocks = np.frombuffer(bytearray(rng.bytes(n * shape[1] * shape[2])), np.uint8).reshape(shape)
    if type == "q8_0":  # GGML never writes -128
        quants = blocks[..., 2:]
        quants[quants == 0x80] = 0x81
    if type == "tq2_0":  # nor 3
        quants = blocks[..., :64]
        quants ^= (quants & quants >> 1 & 0x55) << 1
    scale = deviation * rng.uniform(0.7, 1.3, shape[:2])
    for field in _SCALES[type]:
        if type == "mxfp4":
            blocks[..., 0] = 128 + np.round(np.log2(scale * field.factor))
            continue
        if type == "nvfp4":
            blocks[..., :4] = np.searchsorted(_E4M3, 2 * scale * field.factor)[..., None]
            continue
        half = (scale * field.factor).astype("<f2")
        if type == "iq1_m":
            for i in range(4):
                nibble = (half.view("<u2") >> 4 * i & 15).astype(np.uint8)
                blocks[..., 49 + 2 * i] = blocks[..., 49 + 2 * i] & 15 | nibble << 4
            continue
        blocks[..., field.offset : field.offset + 2] = half[..., None].view(np.uint8)
    return blocks.reshape(n, -1)


def values(data: Bytes, type: str) -> NDArray[np.float64]:
    """The values of rows in such bytes, decoded with NumPy: float64 [n, k].

    Raises ValueError for an unknown type.
    """
    if type == "bf16":
        wide = data.view("<u2").astype(np.uint32) << np.uint32(16)
        return wide.view(np.float32).astype(np.float64)
    if type in FLOATS:
        return data.view("<f4" if type == "f32" else "<f2").astype(np.float64)
    return numpy_ops.dequantize(data, type).astype(np.float64)


def _float_bytes(values: NDArray[np.float32], type: str) -> Bytes:
    if type == "bf16":
        return (values.view(np.uint32) >> np.uint32(16)).astype("<u2").view(np.uint8)
    return values.astype("<f4" if type == "f32" else "<f2").view(np.uint8)
