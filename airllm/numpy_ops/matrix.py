"""Matrix products, and matrices that stay packed as in a model file."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from airllm.numpy_ops import checks
from airllm.numpy_ops.blocks import Bytes
from airllm.numpy_ops.checks import Float32
from airllm.numpy_ops.quants import TYPES, decode, row_bytes

# Packed and float16 matrices are widened to float32 in pieces of this many bytes. In such small
# pieces the allocator reuses memory that is already mapped. Widening 35 million weights takes 37 ms
# and 40 page faults at 1 MB; 38 ms and 900 at 2 MB; 65 ms and 13,900 at 4 MB, a third of the time
# for the faults. At 0.25 MB it takes 40 ms, because Python's overhead begins to show.
_WIDENED_BYTES = 1 << 20

_DECODED = 3  # arrays of a piece that decoding takes at once, at the most: 2.4, 3.2 of small ones

_LONGEST_AXIS = 2**31 - 1


class PackedMatrix:
    """A weight matrix [n, k] in the packed bytes of a file, which each use widens to float32.

    data: C-contiguous array of any dtype, or bytes-like: exactly the n rows' bytes. They are not
        copied: the matrix keeps a reference, and a change of the bytes changes the matrix.
    type: "f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q2_k", "q3_k", "q4_k",
        "q5_k", "q6_k", "iq4_nl", "iq4_xs", "mxfp4", "iq3_xxs", "iq3_s", "iq2_xxs", "iq2_xs",
        "iq2_s", "iq1_s", "iq1_m", "tq1_0", "tq2_0" or "nvfp4".
    shape: (n, k), k a multiple of the type's block.

    Attributes: type, shape, nbytes (bytes of the packed rows).
    """

    def __init__(self, data: Any, type: str, shape: tuple[int, int]) -> None:
        op = self.__class__.__name__
        checks.choice(op, "type", type, list(TYPES))
        n, k = _matrix_shape(op, shape)
        block, _ = TYPES[type]
        if k % block:
            raise ValueError(
                f"{op}: shape is ({n}, {k}); expected a number of columns that is a multiple of "
                f"{block}, the block of {type}."
            )
        raw = _bytes(op, data)
        expected = n * row_bytes(type, k)
        if raw.size != expected:
            raise ValueError(
                f"{op}: data has {raw.size} bytes; expected {expected}, for {n} rows of {k} "
                f"{type} values."
            )
        self.type = type
        self.shape = (n, k)
        self.nbytes = expected
        self._rows: Bytes = raw.reshape(n, row_bytes(type, k))  # [n, row_bytes]

    def dequantize(self) -> Float32:
        """The whole matrix: float32 [n, k]."""
        return decode(self._rows, self.type)

    def rows(self, indices: NDArray[np.integer[Any]]) -> Float32:
        """The rows with the numbers `indices` [m], as in an embedding lookup: float32 [m, k]."""
        return decode(self._rows[indices], self.type)

    def row_blocks(self) -> Iterator[tuple[slice, Float32]]:
        """The matrix in pieces: a slice of rows, and their values, float32 [n_rows, k]."""
        for rows in _row_slices(*self.shape):
            yield rows, decode(self._rows[rows], self.type)

    def __repr__(self) -> str:
        return f"{self.__class__.__name__}(type={self.type!r}, shape={self.shape})"


class RawRows(PackedMatrix):
    """A matrix for lookups of rows rather than for products: an embedding.

    The C++ extension repacks a PackedMatrix, but keeps RawRows in the layout of the file. In NumPy
    the two are the same.
    """


Weight = PackedMatrix | NDArray[np.float32] | NDArray[np.float16]


def matmul(a: Float32, b: Float32, *, out: Float32 | None = None) -> Float32:
    """a @ b.

    a: float32 [..., m, k]; b: float32 [k, n]; out: float32 [..., m, n], neither a nor b.
    Returns out.
    """
    a = checks.float32("matmul", "a", a, min_ndim=2)
    b = checks.float32("matmul", "b", b)
    checks.axes("matmul", "b", b, "[k, n]")
    k, n = b.shape
    if a.shape[-1] != k:
        raise ValueError(
            f"matmul: a has shape {a.shape}; expected [..., m, {k}], as b has {k} rows "
            f"(shape {b.shape})."
        )
    out = checks.output("matmul", out, (*a.shape[:-1], n), {"a": a, "b": b})
    if not out.size:
        return out  # also the way out for 2^60 rows without columns
    m = math.prod(a.shape[:-1])
    with np.errstate(all="ignore"):
        np.matmul(a.reshape(m, k), b, out=out.reshape(m, n))
    return out


def linear(
    x: Float32, w: Weight, *, activations: str = "auto", out: Float32 | None = None
) -> Float32:
    """x @ w.T. w has one row for each output feature, as in checkpoints.

    x: float32 [..., k]; w: float32 or float16 array [n, k], or PackedMatrix of shape (n, k).
    activations: how x may be rounded for a quantised w: to 8 or 16 bits in blocks of 32 ("q8",
        "q16"), or not at all ("f32"); "auto" is q16 for up to 64 rows, else q8. NumPy never rounds.
    out: float32 [..., n], neither x nor w. Returns out.
    """
    x = checks.float32("linear", "x", x)
    checks.choice("linear", "activations", activations, ["auto", "q8", "q16", "f32"])
    inputs: dict[str, NDArray[Any]] = {"x": x}
    if isinstance(w, PackedMatrix):
        inputs["w"] = w._rows
    else:
        if not isinstance(w, np.ndarray):
            raise TypeError(
                f"linear: w is {checks.kind(w)}; expected a numpy array of float32 or float16, or "
                "a PackedMatrix. Convert with np.asarray(w, dtype=np.float32)."
            )
        w = checks.array("linear", "w", w, ["float32", "float16"])
        checks.axes("linear", "w", w, "[n, k]")
        inputs["w"] = w
    n, k = w.shape
    if x.shape[-1] != k:
        raise ValueError(
            f"linear: x has shape {x.shape}; expected [..., {k}], as w has {k} columns "
            f"(shape {w.shape})."
        )
    out = checks.output("linear", out, (*x.shape[:-1], n), inputs)
    m = math.prod(x.shape[:-1])
    linear_apply(x.reshape(m, k), w, out.reshape(m, n))
    return out


def linear_many(
    x: Float32,
    ws: Sequence[PackedMatrix],
    *,
    activations: str = "auto",
    out: Sequence[Float32] | None = None,
) -> tuple[Float32, ...]:
    """linear(x, w) for each w of ws. The C++ extension multiplies by all of them in one call.

    ws: list or tuple of PackedMatrix, each (n_i, k); out: an array for each, float32 [..., n_i], in
    separate memory. Returns a tuple of these arrays.
    """
    op = "linear_many"
    x = checks.float32(op, "x", x)
    checks.choice(op, "activations", activations, ["auto", "q8", "q16", "f32"])
    if not isinstance(ws, (list, tuple)):
        raise TypeError(f"{op}: ws is {checks.kind(ws)}; expected a list or tuple of PackedMatrix.")
    for w in ws:
        if not isinstance(w, PackedMatrix):
            raise TypeError(
                f"{op}: ws holds {checks.kind(w)}; expected a list or tuple of PackedMatrix."
            )
    if out is not None and (not isinstance(out, (list, tuple)) or len(out) != len(ws)):
        raise TypeError(
            f"{op}: out is {checks.kind(out)}; expected a list or tuple of {len(ws)} arrays, one "
            "for each matrix."
        )
    outs: list[Float32] = []
    for i, w in enumerate(ws):
        if x.shape[-1] != w.shape[1]:
            raise ValueError(
                f"{op}: x has shape {x.shape}; expected [..., {w.shape[1]}], as w has {w.shape[1]} "
                f"columns (shape {w.shape})."
            )
        given = None if out is None else out[i]
        outs.append(checks.output(op, given, (*x.shape[:-1], w.shape[0]), {"x": x}))
        if any(np.may_share_memory(outs[i], other) for other in outs[:i]):
            raise ValueError(f"{op}: two arrays of out overlap; expected separate memory for each.")
    m = math.prod(x.shape[:-1])
    for w, result in zip(ws, outs, strict=True):
        linear_apply(x.reshape(m, x.shape[-1]), w, result.reshape(m, w.shape[0]))
    return tuple(outs)


@np.errstate(all="ignore")
def linear_apply(
    x: Float32, w: Weight, out: Float32, parts: Sequence[slice] = (slice(None),)
) -> None:
    """linear without checks. x: [n_tokens, k]; w: [n, k]; out: [n_tokens, n].

    parts: slices of the rows of x, each multiplied separately. The number of rows in a product
    affects how its sums round.
    """
    if not out.size:
        return
    for columns, block in _widened(w):
        for rows in parts:
            out[rows, columns] = x[rows] @ block.T


def _widened(w: Weight) -> Iterator[tuple[slice, Float32]]:
    """The matrix in float32: whole if it is float32 already, otherwise in widened pieces."""
    if isinstance(w, PackedMatrix):
        yield from w.row_blocks()
        return
    whole = w.dtype == np.float32
    for rows in [slice(None)] if whole else _row_slices(*w.shape):
        yield rows, w[rows].astype(np.float32, copy=False)


def widened_bytes(n: int, k: int, n_tokens: int) -> int:
    """The most bytes that linear_apply takes for a matrix [n, k]: a piece in float32, what it is
    decoded from, and its products with n_tokens rows."""
    rows = min(n, _rows_at_once(k))
    return 4 * rows * (_DECODED * k + n_tokens)


def _rows_at_once(k: int) -> int:
    return max(1, _WIDENED_BYTES // (4 * max(k, 1)))


def _row_slices(n: int, k: int) -> Iterator[slice]:
    step = _rows_at_once(k)
    return (slice(start, min(start + step, n)) for start in range(0, n, step))


def _matrix_shape(op: str, shape: object) -> tuple[int, int]:
    if not isinstance(shape, (tuple, list)) or not all(
        isinstance(axis, (int, np.integer)) for axis in shape
    ):
        raise TypeError(f"{op}: shape is {shape!r}; expected two integers, (n, k).")
    # The limit is for matrices without columns, which could have any number of rows in no bytes.
    if len(shape) != 2 or min(shape) < 0 or max(shape) > _LONGEST_AXIS:
        raise ValueError(
            f"{op}: shape is {tuple(shape)}; expected (n, k), each from 0 to {_LONGEST_AXIS}."
        )
    return int(shape[0]), int(shape[1])


def _bytes(op: str, data: object) -> Bytes:
    """The memory of an array or bytes-like object as uint8 [n_bytes], not copied."""
    if isinstance(data, np.ndarray):
        array = checks.plain(op, "data", data)
    else:
        try:
            array = np.asarray(memoryview(data))  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"{op}: data is {checks.kind(data)}; expected bytes or a numpy array of the "
                "matrix's raw bytes."
            ) from None
    if array.dtype.hasobject:
        raise TypeError(f"{op}: data is {array.dtype.name}; expected raw bytes, uint8.")
    if not array.flags.c_contiguous:
        raise ValueError(
            f"{op}: data has shape {array.shape} and strides {array.strides}; expected "
            "C-contiguous memory. Copy with np.ascontiguousarray(data)."
        )
    return array.reshape(-1).view(np.uint8)
