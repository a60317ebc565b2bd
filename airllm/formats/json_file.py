"""Parses JSON of untrusted files, in bounded memory."""

import json
from pathlib import Path

from airllm.util.durable import naming
from airllm.util.metadata import FormatError

__all__ = ["parse_object", "read_object"]


def read_object(path: Path, max_bytes: int) -> dict[str, object]:
    """The object in a file. FormatError names the file; OSError if it cannot be read."""
    size = path.stat().st_size
    if not path.is_file():
        raise FormatError(f"{path}: is not a regular file")
    if size > max_bytes:
        raise FormatError(f"{path}: has {size:,} bytes; at most {max_bytes:,} are expected")
    with naming(path), path.open("rb") as file:
        return parse_object(file.read(max_bytes), str(path))


def parse_object(raw: bytes, source: str) -> dict[str, object]:
    """FormatError unless `raw` is a JSON object. Duplicate names, integers of more than 64 bits,
    NaN and infinities are errors, too."""
    try:
        value = json.loads(
            raw.decode(),
            object_pairs_hook=_without_repeats,
            parse_constant=_refuse_constant,
            parse_int=_integer,
        )
    except RecursionError:
        raise FormatError(f"{source}: JSON that is nested too deeply") from None
    except ValueError as error:  # includes UnicodeDecodeError and JSONDecodeError
        raise FormatError(f"{source}: not the JSON that was expected: {error}") from None
    if not isinstance(value, dict):
        raise FormatError(f"{source}: expected a JSON object, found a {type(value).__name__}")
    return value


def _without_repeats(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise ValueError(f"{name[:80]!r} is there twice")
            seen.add(name)
    return found


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON")


def _integer(digits: str) -> int:
    if len(digits) > 20:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)
