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

Numbers count bytes. A byte of nibbles holds the low 4 bits of two quants, a byte of pairs 2 bits of
four quants, a byte of highest the topmost bit of eight. Layouts are those of ggml-common.h,
little-endian.

All products are exact in float32 (11 + 6 + 7 bits at most), so a value is rounded at most once: by
its sum or difference.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops.checks import Float32

Bytes = NDArray[np.uint8]

BLOCK = 32
SUPER_BLOCK = 256

# What the codes of iq4_nl and iq4_xs, and of mxfp4, stand for: int8 [16].
IQ4_VALUES = np.array(
    [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.int8
)
E2M1_VALUES = np.array([0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12], np.int8)


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


def _scaled(scale: Float32, q: NDArray[np.integer[Any]], minimum: Float32 | None = None) -> Float32:
    """scale * q - minimum, with the scale and minimum of each sub-block.

    scale, minimum: [n_blocks, n_sub_blocks]; q: [n_blocks, 256]. Returns float32 [n_blocks, 256].
    """
    n_blocks, n_sub_blocks = scale.shape
    sub_blocks = q.reshape(n_blocks, n_sub_blocks, SUPER_BLOCK // n_sub_blocks)
    values = scale[..., np.newaxis] * sub_blocks
    if minimum is not None:
        values -= minimum[..., np.newaxis]
    return values.reshape(n_blocks, SUPER_BLOCK)
