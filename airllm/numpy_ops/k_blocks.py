"""Quantises rows to the K types: the search's result as the bytes of a file (see blocks.py)."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops.blocks import SUPER_BLOCK, Bytes
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.k_search import LEAST_WEIGHT, SEARCHES, Found

__all__ = ["has_scale", "is_too_small", "quantize_k", "weights_of"]

_AT_A_TIME = 1024  # blocks
_ZERO = {"q3_k": 4, "q6_k": 32}  # the codes of zero; 0 for other types

# Half of the smallest step in half precision, 2^-25, is nearer to zero than to the step; a block
# beyond the other limit has no scale in half precision.
_SMALLEST, _LARGEST = np.float32(2.0**-26), np.float32(2.0**30)


@np.errstate(all="ignore")
def quantize_k(x: Float32, type: str, importance: Float32 | None) -> Bytes:
    """x: float32 [n_blocks, 256]; importance: of their columns, of the same shape, or None.
    Returns uint8 [n_blocks, bytes of a block]."""
    made = [
        _quantize(
            x[first : first + _AT_A_TIME],
            type,
            None if importance is None else importance[first : first + _AT_A_TIME],
        )
        for first in range(0, len(x), _AT_A_TIME)
    ]
    return np.concatenate(made)


def _quantize(x: Float32, type: str, importance: Float32 | None) -> Bytes:
    search = SEARCHES[type]
    magnitude = np.abs(x).max(axis=1)
    sound = has_scale(magnitude)
    columns = _side_by_side(np.where(sound[:, np.newaxis], x, np.float32(0)), search.sub)
    found = search.find(columns, _side_by_side(weights_of(x, importance), search.sub))
    made = sound & (found.error < np.inf)
    codes = search.codes(columns, found) + np.float32(_ZERO.get(type, 0))
    q = np.ascontiguousarray(codes.transpose(1, 2, 0)).reshape(-1, SUPER_BLOCK)
    each = made[:, np.newaxis]
    whole = Found(
        np.where(
            made, found.d, np.where(is_too_small(magnitude), np.float32(0), np.float32(np.nan))
        ),
        np.where(made, found.d_min, np.float32(0)),
        np.where(each, found.s, np.float32(0)),
        np.where(each, found.m, np.float32(0)),
        found.error,
    )
    return _PACKERS[type](whole, np.where(each, q, np.float32(_ZERO.get(type, 0))).astype(np.uint8))


def has_scale(magnitude: Float32) -> NDArray[np.bool_]:
    """Which blocks of these magnitudes have a scale in half precision."""
    return (magnitude >= _SMALLEST) & (magnitude <= _LARGEST)


def is_too_small(magnitude: Float32) -> NDArray[np.bool_]:
    """Which blocks become zeros."""
    return magnitude < _SMALLEST


def weights_of(x: Float32, importance: Float32 | None) -> Float32:
    """The importance as a share of the block's largest, at least a millionth."""
    if importance is None:
        return np.ones_like(x)
    largest = importance.max(axis=1, keepdims=True)
    share = np.where(largest > 0, importance / largest, np.float32(1))
    return np.maximum(share, LEAST_WEIGHT)


def _side_by_side(x: Float32, sub: int) -> Float32:
    """[n_blocks, 256] to [columns of a sub-block, n_blocks, n_sub_blocks]."""
    return np.ascontiguousarray(x.reshape(len(x), -1, sub).transpose(2, 0, 1))


# Each packs what the search has found and the codes, uint8 [n_blocks, 256].


def _pack_q2_k(found: Found, q: Bytes) -> Bytes:
    scales = _bytes(found.s) | _bytes(found.m) << np.uint8(4)
    return _joined(scales, _planes(q, 0, 2, 32), _half(found.d), _half(found.d_min))


def _pack_q3_k(found: Found, q: Bytes) -> Bytes:
    s = _bytes(found.s + np.float32(32))
    low = s[:, :8] & 15 | (s[:, 8:] & 15) << np.uint8(4)
    upper = (s >> np.uint8(4)).reshape(-1, 4, 4) << np.array([[0], [2], [4], [6]], np.uint8)
    high = np.bitwise_or.reduce(upper, axis=1)
    return _joined(_planes(q, 2, 1, 32), _planes(q, 0, 2, 32), low, high, _half(found.d))


def _pack_q4_k(found: Found, q: Bytes) -> Bytes:
    halves = _half(found.d), _half(found.d_min)
    return _joined(*halves, _six_bit_scales(found), _planes(q, 0, 4, 32))


def _pack_q5_k(found: Found, q: Bytes) -> Bytes:
    halves, fifth = (_half(found.d), _half(found.d_min)), _planes(q, 4, 1, 32)
    return _joined(*halves, _six_bit_scales(found), fifth, _planes(q, 0, 4, 32))


def _pack_q6_k(found: Found, q: Bytes) -> Bytes:
    s = found.s.astype(np.int8).view(np.uint8)
    return _joined(_planes(q, 0, 4, 64), _planes(q, 4, 2, 32), s, _half(found.d))


_PACKERS = {
    "q2_k": _pack_q2_k,
    "q3_k": _pack_q3_k,
    "q4_k": _pack_q4_k,
    "q5_k": _pack_q5_k,
    "q6_k": _pack_q6_k,
}


def _planes(q: Bytes, lowest: int, bits: int, together: int) -> Bytes:
    """Bits from `lowest` on of the codes: the opposite of blocks._planes."""
    fields = q.reshape(len(q), -1, 8 // bits, together) >> np.uint8(lowest)
    fields &= np.uint8(2**bits - 1)
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, np.newaxis]
    packed: Bytes = np.bitwise_or.reduce(fields << shifts, axis=2)
    return packed.reshape(len(q), -1)


def _six_bit_scales(found: Found) -> Bytes:
    """12 bytes with 8 of s and 8 of m: the opposite of blocks._six_bit_scales."""
    s, m = _bytes(found.s), _bytes(found.m)
    first_s, first_m = (each[:, :4] | each[:, 4:] >> np.uint8(4) << np.uint8(6) for each in (s, m))
    low = s[:, 4:] & 15 | (m[:, 4:] & 15) << np.uint8(4)
    return np.concatenate([first_s, first_m, low], axis=1)


def _bytes(values: Float32) -> Bytes:
    return values.astype(np.uint8)


def _half(values: Float32) -> Bytes:
    return values.astype("<f2")[:, np.newaxis].view(np.uint8)


def _joined(*parts: NDArray[Any]) -> Bytes:
    return np.concatenate(parts, axis=1)
