"""A file's metadata, with methods that return a value of a known type or raise FormatError."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from airllm.util.errors import AirllmError
from airllm.util.printable import printable


class FormatError(AirllmError, ValueError):
    """A file has faulty content. The message is "<file>: <fault>", on one line; characters of the
    file that are not printable are escaped."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Metadata(Mapping[str, object]):
    """The metadata of a file, read-only. Errors name the file and the fault.

    Values are int, float, bool, str, list[str], NumPy arrays (numbers and bools) or lists of
    these. `metadata["key"]` returns a value unchecked. The methods below return a value of a known
    type or raise FormatError; without a default the key is required.
    """

    def __init__(self, source: str, values: Mapping[str, object]) -> None:
        self.source = source
        self._values = dict(values)

    @classmethod
    def of(cls, values: Mapping[str, object]) -> "Metadata":
        """`values` itself if it is Metadata, else wrapped; errors then begin with "metadata"."""
        return values if isinstance(values, cls) else cls("metadata", values)

    def __getitem__(self, key: str) -> object:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def fault(self, message: str) -> FormatError:
        """The error to raise for a fault in this metadata."""
        return FormatError(f"{self.source}: {message}")

    def integer(
        self, key: str, default: int | None = None, *, low: int = 0, high: int = 2**31 - 1
    ) -> int:
        """An integer from low to high, both included."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._wrong_type(key, value, "an integer")
        if not low <= value <= high:
            raise self.fault(f"{key} is {value}; expected {low} to {high}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number."""
        value = self._get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._wrong_type(key, value, "a number")
        if not math.isfinite(value):
            raise self.fault(f"{key} is {value}; expected a finite number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self._get(key, default)
        if not isinstance(value, bool):
            raise self._wrong_type(key, value, "true or false")
        return value

    def text(self, key: str, default: str | None = None) -> str:
        value = self._get(key, default)
        if not isinstance(value, str):
            raise self._wrong_type(key, value, "a string")
        return value

    def texts(self, key: str) -> list[str]:
        """A list of strings."""
        value = self._get(key, None)
        if isinstance(value, list) and all(type(item) is str for item in value):
            return value
        raise self._wrong_type(key, value, "a list of strings")

    def numbers(self, key: str) -> np.ndarray:
        """A 1-D array of numbers, with the dtype in the file."""
        value = self._get(key, None)
        if isinstance(value, list) and not value:
            return np.empty(0, np.float32)
        if not isinstance(value, np.ndarray) or value.dtype == bool:
            raise self._wrong_type(key, value, "an array of numbers")
        return value

    def _get(self, key: str, default: object) -> object:
        value = self._values.get(key, default)
        if value is None:
            raise self.fault(f"{key} is missing from the metadata")
        return value

    def _wrong_type(self, key: str, value: object, expected: str) -> FormatError:
        return self.fault(f"{key} is {_describe(value)}; expected {expected}")


def _describe(value: object) -> str:
    if isinstance(value, str):
        return f"the string {value[:40]!r}"
    if isinstance(value, np.ndarray):
        return f"an array of {value.size} {value.dtype.name}"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    if isinstance(value, dict):
        return "an object"
    return f"{type(value).__name__} {value}"
