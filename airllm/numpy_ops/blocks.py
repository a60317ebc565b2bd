"""GGML's blocks: consecutive values of a row, a few bits each, with common float16 scales.

Blocks of 32 values have a scale d, and some types an offset m:

    q8_0    34 bytes   d, 32 int8                           d * q
    q4_0    18         d, 16 nibbles                        d * (q - 8)
    q4_1    20         d, m, 16 nibbles                     d * q + m
    q5_0    22         d, 4 highest, 16 nibbles             d * (q - 16)
    q5_1    24         d, m, 4 highest, 16 nibbles          d * q + m
    iq4_nl  18         d, 16 nibbles                        d * IQ4_VALUES[q]
    mxfp4   17         e, 16 nibbles                        2^(e - 128) * E2M1_VALUES[q]

mxfp4 has a byte e in place of d: half of what OCP's E8M0 says, as E2M1_VALUES are doubled to be
whole. Its values from 2^128 on are infinity.

The K-quants and iq4_xs have super-blocks of 256 values, cut into sub-blocks: 16 of 16 values in
q2_k, q3_k and q6_k, 8 of 32 in q4_k, q5_k and iq4_xs. Each sub-block has its own integer scale s,
and in some types an integer minimum m.

    q2_k    84 bytes   16 s and m, 64 pairs, d, dmin        d * s * q - dmin * m
    q3_k   110         32 highest, 64 pairs, 12 s, d        d * (s - 32) * (q - 4)
    q4_k   144         d, dmin, 12 s and m, 128 nibbles     d * s * q - dmin * m
    q5_k   176         d, dmin, 12 s and m, 32 highest,     d * s * q - dmin * m
                       128 nibbles
    q6_k   210         128 nibbles, 64 upper pairs,         d * s * (q - 32)
                       16 int8 s, d
    iq4_xs 136         d, 2 upper and 4 low of s,           d * (s - 32) * IQ4_VALUES[q]
                       128 nibbles

The IQ types below 4 bits have super-blocks, too. An index i of a codebook gives the levels q of 8
values (IQ2, IQ1) or of 4 (IQ3), see codebooks.py. Of iq2_xxs, iq2_xs and iq3_xxs, the signs of 8
values are stored as 7 bits: the number of minus signs is even.

    iq2_xxs 66 bytes   d, 8 times 4 i, 4 signs and s        d * (s + 1/2) / 4 * +-IQ2_LEVELS[q]
    iq2_xs  74         d, 32 of i and signs, 16 s           the same
    iq2_s   82         d, 32 low of i, 32 signs,            the same
                       32 upper of i, 16 s
    iq3_xxs 98         d, 64 i, 8 times 4 signs and s       d * (s + 1/2) / 2 * +-IQ3_XXS_LEVELS[q]
    iq3_s  110         d, 64 low of i, 64 upper of i,       d * (2 * s + 1) * +-(2 * q + 1)
                       32 signs, 8 s
    iq1_s   50         d, 32 low of i, 8 times 4 upper      d * (2 * s + 1) * (q - 1 +- 1/8)
                       of i, s and a sign of 1/8
    iq1_m   56         32 low of i, 32 upper of i and       the same
                       signs of 1/8, 16 s and d

Two types have three levels, and one d for 256 values. nvfp4 has blocks of 64 values, and a byte s
for 16 of them, an E4M3 number without a sign:

    tq1_0   54 bytes   48 times 5 q, 4 times 4 q, d         d * (q - 1)
    tq2_0   66         64 pairs, d                          d * (q - 1)
    nvfp4   36         4 s, 32 nibbles                      s / 2 * E2M1_VALUES[q]

Numbers count bytes, but of i, s and signs they count these: several share a byte. A byte of nibbles
holds the low 4 bits of two quants, a byte of pairs 2 bits of four quants, a byte of highest the
topmost bit of eight. Layouts are those of ggml-common.h, little-endian.

All products are exact in float32 (11 + 6 + 7 bits at most), so a value is rounded at most once: by
its sum or difference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import codebooks
from airllm.numpy_ops.checks import Float32

Bytes = NDArray[np.uint8]

BLOCK = 32
SUPER_BLOCK = 256

# What the codes of iq4_nl and iq4_xs, and of mxfp4, stand for: int8 [16].
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
E2M1_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)

# What the levels of the codebooks stand for.
IQ2_LEVELS = np.array([8, 25, 43], np.int8)
IQ3_XXS_LEVELS = np.array([4, 12, 20, 28, 36, 44, 52, 62], np.int8)


def _q8_0(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * blocks[:, 2:].view(np.int8)


def _q4_0(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * _centred(_planes(blocks[:, 2:], 4), 8)


def _q4_1(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * _planes(blocks[:, 4:], 4) + _half(blocks, 2)


def _q5_0(blocks: Bytes) -> Float32:
    q = _planes(blocks[:, 6:], 4) | _highest_bits(blocks[:, 2:6])
    return _half(blocks, 0) * _centred(q, 16)


def _q5_1(blocks: Bytes) -> Float32:
    q = _planes(blocks[:, 8:], 4) | _highest_bits(blocks[:, 4:8])
    return _half(blocks, 0) * q + _half(blocks, 2)


def _q2_k(blocks: Bytes) -> Float32:
    s, m = blocks[:, :16] & 15, blocks[:, :16] >> 4
    q = _planes(blocks[:, 16:80], 2, together=32)
    return _scaled(_half(blocks, 80) * s, q, _half(blocks, 82) * m)


def _q3_k(blocks: Bytes) -> Float32:
    q = _planes(blocks[:, 32:96], 2, together=32)
    q |= _planes(blocks[:, :32], 1, to_bit=2)
    s = _planes(blocks[:, 96:104], 4) | _planes(blocks[:, 104:108], 2, to_bit=4)
    return _scaled(_half(blocks, 108) * _centred(s, 32), _centred(q, 4))


def _q4_k(blocks: Bytes) -> Float32:
    s, m = _six_bit_scales(blocks[:, 4:16])
    q = _planes(blocks[:, 16:], 4, together=32)
    return _scaled(_half(blocks, 0) * s, q, _half(blocks, 2) * m)


def _q5_k(blocks: Bytes) -> Float32:
    s, m = _six_bit_scales(blocks[:, 4:16])
    q = _planes(blocks[:, 48:], 4, together=32)
    q |= _planes(blocks[:, 16:48], 1, to_bit=4)
    return _scaled(_half(blocks, 0) * s, q, _half(blocks, 2) * m)


def _q6_k(blocks: Bytes) -> Float32:
    q = _planes(blocks[:, :128], 4, together=64)
    q |= _planes(blocks[:, 128:192], 2, together=32, to_bit=4)
    s = blocks[:, 192:208].view(np.int8)
    return _scaled(_half(blocks, 208) * s, _centred(q, 32))


def _iq4_nl(blocks: Bytes) -> Float32:
    return _half(blocks, 0) * IQ4_VALUES[_planes(blocks[:, 2:], 4)]


def _iq4_xs(blocks: Bytes) -> Float32:
    # Unlike the quants, neighbouring scales share a byte.
    upper, low = _neighbours(blocks[:, 2:4], 2), _neighbours(blocks[:, 4:8], 4)
    s = _centred(low | upper << np.uint8(4), 32)
    return _scaled(_half(blocks, 0) * s, IQ4_VALUES[_planes(blocks[:, 8:], 4, together=16)])


def _mxfp4(blocks: Bytes) -> Float32:
    return power_of_two(blocks[:, :1]) * E2M1_VALUES[_planes(blocks[:, 1:], 4)]


def _iq2_xxs(blocks: Bytes) -> Float32:
    words = _words(blocks[:, 2:], "<u4").reshape(-1, 8, 2)
    i, signs = words[..., 0], words[..., 1]
    q = codebooks.IQ2_XXS[_fields(i, 8, 4)]
    return _signed(
        _half(blocks, 0) * _half_up(signs >> 28, 4), IQ2_LEVELS[q], _signs_of_words(signs)
    )


def _iq2_xs(blocks: Bytes) -> Float32:
    words = _words(blocks[:, 2:66], "<u2")
    q, signs = codebooks.IQ2_XS[words & 511], _EIGHT_SIGNS[words >> 9]
    s = _neighbours(blocks[:, 66:], 4)
    return _signed(_half(blocks, 0) * _half_up(s, 4), IQ2_LEVELS[q], signs)


def _iq2_s(blocks: Bytes) -> Float32:
    i = blocks[:, 2:34] | _neighbours(blocks[:, 66:74], 2).astype(np.uint16) << 8
    s = _neighbours(blocks[:, 74:], 4)
    signs = _signs(blocks[:, 34:66])
    return _signed(_half(blocks, 0) * _half_up(s, 4), IQ2_LEVELS[codebooks.IQ2_S[i]], signs)


def _iq3_xxs(blocks: Bytes) -> Float32:
    q = codebooks.IQ3_XXS[blocks[:, 2:66]]
    signs = _words(blocks[:, 66:], "<u4")
    scale = _half(blocks, 0) * _half_up(signs >> 28, 2)
    return _signed(scale, IQ3_XXS_LEVELS[q], _signs_of_words(signs))


def _iq3_s(blocks: Bytes) -> Float32:
    i = blocks[:, 2:66] | _neighbours(blocks[:, 66:74], 1).astype(np.uint16) << 8
    s = _neighbours(blocks[:, 106:], 4)
    magnitudes = (codebooks.IQ3_S[i] * np.uint8(2) + np.uint8(1)).view(np.int8)
    return _signed(_half(blocks, 0) * (2 * s + 1), magnitudes, _signs(blocks[:, 74:106]))


def _iq1_s(blocks: Bytes) -> Float32:
    words = _words(blocks[:, 34:], "<u2")
    i = blocks[:, 2:34] | _fields(words, 3, 4).reshape(-1, 32) << 8
    shift = np.where(words >> 15, -_EIGHTH, _EIGHTH)
    return _shifted(_half(blocks, 0) * (2 * (words >> 12 & 7) + 1), i, shift)


def _iq1_m(blocks: Bytes) -> Float32:
    nibbles, words = _neighbours(blocks[:, 32:48], 4), _words(blocks[:, 48:], "<u2")
    i = blocks[:, :32] | (nibbles & 7).astype(np.uint16) << 8
    nibbles_of_d = words >> 12 << np.arange(0, 16, 4, dtype=np.uint16)
    d = np.bitwise_or.reduce(nibbles_of_d, axis=1, keepdims=True).view("<f2").astype(np.float32)
    s = _fields(words, 3, 4).reshape(-1, 16)
    return _shifted(d * (2 * s + 1), i, np.where(nibbles >> 3, -_EIGHTH, _EIGHTH))


def _tq1_0(blocks: Bytes) -> Float32:
    q = [_base_3(blocks[:, :32], 5), _base_3(blocks[:, 32:48], 5), _base_3(blocks[:, 48:52], 4)]
    return _half(blocks, 52) * _centred(np.concatenate(q, axis=1), 1)


def _tq2_0(blocks: Bytes) -> Float32:
    return _half(blocks, 64) * _centred(_planes(blocks[:, :64], 2, together=32), 1)


def _nvfp4(blocks: Bytes) -> Float32:
    q = _planes(blocks[:, 4:], 4, together=8).reshape(-1, 4, 16)
    return (_E4M3_HALVES[blocks[:, :4], np.newaxis] * E2M1_VALUES[q]).reshape(-1, 64)


# type: uint8 [n_blocks, bytes of a block] -> float32 [n_blocks, values in a block]
DECODERS: dict[str, Callable[[Bytes], Float32]] = {
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


def power_of_two(e: Bytes) -> Float32:
    """2^(e - 128), float32 of the shape of e. The two smallest are denormal."""
    wide = e.astype(np.uint32)
    bits = np.where(wide < 2, 0x00200000 << wide, wide - 1 << 23)
    return bits.astype(np.uint32).view(np.float32)


def _half(blocks: Bytes, at: int) -> Float32:
    """The float16 at byte `at` of each block: float32 [n_blocks, 1]."""
    return blocks[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _planes(packed: Bytes, bits: int, together: int | None = None, to_bit: int = 0) -> Bytes:
    """Unpacks fields of `bits` bits: [n_blocks, n_bytes] to [n_blocks, n_bytes * 8 / bits].

    Neighbouring values are in neighbouring bytes. First come the lowest fields of the first
    `together` bytes (None: of all bytes), then the next higher fields of these bytes, and so on;
    then the same for the next bytes. to_bit: shifts the fields, so that others can be added.
    """
    n_blocks, n_bytes = packed.shape
    together = together or n_bytes
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, np.newaxis]
    groups = packed.reshape(n_blocks, n_bytes // together, 1, together)
    fields = groups >> shifts & np.uint8(2**bits - 1)  # [n_blocks, n_groups, 8 / bits, together]
    return fields.reshape(n_blocks, n_bytes * 8 // bits) << np.uint8(to_bit)


def _neighbours(packed: Bytes, bits: int) -> Bytes:
    """Unpacks fields of `bits` bits in the order in which they lie: a byte holds neighbours."""
    n_blocks, n_bytes = packed.shape
    return _planes(packed.reshape(-1, 1), bits).reshape(n_blocks, n_bytes * 8 // bits)


def _words(packed: Bytes, dtype: str) -> NDArray[np.integer[Any]]:
    """[n_blocks, n_bytes] as little-endian numbers, side by side."""
    return packed.copy().view(dtype)


def _fields(words: NDArray[np.integer[Any]], bits: int, count: int) -> NDArray[Any]:
    """The lowest `count` fields of `bits` bits of each word, on a new last axis."""
    shifts = np.arange(0, bits * count, bits).astype(words.dtype)
    return words[..., np.newaxis] >> shifts & words.dtype.type(2**bits - 1)


def _base_3(packed: Bytes, digits: int) -> Bytes:
    """The digits of tq1_0: [n_blocks, n_bytes] to [n_blocks, digits * n_bytes].

    A byte is a number in base 3, as a fraction of 256 rounded up. First come the first digits of
    all bytes.
    """
    powers = np.array([1, 3, 9, 27, 81], np.uint8)[:digits, np.newaxis]
    fractions = (packed[:, np.newaxis] * powers).astype(np.uint16)
    carried = (fractions * np.uint16(3) >> 8).astype(np.uint8)
    return carried.reshape(len(packed), digits * packed.shape[1])


def _signs(packed: Bytes) -> NDArray[np.int8]:
    """1, or -1 where a bit is set: [..., n_bytes] to [..., 8 * n_bytes]."""
    return np.int8(1) - np.int8(2) * np.unpackbits(packed, axis=-1, bitorder="little").view(np.int8)


# The signs of 8 values that 7 bits stand for: int8 [128, 8].
_SEVEN = np.arange(128, dtype=np.uint8)
_PARITY = np.bitwise_xor.reduce(_SEVEN[:, np.newaxis] >> np.arange(7, dtype=np.uint8) & 1, axis=1)
_EIGHT_SIGNS = _signs((_SEVEN | _PARITY << np.uint8(7))[:, np.newaxis])


def _signs_of_words(words: NDArray[np.integer[Any]]) -> NDArray[np.int8]:
    """Of the low 28 bits of uint32 [n_blocks, 8]: four times 7 bits."""
    signs: NDArray[np.int8] = _EIGHT_SIGNS[_fields(words, 7, 4)]
    return signs


def _half_up(s: NDArray[np.integer[Any]], divisor: int) -> Float32:
    """(s + 1/2) / divisor."""
    return (s.astype(np.float32) + np.float32(0.5)) / np.float32(divisor)


def _signed(scale: Float32, magnitudes: NDArray[np.int8], signs: NDArray[np.int8]) -> Float32:
    """scale * magnitude * sign, see _scaled; both [n_blocks, ...] of 256 for each block."""
    shape = (len(scale), SUPER_BLOCK)
    return _scaled(scale, magnitudes.reshape(shape) * signs.reshape(shape))


def _shifted(scale: Float32, i: NDArray[np.integer[Any]], shift: Float32) -> Float32:
    """The values of iq1. scale: [n_blocks, n_sub_blocks]; i: [n_blocks, 32]; shift: [n_blocks, n],
    the same for 32 / n neighbouring i."""
    levels = (
        _centred(codebooks.IQ1[i], 1) + shift.repeat(i.shape[1] // shift.shape[1], 1)[..., None]
    )
    return _scaled(scale, levels.reshape(len(scale), SUPER_BLOCK))


def _e4m3_halves() -> Float32:
    """Half of what each byte means as E4M3 without a sign: float32 [256]. 0x7f, a NaN, counts as 0;
    GGML ignores the uppermost bit of all others."""
    e = np.arange(256)
    exponent, mantissa = e >> 3 & 15, e & 7
    units = np.where(exponent, (8 + mantissa) << np.maximum(exponent - 1, 0), mantissa)
    return np.where(e == 0x7F, 0, units * 2.0**-10).astype(np.float32)


_EIGHTH = np.float32(0.125)
_E4M3_HALVES = _e4m3_halves()


def _highest_bits(packed: Bytes) -> Bytes:
    """[n_blocks, 4] to 0 or 16 for each value, [n_blocks, 32]. A byte holds 8 neighbours."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _six_bit_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """s and m of q4_k and q5_k: uint8 [n_blocks, 12] to two of [n_blocks, 8], each 0 to 63.

    The first four s and m are the low 6 bits of bytes 0 to 3 and 4 to 7. The last four s and m have
    their upper 2 bits in the upper 2 bits of these bytes, and their low 4 bits in the nibbles of
    bytes 8 to 11.
    """
    first_s, first_m, low = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    s = np.concatenate([first_s & 63, low & 15 | first_s >> 6 << np.uint8(4)], axis=1)
    m = np.concatenate([first_m & 63, low >> 4 | first_m >> 6 << np.uint8(4)], axis=1)
    return s, m


def _centred(q: Bytes, zero: int) -> NDArray[np.int8]:
    """q - zero, for q up to 63."""
    return q.view(np.int8) - np.int8(zero)


def _scaled(scale: Float32, q: NDArray[Any], minimum: Float32 | None = None) -> Float32:
    """scale * q - minimum, with the scale and minimum of each sub-block.

    scale, minimum: [n_blocks, n_sub_blocks]; q: [n_blocks, 256]. Returns float32 [n_blocks, 256].
    """
    n_blocks, n_sub_blocks = scale.shape
    sub_blocks = q.reshape(n_blocks, n_sub_blocks, SUPER_BLOCK // n_sub_blocks)
    values: Float32 = scale[..., np.newaxis] * sub_blocks
    if minimum is not None:
        values -= minimum[..., np.newaxis]
    return values.reshape(n_blocks, SUPER_BLOCK)
