"""Arrays in awkward places, and numbers to fill them with."""

from contextlib import contextmanager

import numpy as np

# Every tail of every vector length (16 floats at most, unrolled 4 times), and two large odd ones.
SIZES = [*range(71), 127, 4097]

_MARGIN = 64  # elements of poison on either side; keeps the start on its 64-byte boundary


def placed(values, offset=0):
    """A copy of `values` that starts `offset` elements past a 64-byte boundary, amid poison.

    A kernel that reads past either end and uses it finds NaN (for integers, the largest one).
    """
    values = np.asarray(values)
    poison = np.nan if values.dtype.kind == "f" else np.iinfo(values.dtype).max
    view = _inside(values.shape, values.dtype, offset, poison)[0]
    view[...] = values
    return view


@contextmanager
def watched(shape, offset=0):
    """A float32 array to write to; nothing around it may have changed afterwards."""
    canary = 12345.0
    out, before, after = _inside(shape, np.dtype(np.float32), offset, canary)
    yield out
    assert (before == canary).all(), "written before the start of out"
    assert (after == canary).all(), "written past the end of out"


def _inside(shape, dtype, offset, fill):
    """An array in the middle of a larger one, and what lies before and after it."""
    size = int(np.prod(shape))
    buffer = np.full(size + offset + 3 * _MARGIN, fill, dtype)
    to_boundary = -buffer.ctypes.data % 64 // dtype.itemsize
    start = to_boundary + _MARGIN + offset
    view = buffer[start : start + size].reshape(shape)
    return view, buffer[:start], buffer[start + size :]


def normal(shape, seed=0, scale=1.0):
    """Gaussian float32 numbers."""
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)
