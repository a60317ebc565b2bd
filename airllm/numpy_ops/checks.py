"""Checks of the arguments of operations.

A message has the form "operation: argument is A; expected B. How to fix it."; the C++ extension has
the same messages. TypeError: not an array, or a wrong dtype. ValueError: everything else.
"""

import math
from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]


def array(
    op: str, name: str, value: object, dtypes: Sequence[str] = ("float32",), min_ndim: int = 1
) -> NDArray[Any]:
    """`value` if it is a C-contiguous, aligned array of one of `dtypes` with enough axes."""
    expected = " or ".join(dtypes)
    if not isinstance(value, np.ndarray):
        raise TypeError(
            f"{op}: {name} is {kind(value)}; expected a numpy array of {expected}. "
            f"Convert with np.asarray({name}, dtype=np.{dtypes[0]})."
        )
    value = plain(op, name, value)
    # isnative, because the name of a byte-swapped dtype is also "float32".
    if value.dtype.name not in dtypes or not value.dtype.isnative:
        found = value.dtype.name if value.dtype.isnative else f"byte-swapped {value.dtype.name}"
        raise TypeError(
            f"{op}: {name} is {found}; expected {expected}. "
            f"Convert with {name}.astype(np.{dtypes[0]})."
        )
    if value.ndim < min_ndim:
        raise ValueError(
            f"{op}: {name} has shape {value.shape}; expected at least {_axes(min_ndim)}. "
            f"Add one with {name}[np.newaxis]."
        )
    if not value.flags.c_contiguous:
        raise ValueError(
            f"{op}: {name} has shape {value.shape} and strides {value.strides}; "
            f"expected C-contiguous memory. Copy with np.ascontiguousarray({name})."
        )
    if not value.flags.aligned:
        raise ValueError(
            f"{op}: {name} starts at an unaligned address; expected a multiple of "
            f"{value.dtype.alignment} bytes. Copy with {name}.copy()."
        )
    return value


def plain(op: str, name: str, value: NDArray[Any]) -> NDArray[Any]:
    """The array as an np.ndarray, not a subclass: np.matrix would multiply differently.

    TypeError for a masked array, whose mask would be ignored.
    """
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{op}: {name} is {kind(value)}; expected a numpy array without a mask, which would be "
            f"ignored. Convert with {name}.filled(...)."
        )
    return np.asarray(value)


def float32(op: str, name: str, value: object, min_ndim: int = 1) -> Float32:
    return array(op, name, value, min_ndim=min_ndim)


def shape(op: str, name: str, value: NDArray[Any], expected: tuple[int, ...], why: str) -> None:
    """Raises ValueError for another shape than `expected`.

    why: the reason for that shape, such as "one weight for each feature of x".
    """
    if value.shape != expected:
        raise ValueError(f"{op}: {name} has shape {value.shape}; expected {expected}, {why}.")


def axes(op: str, name: str, value: NDArray[Any], names: str) -> None:
    """Raises ValueError for another number of axes than in `names`.

    names: the meaning of the axes, such as "[n_tokens, n_heads, head_dim]".
    """
    count = names.count(",") + 1
    if value.ndim != count:
        raise ValueError(
            f"{op}: {name} has shape {value.shape}; expected {_axes(count)}, {names}. "
            f"Reshape with {name}.reshape(...)."
        )


def output(
    op: str,
    out: object | None,
    expected: tuple[int, ...],
    inputs: dict[str, NDArray[Any]],
    in_place: Sequence[str] = (),
) -> Float32:
    """A new array, or `out` if it can take the result.

    inputs: the arrays that `out` must not overlap, by name. in_place: names of inputs that may be
    `out` itself. They have its shape, and the operation reads each value before it overwrites it.
    """
    if out is None:
        return np.empty(expected, np.float32)
    checked = float32(op, "out", out, min_ndim=0)
    if checked.shape != expected:
        raise ValueError(
            f"{op}: out has shape {checked.shape}; expected {expected}. "
            f"Allocate it with np.empty({expected}, np.float32)."
        )
    if not checked.flags.writeable:
        raise ValueError(
            f"{op}: out is read-only; expected a writeable array. "
            f"Allocate it with np.empty({expected}, np.float32)."
        )
    for name, value in inputs.items():
        # may_share_memory is exact for contiguous arrays; an empty array overlaps nothing.
        if not np.may_share_memory(checked, value):
            continue
        if name in in_place and checked.ctypes.data == value.ctypes.data:
            continue
        allowed = f"{name} itself or separate memory" if name in in_place else "separate memory"
        raise ValueError(
            f"{op}: out overlaps {name}; expected {allowed}. "
            f"Allocate it with np.empty({expected}, np.float32)."
        )
    return checked


def number(op: str, name: str, value: object, *, minimum: float, inclusive: bool) -> float:
    """A finite real number, at least `minimum` (or above it)."""
    if not isinstance(value, Real):
        raise TypeError(f"{op}: {name} is {kind(value)}; expected a number.")
    try:
        result = float(value)
    except OverflowError:  # an int of hundreds of digits
        result = math.inf
    in_range = result >= minimum if inclusive else result > minimum
    if not (in_range and np.isfinite(result)):
        relation = "at least" if inclusive else "above"
        raise ValueError(
            f"{op}: {name} is {result}; expected a finite number {relation} {minimum:g}."
        )
    return result


def count(op: str, name: str, value: object, *, minimum: int, otherwise: str = "") -> int:
    """An integer of at least `minimum`. otherwise: another allowed value, for the message."""
    expected = f"expected an integer of at least {minimum}{otherwise}."
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool):
        raise TypeError(f"{op}: {name} is {kind(value)}; {expected}")
    if value < minimum:
        raise ValueError(f"{op}: {name} is {value}; {expected}")
    return int(value)


def flag(op: str, name: str, value: object) -> bool:
    """True or False. TypeError for other values, also if they are truthy or falsy."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{op}: {name} is {kind(value)}; expected True or False.")
    return bool(value)


def choice(op: str, name: str, value: object, allowed: Sequence[str]) -> str:
    """One of the allowed words."""
    if not isinstance(value, str):
        raise TypeError(f"{op}: {name} is {kind(value)}; expected {one_of(allowed)}.")
    if value not in allowed:
        raise ValueError(f'{op}: {name} is "{value}"; expected {one_of(allowed)}.')
    return value


def one_of(allowed: Sequence[str]) -> str:
    quoted = [f'"{word}"' for word in allowed]
    return " or ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


def _axes(count: int) -> str:
    return "1 axis" if count == 1 else f"{count} axes"


def kind(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"
