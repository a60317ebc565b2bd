"""The messages between a process and its template renderer: a length, and that many bytes."""

import struct
from typing import IO

TEXT, FAULT, MEMORY = b"T", b"F", b"M"  # the first byte of an answer

_LENGTH = struct.Struct("<Q")


def read_frame(stream: IO[bytes], most: int | None = None) -> bytes | None:
    """The next frame; None at the stream's end, or for a frame of more than `most` bytes."""
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (n_bytes,) = _LENGTH.unpack(head)
    if most is not None and n_bytes > most:
        return None
    body = stream.read(n_bytes)
    return body if len(body) == n_bytes else None


def write_frame(stream: IO[bytes], body: bytes) -> None:
    stream.write(_LENGTH.pack(len(body)))
    stream.write(body)
    stream.flush()
