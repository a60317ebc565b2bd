"""Blocks of GGML out of the codes and scales of a quantised Hugging Face folder.

GGML has a type with the same codes for each format of 4 bits. The codes are copied; only their
order and the place of the scales change:

    folder                                 becomes   what is lost
    MXFP4 (gpt-oss, compressed-tensors)    mxfp4     nothing
    NVFP4 (ModelOpt, compressed-tensors)   nvfp4     nothing; the scale of the whole matrix is a
                                                     tensor beside it, and where a folder has its
                                                     inverse, that is rounded to float32
    int4, GPTQ with all zero points 8      q4_0      nothing of F16 scales. BF16 scales are exact
                                                     from 2^-17 on; F32 scales lose up to 2^-11.
    AWQ, GPTQ with zero points             q4_1      m = -scale * zero is rounded to F16: less than
                                                     zero * 2^-11 of a step, 0.7% of it at most
    FP8 (E4M3)                             q8_0      see hf_fp8.py

GGML has one scale for 32 columns, so the scale of a larger group is repeated: 4.5 bits a weight in
place of 4.13 (int4, groups of 128), and 5 in place of 4.16 (AWQ).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from airllm.formats.hf_quantization import WHOLE_ROW, Quantization
from airllm.formats.hf_sources import RowSource, Stored

BLOCK = 32
WORD = 8  # nibbles of an int32
NAN_E8M0 = 255
_LOW = np.uint64(0x0F0F0F0F0F0F0F0F)  # the low nibbles of 8 bytes

Bytes = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]
Rows = Callable[[int, int], Bytes]


def halves_of_pairs(pairs: Bytes) -> Bytes:
    """Codes of blocks of 32 from the usual order, neighbours in a byte, to GGML's: byte i has codes
    i and i + 16. pairs: uint8 [..., 16]."""
    words = np.ascontiguousarray(pairs).view("<u8")  # 8 bytes at a time: 1.8 times as fast
    first, second = words[..., :1], words[..., 1:]
    even = first & _LOW | (second & _LOW) << np.uint64(4)  # bytes 0, 2, ..., 14
    odd = first >> np.uint64(4) & _LOW | second & ~_LOW
    both = even.view(np.uint8).astype("<u2") | odd.view(np.uint8).astype("<u2") << np.uint16(8)
    found: Bytes = both.astype("<u2", copy=False).view(np.uint8)
    return found


def halves(codes: Bytes) -> Bytes:
    """Codes of blocks of 32, uint8 [..., 32], in GGML's order: uint8 [..., 16]."""
    words = np.ascontiguousarray(codes).view("<u8")
    both = words[..., :2] | words[..., 2:] << np.uint64(4)
    found: Bytes = both.astype("<u8", copy=False).view(np.uint8)
    return found


def blocks_of(header: Bytes, codes: Bytes) -> Bytes:
    """[n, n_blocks, bytes] of each, side by side: uint8 [n, row_bytes]."""
    return np.concatenate([header, codes], axis=2).reshape(codes.shape[0], -1)


def scales_f16(scale: Stored, values: Float32) -> Bytes:
    """float32 [n, n_groups] rounded to float16: uint8 [n, n_groups, 2]."""
    if values.size and float(np.abs(values).max()) > 65504.0:
        raise scale.fault("has scales of more than 65504, which no F16 holds")
    found = np.ascontiguousarray(values, dtype="<f2")
    return found.view(np.uint8).reshape(*values.shape, 2)


def repeated(scales: Bytes, group: int) -> Bytes:
    """The scale of each group for each of its blocks of 32."""
    return np.repeat(scales, group // BLOCK, axis=1)


def whole_sizes(sizes: tuple[int, ...], k: int) -> list[int]:
    """The sizes of groups that a row of k columns can have."""
    found = (k if size == WHOLE_ROW else size for size in sizes)
    return [size for size in found if k % size == 0]


def group_columns(scale: Stored, sizes: dict[tuple[int, int], int]) -> int:
    """The columns of a group. sizes: by the shape that the scales then have."""
    if scale.shape not in sizes:
        wanted = " or ".join(str(list(shape)) for shape in sizes)
        raise scale.fault(
            f"has shape {list(scale.shape)}; expected {wanted or 'groups that fit the rows'}, as "
            "quantization_config says"
        )
    return sizes[scale.shape[0], scale.shape[1]]


def check_columns(stored: Stored, k: int) -> None:
    if k % BLOCK:
        raise stored.fault(f"has rows of {k} weights; expected a multiple of {BLOCK}")


def row_source(name: str, type: str, shape: tuple[int, ...], rows: Rows, *of: Stored) -> RowSource:
    return RowSource(name, of[0].file, type, shape, (), rows, tuple(each.extent for each in of))


def check_order(order: Stored | None, of: Stored, k: int, quantization: Quantization) -> None:
    """FormatError unless column i of the matrix `of` belongs to group i / group_size.
    order: the group of each column, int32 [k]; None if there is no such tensor."""
    wanted = (
        "the columns in another order (desc_act or actorder); a folder that was quantised without "
        "it, or a GGUF file of the model, can be opened"
    )
    if order is None:
        if quantization.reordered:
            raise of.fault(f"has {wanted}")
        return
    order.expect_dtype("I32")
    order.expect_shape(k)
    found, columns = order.read(0, 1).view("<i4")[0], np.arange(k)
    sizes = whole_sizes(quantization.group_sizes, k)
    if not any((found == columns // size).all() for size in sizes):
        raise order.fault(f"has {wanted}")
