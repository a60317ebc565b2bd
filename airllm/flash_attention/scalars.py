"""The arguments of a call that are one number each: checked, with errors that name them."""

import operator
from typing import Any


def int32(x: Any, name: str) -> int:
    """A whole number of 32 bits; True and False are 1 and 0."""
    try:
        value = operator.index(x)
    except TypeError:
        raise TypeError(f"{name} is a {type(x).__name__}; expected an int") from None
    if not -(2**31) <= value < 2**31:
        raise ValueError(f"{name} is {value}; expected a number of 32 bits")
    return value


def real(x: Any, name: str) -> float:
    """A number, or an array of one."""
    try:
        if isinstance(x, str | bytes | bytearray):  # float reads them
            raise TypeError
        return float(x)
    except OverflowError:
        raise ValueError(f"{name} is {x}; expected a number that float32 has") from None
    except (TypeError, ValueError, RuntimeError):  # the last is PyTorch's, of an array of several
        raise TypeError(f"{name} is a {type(x).__name__}; expected a number") from None


def flag(x: Any, name: str) -> bool:
    try:
        return bool(x)
    except (TypeError, ValueError, RuntimeError):  # of an array of several
        raise TypeError(f"{name} is a {type(x).__name__}; expected True or False") from None
