"""Reads matrices of 4 bits that are stored by rows, MXFP4, NVFP4 and int4 of compressed-tensors, as
blocks of GGML; see hf_blocks.py."""

import math
from dataclasses import replace

import numpy as np

from airllm.formats.hf_blocks import (
    BLOCK,
    NAN_E8M0,
    WORD,
    Bytes,
    blocks_of,
    check_columns,
    group_columns,
    halves_of_pairs,
    repeated,
    row_source,
    scales_f16,
    whole_sizes,
)
from airllm.formats.hf_sources import FLOAT_TYPES, RowSource, Stored

__all__ = ["int4", "mxfp4", "nvfp4"]

LARGEST_E4M3 = 0x7E  # of the codes that are neither negative nor NaN


def mxfp4(blocks: Stored, scales: Stored, name: str) -> RowSource:
    """blocks: uint8 [..., n, k / 32, 16], or [n, k / 2] of compressed-tensors and DeepSeek V4;
    neighbours are in a byte. scales: uint8 [..., n, k / 32], powers of two (E8M0). name: of the
    matrix."""
    blocks.expect_dtype("U8", "I8")
    scales.expect_dtype("U8", "F8_E8M0")
    shape = blocks.shape
    apart = blocks.name.endswith("_blocks")
    if apart and shape[-1:] == (BLOCK // 2,):
        shape = (*shape[:-2], math.prod(shape[-2:]))
    elif apart:
        shape = ()
    if len(shape) < 2 or 0 in shape or shape[-1] % (BLOCK // 2):
        raise blocks.fault(f"has shape {list(blocks.shape)}; expected blocks of 16 bytes")
    k = 2 * shape[-1]
    scales.expect_shape(*shape[:-1], k // BLOCK)
    n_blocks = k // BLOCK
    step = n_blocks if apart else 1  # rows of `blocks` for a row of the matrix

    def rows(first: int, end: int) -> Bytes:
        codes = blocks.read(first * step, end * step).reshape(end - first, n_blocks, BLOCK // 2)
        exponents = scales.read(first, end)
        if (exponents == NAN_E8M0).any():
            raise scales.fault("has a scale that is no number")
        return blocks_of(exponents[..., np.newaxis], halves_of_pairs(codes))

    return row_source(name, "mxfp4", (*shape[:-1], k), rows, blocks, scales)


def nvfp4(codes: Stored, scales: Stored, whole: Stored, name: str, *, divides: bool) -> RowSource:
    """codes: uint8 [n, k / 2], neighbours in a byte. scales: E4M3 [n, k / 16]. whole: float32, by
    which the matrix is multiplied, or, if it `divides`, divided. name: of the matrix."""
    codes.expect_dtype("U8")
    scales.expect_dtype("F8_E4M3")
    whole.expect_dtype("F32")
    if len(codes.shape) != 2 or 0 in codes.shape or codes.shape[1] % 32:
        raise codes.fault(f"has shape {list(codes.shape)}; expected [n, k / 2], k a multiple of 64")
    n, k = codes.shape[0], 2 * codes.shape[1]
    scales.expect_shape(n, k // 16)
    if whole.shape not in ((), (1,)):
        raise whole.fault(f"has shape {list(whole.shape)}; expected one number")
    scale = _scale_of(whole, divides)

    def rows(first: int, end: int) -> Bytes:
        stored = scales.read(first, end)
        if (stored > LARGEST_E4M3).any():
            raise scales.fault("has a scale that is negative or no number")
        pairs = codes.read(first, end)
        # Byte i of the 8 of 16 columns has columns i and i + 8 in GGML's blocks.
        columns = np.stack([pairs & np.uint8(15), pairs >> np.uint8(4)], axis=-1)
        words = columns.reshape(end - first, k // 64, 4, 16).view("<u8")
        both = words[..., 0] | words[..., 1] << np.uint64(4)  # [rows, blocks, 4]
        header = stored.reshape(end - first, k // 64, 4)
        return blocks_of(header, both.astype("<u8", copy=False).view(np.uint8))

    source = row_source(name, "nvfp4", (n, k), rows, codes, scales, whole)
    return replace(source, scale=(scale,))


def _scale_of(whole: Stored, divides: bool) -> float:
    [[value]] = whole.floats(0, 1)
    with np.errstate(divide="ignore", over="ignore"):
        scale = np.float32(1.0) / value if divides else value
    if not (value > 0 and 0 < scale < np.inf):
        raise whole.fault(f"is {value:g}; expected a number above 0 that scales a matrix")
    return float(scale)


def int4(packed: Stored, scale: Stored, shape: Stored | None, sizes: tuple[int, ...]) -> RowSource:
    """scale * (code - 8). packed: int32 [n, k / 8], the lowest nibble first. scale: float
    [n, k / group]. shape: int [2], n and k. sizes: of groups, as Quantization has them."""
    packed.expect_dtype("I32")
    scale.expect_dtype(*FLOAT_TYPES)
    if len(packed.shape) != 2 or 0 in packed.shape:
        raise packed.fault(f"has shape {list(packed.shape)}; expected [n, k / 8]")
    n, k = packed.shape[0], WORD * packed.shape[1]
    if shape is not None:
        shape.expect_dtype("I32", "I64")
        shape.expect_shape(2)
        said = shape.read(0, 1).view("<i4" if shape.dtype == "I32" else "<i8")[0].tolist()
        if said != [n, k]:
            raise shape.fault(f"says {said}; expected {[n, k]}, as {packed.name} has it")
    check_columns(packed, k)
    group = group_columns(scale, {(n, k // size): size for size in whole_sizes(sizes, k)})

    def rows(first: int, end: int) -> Bytes:
        codes = packed.read(first, end).reshape(end - first, -1, BLOCK // 2)
        scales = scales_f16(scale, scale.floats(first, end))
        return blocks_of(repeated(scales, group), halves_of_pairs(codes))

    name = packed.name.removesuffix("_packed")
    return row_source(name, "q4_0", (n, k), rows, packed, scale)
