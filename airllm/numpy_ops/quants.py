"""Number formats of weights: float16, bfloat16 and GGML's quantised blocks (see blocks.py).

Layouts are those of GGML (ggml-common.h). Blocks of 32 are rounded as its quantize_row_*_ref
functions do (ggml-quants.c). The scales of K-quants are searched for, see k_search.py. iq4_xs and
the types after mxfp4 can only be read.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.blocks import (
    BLOCK,
    DECODERS,
    E2M1_VALUES,
    IQ4_VALUES,
    SUPER_BLOCK,
    Bytes,
    power_of_two,
)
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.k_blocks import quantize_k
from airllm.numpy_ops.k_search import SEARCHES
from airllm.numpy_ops.weighted_blocks import WEIGHTED, weighted_blocks

# type: (values in a block, bytes of a block)
TYPES = {
    "f32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (BLOCK, 34),
    "q4_0": (BLOCK, 18),
    "q4_1": (BLOCK, 20),
    "q5_0": (BLOCK, 22),
    "q5_1": (BLOCK, 24),
    "q2_k": (SUPER_BLOCK, 84),
    "q3_k": (SUPER_BLOCK, 110),
    "q4_k": (SUPER_BLOCK, 144),
    "q5_k": (SUPER_BLOCK, 176),
    "q6_k": (SUPER_BLOCK, 210),
    "iq4_nl": (BLOCK, 18),
    "iq4_xs": (SUPER_BLOCK, 136),
    "mxfp4": (BLOCK, 17),
    "iq3_xxs": (SUPER_BLOCK, 98),
    "iq3_s": (SUPER_BLOCK, 110),
    "iq2_xxs": (SUPER_BLOCK, 66),
    "iq2_xs": (SUPER_BLOCK, 74),
    "iq2_s": (SUPER_BLOCK, 82),
    "iq1_s": (SUPER_BLOCK, 50),
    "iq1_m": (SUPER_BLOCK, 56),
    "tq1_0": (SUPER_BLOCK, 54),
    "tq2_0": (SUPER_BLOCK, 66),
    "nvfp4": (2 * BLOCK, 36),
}


def row_bytes(type: str, k: int) -> int:
    """Bytes of a row of k values; k must be a multiple of the type's block."""
    block, size = TYPES[type]
    return k // block * size


def quantize(x: Float32, type: str, importance: Float32 | None = None) -> Bytes:
    """Pack each row of x into blocks.

    x: float32 [..., n], n a multiple of the block. type: "q8_0", "q4_0", "q4_1", "q5_0", "q5_1",
        "iq4_nl" or "mxfp4", which have blocks of 32 and are rounded as GGML does; or "q2_k",
        "q3_k", "q4_k", "q5_k" or "q6_k", which have blocks of 256 and the scales with the least
        squared error that a search finds.
    importance: float32 [n], finite and not negative: how much the squared error of each column
        counts in the search; the scales of blocks of 32 are then searched for, too, but for "q8_0"
        and "mxfp4", which take none. None: the same for all.
    Returns uint8 [..., n / values of a block * bytes of a block]. A block that holds NaN, an
    infinity, or a value so large that the float16 scale overflows does not dequantise to finite
    values.
    """
    x = checks.float32("quantize", "x", x)
    checks.choice("quantize", "type", type, WRITABLE)
    n, block = x.shape[-1], TYPES[type][0]
    if n % block:
        raise ValueError(
            f"quantize: x has shape {x.shape}; expected a last axis that is a multiple of {block}, "
            f"the block of {type}. Pad the rows with zeros."
        )
    if importance is not None:
        importance = _checked(importance, type, n)
    if not x.size:
        return np.empty((*x.shape[:-1], row_bytes(type, n)), np.uint8)
    blocks = x.reshape(-1, block)
    weights = None if importance is None else np.resize(importance, x.size).reshape(blocks.shape)
    if type in SEARCHES:
        packed = quantize_k(blocks, type, weights)
        return packed.reshape(*x.shape[:-1], row_bytes(type, n))
    with np.errstate(all="ignore"):
        if weights is None:
            header, quants = _QUANTIZERS[type](blocks)
        else:
            header, quants = _packed_codes(*weighted_blocks(blocks, type, weights), type)
        if header.dtype == np.float32:
            header = header.astype("<f2")
    packed = np.concatenate([header.view(np.uint8), quants.view(np.uint8)], axis=1)
    return packed.reshape(*x.shape[:-1], row_bytes(type, n))


def _checked(importance: Float32, type: str, n: int) -> Float32:
    if type not in SEARCHES and type not in WEIGHTED:
        raise ValueError(
            f"quantize: importance is given; expected None for {type}, whose scales are not "
            "searched for. Choose a type of 2 to 6 bits, or leave importance out."
        )
    importance = checks.float32("quantize", "importance", importance)
    checks.shape("quantize", "importance", importance, (n,), "one number for each column of x")
    good = (importance >= 0) & (importance < np.inf)
    if not good.all():
        at = int(good.argmin())
        raise ValueError(
            f"quantize: importance[{at}] is {float(importance[at])}; expected finite numbers from "
            "0 on."
        )
    return importance


def dequantize(data: Bytes, type: str) -> Float32:
    """The values of packed rows, exactly.

    data: uint8 [..., row_bytes], as a file has them or `quantize` returns them.
    type: what `quantize` takes, or "iq4_xs", "iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs", "iq2_s",
        "iq1_s", "iq1_m", "tq1_0", "tq2_0" or "nvfp4".
    Returns float32 [..., row_bytes / bytes of a block * values in a block].
    """
    data = checks.array("dequantize", "data", data, ["uint8"])
    checks.choice("dequantize", "type", type, list(DECODERS))
    size = TYPES[type][1]
    if data.shape[-1] % size:
        raise ValueError(
            f"dequantize: data has shape {data.shape}; expected a last axis that is a multiple of "
            f"{size}, the bytes of a {type} block."
        )
    return decode(data, type)


@np.errstate(all="ignore")
def decode(data: Bytes, type: str) -> Float32:
    """The values of rows of any type in TYPES, unchecked. data: uint8 [..., row_bytes]."""
    block, size = TYPES[type]
    shape = (*data.shape[:-1], data.shape[-1] // size * block)
    if type in ("f32", "f16"):
        floats = data.reshape(-1).view(f"<f{size}").reshape(shape)
        return floats.astype(np.float32)
    if type == "bf16":
        return _widen_bfloat16(data.reshape(-1).view("<u2").reshape(shape))
    return DECODERS[type](data.reshape(-1, size)).reshape(shape)


# Each function takes float32 [n_blocks, 32]. It returns the header, float32 [n_blocks, 1 or 2],
# which is stored as float16, or uint8, and the bytes of the quants. Like GGML, it divides by the
# float32 scale, not by its float16 value.


def _quantize_q8_0(x: Float32) -> tuple[Float32, NDArray[Any]]:
    d = np.abs(x).max(axis=1, keepdims=True) / np.float32(127)
    # Halves round away from zero, as with C's roundf; np.round rounds them to even. The sum is in
    # float64, because 0.49999997 + 0.5 is 1 in float32.
    scaled = (x * _inverse(d)).astype(np.float64)
    return d, np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int8)


def _quantize_q4_0(x: Float32) -> tuple[Float32, Bytes]:
    return _packed_codes(*_round_from_largest(x, 8), "q4_0")


def _quantize_q4_1(x: Float32) -> tuple[Float32, Bytes]:
    return _packed_codes(*_round_from_lowest(x, 15), "q4_1")


def _quantize_q5_0(x: Float32) -> tuple[Float32, Bytes]:
    return _packed_codes(*_round_from_largest(x, 16), "q5_0")


def _quantize_q5_1(x: Float32) -> tuple[Float32, Bytes]:
    return _packed_codes(*_round_from_lowest(x, 31), "q5_1")


def _packed_codes(header: Float32, q: Bytes, type: str) -> tuple[Float32, Bytes]:
    if type in ("q5_0", "q5_1"):
        return header, np.concatenate([_highest_bits(q), _nibbles(q)], axis=1)
    return header, _nibbles(q)


def _quantize_iq4_nl(x: Float32) -> tuple[Float32, Bytes]:
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, np.newaxis], axis=1)
    # GGML counts what is smaller as zeros.
    d = np.where(np.abs(largest) < np.float32(1e-15), np.float32(0), largest / np.float32(-127))
    # The nearest value where the largest magnitude is -127, of two the upper one.
    middles = (IQ4_VALUES[1:].astype(np.float32) + IQ4_VALUES[:-1]) / np.float32(2)
    q = np.searchsorted(middles, x * _inverse(d), side="right").astype(np.uint8)
    # The d with the least squared error, weighted by x squared. Both sums run from the first to the
    # last in float32, as GGML's do.
    values = IQ4_VALUES[q].astype(np.float32)
    weighted = x * x * values
    by_x, by_value = (np.add.accumulate(weighted * of, axis=1)[:, -1:] for of in (x, values))
    return np.where(d == 0, np.float32(0), by_x / by_value), _nibbles(q)


def _quantize_mxfp4(x: Float32) -> tuple[Bytes, Bytes]:
    # The power of two at which the largest magnitude is from 4 to 8 of E2M1's units, whose largest
    # value is 6. A block with NaN or an infinity is one of infinities.
    largest = np.abs(x).max(axis=1, keepdims=True)
    finite = np.isfinite(largest)
    exponent = largest.view(np.uint32) >> np.uint32(23)  # biased by 127
    e = np.where(finite, np.maximum(exponent, 2) - 2, 255).astype(np.uint8)
    # The nearest magnitude, of two the smaller one.
    magnitudes = E2M1_VALUES[:8].astype(np.float64)
    middles = (magnitudes[1:] + magnitudes[:-1]) / 2
    scaled = np.where(finite, np.abs(x) / power_of_two(e).astype(np.float64), np.inf)
    q = np.searchsorted(middles, scaled, side="left").astype(np.uint8)
    return e, _nibbles(np.where((x < 0) & (q > 0), q | np.uint8(8), q))


_QUANTIZERS: dict[str, Callable[[Float32], tuple[NDArray[Any], NDArray[Any]]]] = {
    "q8_0": _quantize_q8_0,
    "q4_0": _quantize_q4_0,
    "q4_1": _quantize_q4_1,
    "q5_0": _quantize_q5_0,
    "q5_1": _quantize_q5_1,
    "iq4_nl": _quantize_iq4_nl,
    "mxfp4": _quantize_mxfp4,
}


# The types that `quantize` takes, in the order of TYPES.
WRITABLE = [type for type in TYPES if type in _QUANTIZERS or type in SEARCHES]


def _round_from_largest(x: Float32, zero: int) -> tuple[Float32, Bytes]:
    """d and the quants 0 to 2 * zero - 1 of x = d * (q - zero)."""
    # The first of the values with the largest magnitude becomes quant 0.
    largest = np.take_along_axis(x, np.abs(x).argmax(axis=1)[:, np.newaxis], axis=1)
    d = largest / np.float32(-zero)
    q = np.minimum(np.trunc(x * _inverse(d) + np.float32(zero + 0.5)), 2 * zero - 1)
    return d, q.astype(np.uint8)


def _round_from_lowest(x: Float32, highest: int) -> tuple[Float32, Bytes]:
    """d and m, side by side, and the quants 0 to highest of x = d * q + m."""
    low = x.min(axis=1, keepdims=True)
    d = (x.max(axis=1, keepdims=True) - low) / np.float32(highest)
    q = np.minimum(np.trunc((x - low) * _inverse(d) + np.float32(0.5)), highest)
    return np.concatenate([d, low], axis=1), q.astype(np.uint8)


def _inverse(d: Float32) -> Float32:
    """1 / d, or 0 if that overflows: the float16 scale is then 0, and any quant will do."""
    inverse = np.float32(1) / d
    return np.where(np.isfinite(inverse), inverse, np.float32(0))


def _nibbles(q: Bytes) -> Bytes:
    """The low 4 bits of uint8 [n_blocks, 32] as uint8 [n_blocks, 16]."""
    low, high = q[:, : BLOCK // 2], q[:, BLOCK // 2 :]
    return low & np.uint8(15) | high << np.uint8(4)


def _highest_bits(q: Bytes) -> Bytes:
    """Bit 4 of uint8 [n_blocks, 32] as uint8 [n_blocks, 4]: a byte holds 8 neighbours."""
    bits: Bytes = np.packbits(q & np.uint8(16), axis=1, bitorder="little")
    return bits


def float32_to_float16(x: Float32) -> NDArray[np.float16]:
    """Rounds to the nearest, ties to even; values of 65520 and more become infinity.

    x: float32 [...]. Returns float16 [...].
    """
    x = checks.float32("float32_to_float16", "x", x)
    with np.errstate(all="ignore"):
        return np.asarray(x.astype(np.float16))


def float16_to_float32(x: NDArray[np.float16]) -> Float32:
    """x: float16 [...]. Returns float32 [...], the same values."""
    x = checks.array("float16_to_float32", "x", x, ["float16"])
    return np.asarray(x.astype(np.float32))


def float32_to_bfloat16(x: Float32) -> NDArray[np.uint16]:
    """The upper half of each float32, rounded to the nearest, ties to even; NaN stays NaN.

    x: float32 [...]. Returns uint16 [...], as NumPy has no bfloat16.
    """
    x = checks.float32("float32_to_bfloat16", "x", x)
    bits = x.view(np.uint32)
    rounded = (bits + (0x7FFF + (bits >> 16 & 1))) >> 16  # only a NaN can overflow
    quiet_nan = bits >> 16 | 0x40  # a NaN with a truncated payload would be infinity
    return np.where(np.isnan(x), quiet_nan, rounded).astype(np.uint16)


def bfloat16_to_float32(x: NDArray[np.uint16]) -> Float32:
    """x: uint16 [...], the bits of bfloat16. Returns float32 [...], the same values."""
    x = checks.array("bfloat16_to_float32", "x", x, ["uint16"])
    return _widen_bfloat16(x)


def _widen_bfloat16(x: NDArray[np.uint16]) -> Float32:
    return np.left_shift(x, 16, dtype=np.uint32).view(np.float32)
