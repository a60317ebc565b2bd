"""Checks of arguments for several modules; an error says what came and what was expected.

Checks of values return Python's own type, so that later code meets no other types.
"""

import math
from collections.abc import Sequence

from airllm.util.shown import shown

__all__ = ["check_choice", "check_count", "check_flag", "check_number"]


def check_count(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """An integer from least to most: an int, a NumPy integer, or any type with __index__.

    TypeError, ValueError.
    """
    if _is_bool(value) or not hasattr(type(value), "__index__"):
        raise TypeError(f"{name} is {shown(value)}; expected an integer of at least {least}")
    try:
        count = value.__index__()  # type: ignore[attr-defined]
    except TypeError:  # an array of several values
        raise TypeError(
            f"{name} is {shown(value)}; expected an integer of at least {least}"
        ) from None
    if count < least:
        raise ValueError(f"{name} is {shown(count)}; expected at least {least}")
    if most is not None and count > most:
        raise ValueError(f"{name} is {shown(count)}; expected at most {most}")
    return int(count)


def check_number(
    name: str,
    value: object,
    low: float,
    high: float,
    expected: str,
    *,
    above: bool = False,
) -> float:
    """A finite number from low to high (`above`: excluding low), as a float. It may be an int, a
    float, a NumPy number, a Fraction or a Decimal.

    TypeError, ValueError; both say what was `expected`.
    """
    is_array = getattr(value, "ndim", 0) != 0
    if _is_bool(value) or is_array or not hasattr(type(value), "__float__"):
        raise TypeError(f"{name} is {shown(value)}; expected a number, {expected}")
    try:
        number = float(value)  # type: ignore[arg-type]
    except (OverflowError, ValueError):  # 10**400; Decimal("sNaN")
        number = math.nan
    if not low <= number <= high or math.isinf(number) or (above and number == low):
        raise ValueError(f"{name} is {shown(value)}; expected {expected}")
    return number


def check_flag(name: str, value: object) -> bool:
    if not _is_bool(value):
        raise TypeError(f"{name} is {shown(value)}; expected True or False")
    return bool(value)


def check_choice(name: str, value: object, allowed: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} is {shown(value)}; expected {' or '.join(map(repr, allowed))}")


def _is_bool(value: object) -> bool:
    """Whether `value` is a bool of Python or of NumPy, which is not imported for this."""
    return isinstance(value, bool) or getattr(getattr(value, "dtype", None), "kind", "") == "b"
