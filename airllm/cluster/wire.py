"""Reads the fields of dllama's messages from a stream of bytes one by one, and encodes them.

All numbers are little endian. No sockets here: a stream is a function that returns exactly the next
n bytes or raises. An invalid field is a ProtocolError that names message, field and value.
"""

import enum
import math
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from airllm.util.errors import AirllmError

ACK = 23571114
LONGEST_NAME = 256  # bytes, with its NUL
LARGEST_SIZE = 1 << 31  # of a dimension
BLOCK = 32  # values of a block of Q40 or Q80

Take = Callable[[int], bytes]  # exactly that many bytes; raises if the stream ends before

_NAME = re.compile(rb"[\x21-\x7e]{1,255}")
_Enum = TypeVar("_Enum", bound=enum.IntEnum)


class ProtocolError(AirllmError):
    """A peer sent what the protocol does not allow."""


class FloatType(enum.IntEnum):
    NONE = -1
    F32 = 0
    F16 = 1
    Q40 = 2
    Q80 = 3

    def nbytes(self, n: int) -> int:
        """Bytes of n values; n is a multiple of 32 for Q40 and Q80."""
        per_block = {self.NONE: 0, self.F32: 128, self.F16: 64, self.Q40: 18, self.Q80: 34}
        return n * per_block[self] // BLOCK

    @property
    def block(self) -> int:
        return BLOCK if self in (self.Q40, self.Q80) else 1


@dataclass(frozen=True, slots=True)
class Size:
    """A tensor [z, y, x], x fastest. An absent tensor has type NONE and no values."""

    type: FloatType
    z: int
    y: int
    x: int

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.z * self.y * self.x)

    @property
    def plane_bytes(self) -> int:
        return self.type.nbytes(self.y * self.x)

    @property
    def row_bytes(self) -> int:
        return self.type.nbytes(self.x)

    def __str__(self) -> str:
        return f"{self.type.name} {self.z}x{self.y}x{self.x}"

    def encode(self) -> bytes:
        return struct.pack(
            "<iIIIQQQ",
            self.type,
            self.z,
            self.y,
            self.x,
            self.z * self.y * self.x,
            self.nbytes,
            self.plane_bytes,
        )


NO_SIZE = Size(FloatType.NONE, 0, 0, 0)


class Source(enum.IntEnum):
    PIPE = 0
    BUFFER = 1


class PointerType(enum.IntEnum):
    RAW = 0  # the whole buffer as one row
    BATCH = 1  # a row for each token
    BATCHED_SLICE = 2  # of each row, this node's share of the values


@dataclass(frozen=True, slots=True)
class Pointer:
    """Rows of a pipe or a buffer."""

    source: Source
    index: int
    type: PointerType = PointerType.BATCH

    def encode(self) -> bytes:
        return struct.pack("<III", self.source, self.index, self.type)


class Fields:
    """Reads the fields of one message, or of a part of it, and checks them."""

    def __init__(self, take: Take, message: str) -> None:
        self._take = take
        self.message = message

    def part(self, name: str) -> "Fields":
        return Fields(self._take, f"{self.message}, {name}")

    def fault(self, field: str, value: object, expected: str) -> ProtocolError:
        return ProtocolError(f"{self.message}: {field} is {value}; expected {expected}")

    def raw(self, n: int) -> bytes:
        return self._take(n)

    def u32(self, field: str, low: int = 0, high: int = 0xFFFFFFFF) -> int:
        return self._integer("<I", field, low, high)

    def u64(self, field: str, low: int = 0, high: int = 0xFFFFFFFFFFFFFFFF) -> int:
        return self._integer("<Q", field, low, high)

    def f32(self, field: str, low: float, high: float) -> float:
        value: float = struct.unpack("<f", self._take(4))[0]
        if not (math.isfinite(value) and low <= value <= high):
            raise self.fault(field, value, f"{low:g} to {high:g}")
        return value

    def enum(self, field: str, kind: type[_Enum]) -> _Enum:
        value: int = struct.unpack("<i", self._take(4))[0]
        try:
            return kind(value)
        except ValueError:
            known = ", ".join(f"{item.value} ({item.name})" for item in kind)
            raise self.fault(field, value, f"one of {known}") from None

    def ack(self, field: str = "the acknowledgement") -> None:
        value = self.u32(field)
        if value != ACK:
            raise self.fault(field, value, str(ACK))

    def name(self, field: str) -> str:
        """A string of visible ASCII characters."""
        return self.text(field, self.u32(f"the length of {field}", 2, LONGEST_NAME))

    def text(self, field: str, length: int) -> str:
        data = self._take(length)
        if data[-1:] != b"\0" or not _NAME.fullmatch(data[:-1]):
            shown = ascii(data[:40])[1:]
            raise self.fault(field, shown, "visible ASCII characters and a NUL")
        return data[:-1].decode("ascii")

    def size(self, field: str) -> Size:
        kind = self.enum(f"the type of {field}", FloatType)
        z, y, x = (self.u32(f"{axis} of {field}", 0, LARGEST_SIZE) for axis in "zyx")
        length, nbytes, plane = (
            self.u64(f"the {n} of {field}") for n in ("length", "bytes", "plane")
        )
        n = z * y * x
        if kind is FloatType.NONE:
            if (z, y, x, length, nbytes, plane) != (0, 0, 0, 0, 0, 0):
                raise self.fault(field, f"of no type with {length} values", "no values")
            return NO_SIZE
        size = Size(kind, z, y, x)
        if not n:
            raise self.fault(field, str(size), "at least one value")
        if y * x % kind.block:
            raise self.fault(field, str(size), f"whole blocks of {kind.block} values")
        for what, value, expected in (
            ("length", length, n),
            ("bytes", nbytes, size.nbytes),
            ("plane", plane, size.plane_bytes),
        ):
            if value != expected:
                raise self.fault(f"the {what} of {field}", value, f"{expected} for {size}")
        return size

    def pointer(self, field: str, n_pipes: int, n_buffers: int) -> Pointer:
        source = self.enum(f"the source of {field}", Source)
        count = n_pipes if source is Source.PIPE else n_buffers
        index = self.index(f"the {source.name.lower()} of {field}", count)
        return Pointer(source, index, self.enum(f"the pointer type of {field}", PointerType))

    def index(self, field: str, count: int) -> int:
        """The index of one of `count` things."""
        value = self.u32(field)
        if value >= count:
            raise self.fault(field, value, f"less than {count}, as many as there are")
        return value

    def _integer(self, layout: str, field: str, low: int, high: int) -> int:
        value: int = struct.unpack(layout, self._take(struct.calcsize(layout)))[0]
        if not low <= value <= high:
            raise self.fault(field, value, f"{low} to {high}")
        return value


def encode_u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def encode_name(name: str) -> bytes:
    data = name.encode("ascii") + b"\0"
    return encode_u32(len(data)) + data


def take_from(data: bytes) -> Take:
    """A stream of `data`; ProtocolError if it ends too early."""
    at = 0

    def take(n: int) -> bytes:
        nonlocal at
        if n > len(data) - at:
            raise ProtocolError(f"the stream ends after {len(data)} bytes")
        at += n
        return data[at - n : at]

    return take
