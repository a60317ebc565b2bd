"""Reads matrices of GPTQ and AWQ, which are stored by columns, as blocks of GGML; see hf_blocks.py.

gptq   q4_0 if all zero points are 8, else q4_1
awq    q4_1
"""

import numpy as np

from airllm.formats.hf_blocks import (
    BLOCK,
    WORD,
    Bytes,
    Float32,
    Rows,
    blocks_of,
    check_columns,
    group_columns,
    halves,
    halves_of_pairs,
    repeated,
    row_source,
    scales_f16,
    whole_sizes,
)
from airllm.formats.hf_quantization import Quantization
from airllm.formats.hf_sources import FLOAT_TYPES, RowSource, Stored

__all__ = ["Strips", "awq", "gptq"]

STRIP_VALUES = 2**22  # of a matrix that is stored by columns, made at a time

# The nibble, from the lowest on, of columns 0 to 7 in an int32.
_IN_ORDER = (0, 1, 2, 3, 4, 5, 6, 7)
_OF_AWQ = (0, 4, 1, 5, 2, 6, 3, 7)  # nibbles 0 to 7 are columns 0, 2, 4, 6, 1, 3, 5, 7


class Strips:
    """Keeps the strip of rows that was made last, a few megabytes for all matrices of a folder.

    Rows of a matrix that is stored by columns are a few bytes of each row in the file, so that to
    make a few of them takes about as long as to make 4 million values.
    """

    def __init__(self) -> None:
        self._last: tuple[Rows, int, Bytes] | None = None

    def rows(self, shape: tuple[int, int], make: Rows) -> Rows:
        """make: rows (first, end), both a multiple of 8. Returns it for any rows."""
        n, k = shape
        step = max(STRIP_VALUES // k // WORD, 1) * WORD

        def rows(first: int, end: int) -> Bytes:
            found = []
            while first < end:
                start = first // step * step
                until = min(start + step, end)
                found.append(
                    self._strip(make, start, min(start + step, n))[first - start : until - start]
                )
                first = until
            return found[0] if len(found) == 1 else np.concatenate(found)

        return rows

    def _strip(self, make: Rows, first: int, end: int) -> Bytes:
        last = self._last
        if last is None or last[:2] != (make, first):
            self._last = last = make, first, make(first, end)
        return last[2]


def gptq(
    weight: Stored, zeros: Stored, scales: Stored, quantization: Quantization, strips: Strips
) -> RowSource:
    """scale * (code - zero). weight: int32 [k / 8, n], the lowest nibble first.
    zeros: int32 [k / group, n / 8]. scales: float [k / group, n]."""
    weight.expect_dtype("I32")
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise weight.fault(f"has shape {list(weight.shape)}; expected [k / 8, n]")
    n, k = weight.shape[1], WORD * weight.shape[0]
    group = _check_grid(weight, zeros, scales, n, k, quantization)
    offset = np.uint8(quantization.zero_offset)

    def strip(first: int, end: int) -> Bytes:
        words = weight.read(0, k // WORD, (4 * first, 4 * end)).view("<u4").T
        codes = np.ascontiguousarray(words).view(np.uint8).reshape(end - first, -1, BLOCK // 2)
        # The sum has 4 bits: a zero point of 0 is stored as 15.
        zero = _columns(zeros, first, end, _IN_ORDER) + offset & np.uint8(15)
        scale = scales.floats(0, k // group, (first, end)).T
        if not quantization.symmetric:
            return _with_zeros(scales, scale, zero, group, halves_of_pairs(codes))
        if (zero != 8).any():
            raise zeros.fault(
                "has zero points other than 8, and quantization_config says sym; its sym should "
                "be false"
            )
        return blocks_of(repeated(scales_f16(scales, scale), group), halves_of_pairs(codes))

    type = "q4_0" if quantization.symmetric else "q4_1"
    rows = strips.rows((n, k), strip)
    return row_source(_named_weight(weight), type, (n, k), rows, weight, zeros, scales)


def awq(
    weight: Stored, zeros: Stored, scales: Stored, quantization: Quantization, strips: Strips
) -> RowSource:
    """scale * (code - zero). weight: int32 [k, n / 8], columns in AWQ's order.
    zeros: int32 [k / group, n / 8], likewise. scales: float [k / group, n]."""
    weight.expect_dtype("I32")
    if len(weight.shape) != 2 or 0 in weight.shape:
        raise weight.fault(f"has shape {list(weight.shape)}; expected [k, n / 8]")
    n, k = WORD * weight.shape[1], weight.shape[0]
    group = _check_grid(weight, zeros, scales, n, k, quantization)

    def strip(first: int, end: int) -> Bytes:
        codes = _columns(weight, first, end, _OF_AWQ).reshape(end - first, -1, BLOCK)
        zero = _columns(zeros, first, end, _OF_AWQ)
        scale = scales.floats(0, k // group, (first, end)).T
        return _with_zeros(scales, scale, zero, group, halves(codes))

    rows = strips.rows((n, k), strip)
    return row_source(_named_weight(weight), "q4_1", (n, k), rows, weight, zeros, scales)


def _check_grid(
    weight: Stored, zeros: Stored, scales: Stored, n: int, k: int, quantization: Quantization
) -> int:
    """The columns of a group, after a check of all shapes."""
    scales.expect_dtype(*FLOAT_TYPES)
    zeros.expect_dtype("I32")
    check_columns(weight, k)
    if n % WORD:
        raise weight.fault(f"has {n} rows of weights; expected a multiple of {WORD}")
    sizes = whole_sizes(quantization.group_sizes, k)
    group = group_columns(scales, {(k // size, n): size for size in sizes})
    zeros.expect_shape(k // group, n // WORD)
    return group


def _columns(stored: Stored, first: int, end: int, nibbles: tuple[int, ...]) -> Bytes:
    """Columns first to end, both a multiple of 8, of a tensor of int32 words with 8 columns each:
    uint8 [end - first, rows of the tensor]. nibbles: the nibble of each column of a word."""
    n_rows, n_words = stored.shape[0], (end - first) // WORD
    words = stored.read(0, n_rows, (first // 2, end // 2)).view("<u4").T  # [n_words, n_rows]
    words = np.ascontiguousarray(words)
    found = np.empty((n_words, WORD, n_rows), np.uint8)
    for column, nibble in enumerate(nibbles):
        found[:, column] = words >> np.uint32(4 * nibble) & np.uint32(15)
    return found.reshape(end - first, n_rows)


def _with_zeros(scales: Stored, scale: Float32, zero: Bytes, group: int, codes: Bytes) -> Bytes:
    """Blocks of q4_1: d = scale, m = -scale * zero. scale, zero: [n, k / group]."""
    header = np.stack([scales_f16(scales, scale), scales_f16(scales, -scale * zero)], axis=2)
    n, n_groups = scale.shape
    header = header.reshape(n, n_groups, -1)  # uint8 [n, n_groups, 4]
    return blocks_of(np.repeat(header, group // BLOCK, axis=1), codes)


def _named_weight(stored: Stored) -> str:
    return f"{stored.name.removesuffix('qweight')}weight"
