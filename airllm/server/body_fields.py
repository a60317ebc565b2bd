"""Reads the fields of a JSON object, and says which field is wrong."""

import logging
import math
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from airllm.server.errors import ApiError, bad, unsupported
from airllm.util.printable import printable
from airllm.util.shown import shown

__all__ = ["BodyFields"]

_log = logging.getLogger("airllm")
_MOST_LOGGED = 1000
_logged: set[tuple[str, str]] = set()


class BodyFields:
    """The fields of an object at `path` in the request, "messages[0]" for example. A field that is
    null counts as missing."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, Mapping):
            where = path or "the body"
            raise ApiError(400, f"{where} is {shown(value)}; expected an object", path or None)
        self._values: Mapping[str, Any] = value
        self.path, self._read = path, set[str]()

    def name(self, field: str) -> str:
        return f"{self.path}.{field}" if self.path else field

    def raw(self, field: str) -> Any:
        """The value as it is; None if it is missing."""
        self._read.add(field)
        return self._values.get(field)

    def has(self, field: str) -> bool:
        return self.raw(field) is not None

    def wrong(self, field: str, expected: str) -> ApiError:
        value = self._values.get(field)
        if value is None:
            return bad(self.name(field), f"{self.name(field)} is missing; expected {expected}")
        return bad(self.name(field), f"{self.name(field)} is {shown(value)}; expected {expected}")

    def text(self, field: str, default: str | None = None) -> str:
        """A text; without a default, it must be there."""
        value = self.raw(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.wrong(field, "a text")
        return value

    def maybe_text(self, field: str) -> str | None:
        return self.text(field) if self.has(field) else None

    def flag(self, field: str, default: bool = False) -> bool:
        value = self.raw(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.wrong(field, "true or false")
        return value

    def count(self, field: str, least: int = 0, most: int | None = None) -> int | None:
        """An integer; None if it is missing."""
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():  # some clients write 5.0
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.wrong(field, "an integer")
        if value < least or (most is not None and value > most):
            up_to = "" if most is None else f", at most {most}"
            raise self.wrong(field, f"an integer of at least {least}{up_to}")
        return value

    def number(self, field: str, low: float = -math.inf, high: float = math.inf) -> float | None:
        value = self.raw(field)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(field, "a number")
        if not low <= value <= high:
            raise self.wrong(field, f"a number from {low:g} to {high:g}")
        return float(value)

    def choice(self, field: str, allowed: Collection[str], default: str | None = None) -> str:
        value = self.text(field, default)
        if value not in allowed:
            raise self.wrong(field, " or ".join(map(repr, allowed)))
        return value

    def texts(self, field: str, most: int) -> tuple[str, ...]:
        """A text or a list of texts."""
        value = self.raw(field)
        if value is None:
            return ()
        found = [value] if isinstance(value, str) else value
        if not isinstance(found, list) or not all(isinstance(item, str) for item in found):
            raise self.wrong(field, "a text, or a list of texts")
        if len(found) > most:
            raise bad(self.name(field), f"{self.name(field)} has {len(found)}; at most {most}")
        return tuple(found)

    def items(self, field: str, *, required: bool = False) -> Iterator[tuple[str, Any]]:
        """The items of a list, each with its path."""
        value = self.raw(field)
        if value is None and not required:
            return
        if not isinstance(value, list):
            raise self.wrong(field, "a list")
        for at, item in enumerate(value):
            yield f"{self.name(field)}[{at}]", item

    def fields(self, field: str) -> "BodyFields":
        """The object in a field; one without fields if it is missing."""
        return BodyFields({} if self.raw(field) is None else self.raw(field), self.name(field))

    def mapping(self, field: str) -> dict[str, Any]:
        value = self.raw(field)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.wrong(field, "an object")
        return value

    def refuse(self, field: str, why: str, *, unless: Collection[object] = ()) -> None:
        """An error if the field is there with a value that asks for something."""
        value = self.raw(field)
        if value is not None and not any(value is item or value == item for item in unless):
            raise unsupported(self.name(field), why)

    def without_effect(self, *fields: str) -> None:
        """Fields that are known, and change nothing here."""
        self._read.update(fields)

    def log_unknown(self, where: str) -> None:
        """Log the fields that nothing has read, each once."""
        for field in self._values.keys() - self._read:
            key = where, str(field)[:80]
            if key not in _logged and len(_logged) < _MOST_LOGGED:
                _logged.add(key)
                name = printable(self.name(key[1]))
                _log.warning("%s: the field %s is not known, and is ignored", where, name)
