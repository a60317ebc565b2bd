"""GGML's quantised blocks, value by value, in float64: what the backends are checked against.

Written from the definitions of ggml-common.h to be checked by eye: a loop over a block's values
with one formula each, nothing vectorised, nothing from airllm. In the formulas i counts a block's
values, d and m (dmin) are its float16 scale and offset, q is a quant; of a super-block's values, 32
neighbours c are in 32 neighbouring bytes.
"""

import math
import struct

import numpy as np
from reference import decode_float16, encode_float16

# type: values in a block, bytes of a block, where its float16 numbers are: d, then m or dmin.
# MXFP4 has a byte in place of d, the exponent of a power of two.
LAYOUTS = {
    "q8_0": (32, 34, [0]),
    "q4_0": (32, 18, [0]),
    "q4_1": (32, 20, [0, 2]),
    "q5_0": (32, 22, [0]),
    "q5_1": (32, 24, [0, 2]),
    "q2_k": (256, 84, [80, 82]),
    "q3_k": (256, 110, [108]),
    "q4_k": (256, 144, [0, 2]),
    "q5_k": (256, 176, [0, 2]),
    "q6_k": (256, 210, [208]),
    "iq4_nl": (32, 18, [0]),
    "iq4_xs": (256, 136, [0]),
    "mxfp4": (32, 17, []),
}
WRITTEN = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4")  # quantize makes them

# What the 16 codes of IQ4_NL and IQ4_XS, and of MXFP4 (E2M1: a sign, two bits of exponent, one of
# fraction) stand for.
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


def block_size(type):
    """Values in a block."""
    return LAYOUTS[type][0]


def block_bytes(type):
    return LAYOUTS[type][1]


def dequantize(data, type):
    """uint8 [..., row_bytes] to float64 [..., n]; a sum d * q + m is rounded once, to float32."""
    return dequantize_and_measure(data, type)[0]


def dequantize_and_measure(data, type):
    """The values, and |d q| + |m| of each, by which the error of a sum of d * q + m is measured."""
    size, n_bytes, _ = LAYOUTS[type]
    parts = [
        part for block in data.reshape(-1, n_bytes) for part in _DECODERS[type](block.tolist())
    ]
    product, offset = np.array(parts, np.float64).reshape(-1, 2).T
    shape = (*data.shape[:-1], data.shape[-1] // n_bytes * size)
    with np.errstate(over="ignore"):  # 6 * 2^127 is infinity
        # Without an offset, a product that is zero keeps its sign.
        exact = np.where(offset == 0, product, product + offset)
        values = exact.astype(np.float32).astype(np.float64)
    return values.reshape(shape), (np.abs(product) + np.abs(offset)).reshape(shape)


def quantize(x, type):
    """float32 [..., n] to uint8 [..., n / 32 * bytes of a block]; type: one of WRITTEN."""
    x = np.asarray(x, np.float32)
    packed = b"".join(encode_block(block, type) for block in x.reshape(-1, 32))
    return np.frombuffer(bytearray(packed), np.uint8).reshape(
        *x.shape[:-1], x.shape[-1] // 32 * block_bytes(type)
    )


# ---- decoders: a block's bytes to its values' (product with d, offset), one after the other ------


def _q8_0(block):
    for i in range(32):
        yield _half(block, 0) * _signed(block[2 + i]), 0.0


def _q4_0(block):
    for i in range(32):
        yield _half(block, 0) * (_nibble(block[2:], i) - 8), 0.0


def _q4_1(block):
    for i in range(32):
        yield _half(block, 0) * _nibble(block[4:], i), _half(block, 2)


def _q5_0(block):
    for i in range(32):
        q = _nibble(block[6:], i) | _bit(block[2:6], i) << 4
        yield _half(block, 0) * (q - 16), 0.0


def _q5_1(block):
    for i in range(32):
        q = _nibble(block[8:], i) | _bit(block[4:8], i) << 4
        yield _half(block, 0) * q, _half(block, 2)


def _q2_k(block):
    scales, qs, d, dmin = block[:16], block[16:80], _half(block, 80), _half(block, 82)
    for i in range(256):
        n, j, c = i // 128, i % 128 // 32, i % 32
        q = qs[32 * n + c] >> 2 * j & 3
        scale = scales[8 * n + 2 * j + c // 16]
        yield d * (scale & 15) * q, -dmin * (scale >> 4)


def _q3_k(block):
    mask, qs, scales, d = block[:32], block[32:96], block[96:108], _half(block, 108)
    for i in range(256):
        n, j, c = i // 128, i % 128 // 32, i % 32
        q = qs[32 * n + c] >> 2 * j & 3
        if not mask[c] >> (4 * n + j) & 1:
            q -= 4
        s = 8 * n + 2 * j + c // 16
        low = scales[s] & 15 if s < 8 else scales[s - 8] >> 4
        high = scales[8 + s % 4] >> 2 * (s // 4) & 3
        yield d * ((low | high << 4) - 32) * q, 0.0


def _q4_k(block):
    scales, qs, d, dmin = block[4:16], block[16:], _half(block, 0), _half(block, 2)
    for i in range(256):
        scale, minimum = _scale_and_minimum(scales, i // 32)
        j, half, c = i // 64, i % 64 // 32, i % 32
        q = qs[32 * j + c] >> 4 * half & 15
        yield d * scale * q, -dmin * minimum


def _q5_k(block):
    scales, qh, qs, d, dmin = (
        block[4:16],
        block[16:48],
        block[48:],
        _half(block, 0),
        _half(block, 2),
    )
    for i in range(256):
        scale, minimum = _scale_and_minimum(scales, i // 32)
        j, half, c = i // 64, i % 64 // 32, i % 32
        q = qs[32 * j + c] >> 4 * half & 15 | (qh[c] >> (2 * j + half) & 1) << 4
        yield d * scale * q, -dmin * minimum


def _q6_k(block):
    ql, qh, scales, d = block[:128], block[128:192], block[192:208], _half(block, 208)
    for i in range(256):
        n, j, c = i // 128, i % 128 // 32, i % 32
        low = ql[64 * n + 32 * (j % 2) + c]
        low = low & 15 if j < 2 else low >> 4
        high = qh[32 * n + c] >> 2 * j & 3
        scale = _signed(scales[8 * n + 2 * j + c // 16])
        yield d * scale * ((low | high << 4) - 32), 0.0


def _iq4_nl(block):
    for i in range(32):
        yield _half(block, 0) * IQ4[_nibble(block[2:], i)], 0.0


def _iq4_xs(block):
    high, low, d = block[2:4], block[4:8], _half(block, 0)
    for i in range(256):
        j, c = i // 32, i % 32
        scale = low[j // 2] >> 4 * (j % 2) & 15 | (high[j // 4] >> 2 * (j % 4) & 3) << 4
        yield d * (scale - 32) * IQ4[_nibble(block[8 + 16 * j :], c)], 0.0


def _mxfp4(block):
    for i in range(32):
        yield math.ldexp(E2M1[_nibble(block[1:], i)], block[0] - 127), 0.0


_DECODERS = {
    "q8_0": _q8_0,
    "q4_0": _q4_0,
    "q4_1": _q4_1,
    "q5_0": _q5_0,
    "q5_1": _q5_1,
    "q2_k": _q2_k,
    "q3_k": _q3_k,
    "q4_k": _q4_k,
    "q5_k": _q5_k,
    "q6_k": _q6_k,
    "iq4_nl": _iq4_nl,
    "iq4_xs": _iq4_xs,
    "mxfp4": _mxfp4,
}


def _half(block, at):
    return decode_float16(block[at] | block[at + 1] << 8)


def _signed(byte):
    return byte - 256 if byte > 127 else byte


def _nibble(packed, i):
    """Byte i holds quant i in its low and quant i + 16 in its high nibble."""
    return packed[i] & 15 if i < 16 else packed[i - 16] >> 4


def _bit(packed, i):
    """Bit i of a little-endian number."""
    return packed[i // 8] >> i % 8 & 1


def _scale_and_minimum(scales, i):
    """Of sub-block i, 6 bits each, in the 12 bytes that Q4_K and Q5_K have for 8 of them."""
    if i < 4:
        return scales[i] & 63, scales[i + 4] & 63
    scale = scales[i + 4] & 15 | scales[i - 4] >> 6 << 4
    minimum = scales[i + 4] >> 4 | scales[i] >> 6 << 4
    return scale, minimum


# ---- encoders ------------------------------------------------------------------------------------


def encode_block(values, type):
    """A block's bytes from 32 finite floats, as ggml-quants.c's quantize_row_*_ref have it.

    Every step is one float32 operation, in GGML's order: the divisions and products decide which
    way a tie goes. Where 1 / d overflows, d is zero as a float16 and the quants are those of d = 0.
    """
    x = [np.float32(v) for v in values]
    if type == "iq4_nl":
        return _encode_iq4_nl(x)
    if type == "mxfp4":
        return _encode_mxfp4(x)
    with np.errstate(all="ignore"):
        if type == "q8_0":
            d = max(abs(v) for v in x) / np.float32(127)
            inverse = _inverse(d)
            quants = [_round_half_away(float(v * inverse)) for v in x]
            return struct.pack("<H32b", encode_float16(float(d)), *quants)
        if type in ("q4_0", "q5_0"):
            zero = {"q4_0": 8, "q5_0": 16}[type]
            largest = np.float32(0)
            for v in x:
                if abs(v) > abs(largest):
                    largest = v
            d = largest / np.float32(-zero)
            inverse = _inverse(d)
            rounding = np.float32(zero + 0.5)
            quants = [min(2 * zero - 1, int(v * inverse + rounding)) for v in x]
            header = struct.pack("<H", encode_float16(float(d)))
        else:
            highest = {"q4_1": 15, "q5_1": 31}[type]
            d = (max(x) - min(x)) / np.float32(highest)
            inverse = _inverse(d)
            quants = [min(highest, int((v - min(x)) * inverse + np.float32(0.5))) for v in x]
            header = struct.pack("<HH", encode_float16(float(d)), encode_float16(float(min(x))))
    if type in ("q5_0", "q5_1"):
        header += struct.pack("<I", sum(quant >> 4 << i for i, quant in enumerate(quants)))
    return header + _nibbles(quants)


def _encode_iq4_nl(x):
    """Quants by d = largest / -127, the upper of two that are as near; then the d with the least
    squared error, weighted by x squared. GGML leaves the quants of a block of zeros open."""
    largest = max(x, key=abs)
    if abs(largest) < np.float32(1e-15):
        return bytes(2) + _nibbles([8] * 32)
    inverse = np.float32(1) / (largest / np.float32(-127))
    quants = [
        min(range(15, -1, -1), key=lambda q: abs(v * inverse - np.float32(IQ4[q]))) for v in x
    ]
    numerator = denominator = np.float32(0)
    for v, quant in zip(x, quants, strict=True):
        value = np.float32(IQ4[quant])
        numerator += v * v * value * v
        denominator += v * v * value * value
    return struct.pack("<H", encode_float16(float(numerator / denominator))) + _nibbles(quants)


def _encode_mxfp4(x):
    """The exponent of the largest magnitude, less 2, which is that of E2M1's largest value, 6. GGML
    leaves open what becomes of one below 2^-125. The smaller of two magnitudes that are as near."""
    largest = float(max(abs(v) for v in x))
    exponent = max(math.frexp(largest)[1] - 1 - 2 + 127, 0) if largest else 0
    values = [math.ldexp(value, exponent - 127) for value in E2M1]
    return bytes([exponent]) + _nibbles(
        [min(range(16), key=lambda q: abs(values[q] - float(v))) for v in x]
    )


def _nibbles(quants):
    return bytes(quants[i] & 15 | (quants[i + 16] & 15) << 4 for i in range(16))


def _inverse(d):
    inverse = np.float32(1) / d
    return inverse if np.isfinite(inverse) else np.float32(0)


def _round_half_away(v):
    return int(math.copysign(math.floor(abs(v) + 0.5), v))
