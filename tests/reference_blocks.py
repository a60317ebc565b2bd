"""GGML's quantised blocks, value by value, in float64: what the backends are checked against.

Written from the definitions of ggml-common.h to be checked by eye: a loop over a block's values
with one formula each, nothing vectorised, nothing from airllm. In the formulas i counts a block's
values, d and m (dmin) are its float16 scale and offset, q is a quant; of a super-block's values, 32
neighbours c are in 32 neighbouring bytes. The numbers of the codebooks alone are read from the
extension's header; test_ops_quantize.py holds them against gguf-py.
"""

import math
import re
import struct
from pathlib import Path

import numpy as np
from reference import decode_float16, encode_float16

# type: values in a block, bytes of a block, where its float16 numbers are: d, then m or dmin.
# MXFP4 has a byte in place of d, the exponent of a power of two; NVFP4 has four bytes of E4M3. The
# bits of IQ1_M's d are the upper nibbles of four words.
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
    "iq3_xxs": (256, 98, [0]),
    "iq3_s": (256, 110, [0]),
    "iq2_xxs": (256, 66, [0]),
    "iq2_xs": (256, 74, [0]),
    "iq2_s": (256, 82, [0]),
    "iq1_s": (256, 50, [0]),
    "iq1_m": (256, 56, []),
    "tq1_0": (256, 54, [52]),
    "tq2_0": (256, 66, [64]),
    "nvfp4": (64, 36, []),
}
WRITTEN = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4")  # quantize makes them

# What the 16 codes of IQ4_NL and IQ4_XS, and of MXFP4 (E2M1: a sign, two bits of exponent, one of
# fraction) stand for.
IQ4 = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113]
E2M1 = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]


# What the levels of a codebook stand for, of IQ1 as multiples of 1.
IQ2 = [8, 25, 43]
IQ3_XXS = [4, 12, 20, 28, 36, 44, 52, 62]
IQ3_S = [1, 3, 5, 7, 9, 11, 13, 15]
IQ1 = [-1, 0, 1]


def _codebooks():
    """{"iq2_xxs": [entries of 16 bits]}, the lowest bits of which are the first value's level."""
    text = (Path(__file__).parent.parent / "cpp_ext/kernels/codebooks.h").read_text("utf-8")
    found = re.findall(r"(\w+)_codebook\[(\d+)\] = \{([^}]*)\}", text)
    books = {name: [int(n, 16) for n in re.findall(r"0x(\w+)", body)] for name, _, body in found}
    assert [len(books[name]) for name, _, _ in found] == [int(size) for _, size, _ in found]
    return books


CODEBOOKS = _codebooks()


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


def _iq2_xxs(block):
    for i in range(256):
        part = block[2 + 8 * (i // 32) : 10 + 8 * (i // 32)]  # 4 indices, 28 bits of signs, 4 of s
        word, eighth = _number(part[4:]), i % 32 // 8
        scale = _half(block, 0) * (0.5 + (word >> 28)) * 0.25
        signs = _with_even_parity(word >> 7 * eighth & 127)
        yield scale * IQ2[_level("iq2_xxs", part[eighth], i % 8)] * _sign(signs, i % 8), 0.0


def _iq2_xs(block):
    for i in range(256):
        word = _number(block[2 + i // 8 * 2 :][:2])
        scale = _half(block, 0) * (0.5 + _neighbour(block[66:], i // 16)) * 0.25
        signs = _with_even_parity(word >> 9)
        yield scale * IQ2[_level("iq2_xs", word & 511, i % 8)] * _sign(signs, i % 8), 0.0


def _iq2_s(block):
    low, signs, high, scales = block[2:34], block[34:66], block[66:74], block[74:]
    for i in range(256):
        index = low[i // 8] | (high[i // 32] >> 2 * (i % 32 // 8) & 3) << 8
        scale = _half(block, 0) * (0.5 + _neighbour(scales, i // 16)) * 0.25
        yield scale * IQ2[_level("iq2_s", index, i % 8)] * _sign(signs[i // 8], i % 8), 0.0


def _iq3_xxs(block):
    for i in range(256):
        word = _number(block[66 + i // 32 * 4 :][:4])
        scale = _half(block, 0) * (0.5 + (word >> 28)) * 0.5
        signs = _with_even_parity(word >> 7 * (i % 32 // 8) & 127)
        level = _level("iq3_xxs", block[2 + i // 4], i % 4)
        yield scale * IQ3_XXS[level] * _sign(signs, i % 8), 0.0


def _iq3_s(block):
    low, high, signs, scales = block[2:66], block[66:74], block[74:106], block[106:]
    for i in range(256):
        index = low[i // 4] | _bit(high, i // 4) << 8
        scale = _half(block, 0) * (1 + 2 * _neighbour(scales, i // 32))
        yield scale * IQ3_S[_level("iq3_s", index, i % 4)] * _sign(signs[i // 8], i % 8), 0.0


def _iq1_s(block):
    for i in range(256):
        word, eighth = _number(block[34 + i // 32 * 2 :][:2]), i % 32 // 8
        index = block[2 + i // 8] | (word >> 3 * eighth & 7) << 8
        scale = _half(block, 0) * (2 * (word >> 12 & 7) + 1)
        shift = -0.125 if word >> 15 else 0.125
        yield scale * (IQ1[_level("iq1", index, i % 8)] + shift), 0.0


def _iq1_m(block):
    words = [_number(block[48 + 2 * j :][:2]) for j in range(4)]
    d = decode_float16(sum((word >> 12) << 4 * j for j, word in enumerate(words)))
    for i in range(256):
        nibble = _neighbour(block[32:48], i // 8)
        index = block[i // 8] | (nibble & 7) << 8
        scale = d * (2 * (words[i // 64] >> 3 * (i % 64 // 16) & 7) + 1)
        shift = -0.125 if nibble & 8 else 0.125
        yield scale * (IQ1[_level("iq1", index, i % 8)] + shift), 0.0


def _tq1_0(block):
    for i in range(256):
        if i < 160:
            byte, digit = block[i % 32], i // 32
        elif i < 240:
            byte, digit = block[32 + i % 16], (i - 160) // 16
        else:
            byte, digit = block[48 + i % 4], (i - 240) // 4
        # The byte is a fraction of 256: the digit is what its multiple carries past 256.
        yield _half(block, 52) * (byte * 3**digit % 256 * 3 // 256 - 1), 0.0


def _tq2_0(block):
    for i in range(256):
        n, j, c = i // 128, i % 128 // 32, i % 32
        yield _half(block, 64) * ((block[32 * n + c] >> 2 * j & 3) - 1), 0.0


def _nvfp4(block):
    for i in range(64):
        j, c = i // 16, i % 16
        q = block[4 + 8 * j + c % 8] >> 4 * (c // 8) & 15
        yield e4m3(block[j]) * E2M1[q], 0.0


def e4m3(byte):
    """Without a sign, as GGML has it: NaN is 0, but not with the uppermost bit, which counts for
    nothing else."""
    exponent, fraction = byte >> 3 & 15, byte & 7
    if byte == 0x7F:
        return 0.0
    return math.ldexp(8 + fraction, exponent - 10) if exponent else math.ldexp(fraction, -9)


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
    "iq3_xxs": _iq3_xxs,
    "iq3_s": _iq3_s,
    "iq2_xxs": _iq2_xxs,
    "iq2_xs": _iq2_xs,
    "iq2_s": _iq2_s,
    "iq1_s": _iq1_s,
    "iq1_m": _iq1_m,
    "tq1_0": _tq1_0,
    "tq2_0": _tq2_0,
    "nvfp4": _nvfp4,
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


def _number(packed):
    return int.from_bytes(bytes(packed), "little")


def _neighbour(packed, i):
    """Nibble i of bytes that hold two neighbours each, the first in the low nibble."""
    return packed[i // 2] >> 4 * (i % 2) & 15


def _level(codebook, index, i):
    """The level of value i of an entry: of 8 values, or of 4 in IQ3."""
    bits = 4 if codebook.startswith("iq3") else 2
    return CODEBOOKS[codebook][index] >> bits * i & (1 << bits) - 1


def _with_even_parity(seven):
    """7 signs, and the eighth, which makes the number of minus signs even."""
    return seven | seven.bit_count() % 2 << 7


def _sign(signs, i):
    return -1.0 if signs >> i & 1 else 1.0


def _scale_and_minimum(scales, i):
    """Of sub-block i, 6 bits each, in the 12 bytes that Q4_K and Q5_K have for 8 of them."""
    if i < 4:
        return scales[i] & 63, scales[i + 4] & 63
    scale = scales[i + 4] & 15 | scales[i - 4] >> 6 << 4
    minimum = scales[i + 4] >> 4 | scales[i] >> 6 << 4
    return scale, minimum


# ---- scales --------------------------------------------------------------------------------------


def set_scales(blocks, type, scales):
    """Write each block's d, and m or dmin if it has one; of MXFP4 the power of two near to |d|, of
    NVFP4 four numbers from |d| / 2 to |d|.

    blocks: uint8 [n_blocks, bytes of a block]; scales: [n_blocks, 2].
    """
    for column, at in enumerate(LAYOUTS[type][2]):
        blocks[:, at : at + 2] = _halves(scales[:, column])
    d = scales[:, 0]
    if type == "mxfp4":
        blocks[:, 0] = 127 + np.round(np.log2(np.abs(d) + 1e-30))
    if type == "nvfp4":
        values = np.array([e4m3(byte) for byte in range(0x7F)])
        for j in range(4):
            wanted = np.abs(d) * (1 - j / 8)
            blocks[:, j] = np.abs(values - wanted[:, np.newaxis]).argmin(axis=1)
    if type == "iq1_m":
        words = d.astype("<f2").view("<u2")
        for j in range(4):
            blocks[:, 49 + 2 * j] &= 15
            blocks[:, 49 + 2 * j] |= ((words >> 4 * j & 15) << 4).astype(np.uint8)


def make_finite(blocks, type):
    """Clear a bit of the exponents of the scales, so that they are neither infinite nor NaN."""
    for at in LAYOUTS[type][2]:
        blocks[:, at + 1] &= 0xFB
    if type == "iq1_m":
        blocks[:, 53] &= 0xBF


def _halves(numbers):
    return numbers[:, np.newaxis].astype("<f2").view(np.uint8)


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
