"""A file's metadata, and how the rest of the package asks for a value of the type it needs."""

import math
from collections.abc import Iterator, Mapping

import numpy as np

from airllm.util.printable import printable


class FormatError(ValueError):
    """A file does not hold what it should. The message is "<file>: <fault>", on one line, with
    escapes for whatever the file has that is not printable."""

    def __init__(self, message: str) -> None:
        super().__init__(printable(message))


class Metadata(Mapping[str, object]):
    """Metadata as the file has it, read-only, with typed access that names file and fault.

    Values are int, float, bool, str, list[str], NumPy arrays (numbers and bools) or lists of
    those. `metadata["key"]` gives one as it is. The methods below give one of a known type or raise
    FormatError; without a default the key is required.
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
        """A 1-D array of numbers, of the dtype that the file gives."""
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
