"""Files of lines of JSON, read strictly: no name twice, no number that is none, no torn text."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from airllm.util.errors import AirllmError
from airllm.util.shown import shown

__all__ = ["BatchError", "check_text", "check_values", "parse_line", "raw_lines"]

MAX_LINE_BYTES = 64 * 2**20
MAX_DIGITS = 1000  # of an integer, in an id or a seed; Python's own limit is 4,300


class BatchError(AirllmError, ValueError):
    """One of the files, or a line of it, is not usable: "<file>:<line>: <fault>"."""


def raw_lines(file: Any, path: Path) -> Iterator[bytes]:
    """The lines of a file that is open. path: names it in errors."""
    number = 1
    while raw := file.readline(MAX_LINE_BYTES + 1):
        if len(raw) > MAX_LINE_BYTES:
            raise BatchError(f"{path}:{number}: longer than {MAX_LINE_BYTES:,} bytes")
        yield raw
        number += 1


@dataclass(frozen=True)
class _NoValue:
    """Stands for NaN, Infinity, or a number that is too large. No field accepts it, so that the
    error can name the field."""

    text: str

    def __repr__(self) -> str:
        return self.text


def _number(digits: str) -> float | _NoValue:
    value = float(digits)
    return value if math.isfinite(value) else _NoValue(shown(digits))


def _integer(digits: str) -> int | _NoValue:
    n = len(digits)
    return int(digits) if n <= MAX_DIGITS else _NoValue(f"an integer of {n} digits")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = sorted(name for name, _ in pairs)
        twice = next(name for name, other in pairwise(names) if name == other)
        raise ValueError(f"{shown(twice)} is there twice")
    return found


_JSON = json.JSONDecoder(
    object_pairs_hook=_object, parse_constant=_NoValue, parse_float=_number, parse_int=_integer
)


def parse_line(raw: bytes, where: str) -> dict[str, Any]:
    """The object in a line. where: "<file>:<line>", for errors."""
    try:
        entry = _JSON.decode(raw.decode())
    except (ValueError, RecursionError) as error:
        raise BatchError(f"{where}: no line of JSON in UTF-8: {error}") from None
    if not isinstance(entry, dict):
        raise BatchError(f"{where}: expected an object, found a {type(entry).__name__}")
    return entry


def check_text(what: str, value: object) -> None:
    """Refuses unpaired surrogates, which no tokeniser takes and UTF-8 cannot encode."""
    for text in _texts(value):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = error.object[error.start]
            raise BatchError(f"{what} has half of a character, {half!r}") from None


def _texts(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from _texts(item)


def check_values(what: str, value: object) -> None:
    """Refuses a _NoValue at any depth, as a chat template would accept it."""
    if isinstance(value, _NoValue):
        raise BatchError(f"{what} has {value!r}")
    if isinstance(value, (list, dict)):
        for item in value.values() if isinstance(value, dict) else value:
            check_values(what, item)
