"""The header of a GGUF file: metadata, and the table of tensors.

The format (ggml's docs/gguf.md), little-endian throughout:

    "GGUF", u32 version, u64 tensor count, u64 metadata count
    metadata: string key, u32 type, value
    tensors:  string name, u32 number of dims, u64 dims (fastest first), u32 type, u64 offset
    padding to `general.alignment`, then the tensors' data

A string is a u64 length and that many bytes of UTF-8; an array is a u32 type, a u64 count and the
values. The reader trusts nothing: it compares each count and length with the rest of the file, and
with the limits below, before it allocates or loops.
"""

import dataclasses
import itertools
import math
import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import (
    INTEGER_TABLES,
    INTEGERS,
    REMOVED_TYPES,
    SUPPORTED_TYPES,
    TYPES,
)
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, Tensor
from airllm.util.metadata import FormatError, Metadata

__all__ = ["Header", "read_header"]

# Limits on what a file may claim, so that a hostile file of many gigabytes is refused as fast as a
# small one. The largest vocabularies need 0.8 million strings and 20 MB; models have a few thousand
# tensors and fewer than a hundred keys.
MAX_HEADER_BYTES = 64 * 2**20
MAX_STRINGS = 2**21
MAX_TENSORS = 2**16
MAX_KEYS = 2**16
MAX_DIMS = 4
_STRINGS_AT_ONCE = 2**13
_PIECE_BYTES = 2**18  # of the file, read at a time

_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS: dict[int, np.dtype[np.generic]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    _BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}

# Files that people mistake for GGUF, by their first bytes.
_OTHER_FORMATS = {
    b"version https": "a Git LFS pointer, not the model; fetch the model with `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive (a PyTorch checkpoint?); convert it to GGUF",
    b"tjgg": "a model of the older GGML format; convert it to GGUF",
    b"lmgg": "a model of the older GGML format; convert it to GGUF",
    b"fmgg": "a model of the older GGML format; convert it to GGUF",
    b"<": "a web page or XML; was the download refused?",
}


@dataclass(frozen=True)
class Header:
    """The header of one file. Its tensors lie inside the file, without overlap, in this order."""

    metadata: Metadata
    tensors: list[Tensor]


def read_header(file: MappedFile, part: int = 0) -> Header:
    """Read and check. part: the file's number, for the tensors' extents. FormatError for anything
    that is not a GGUF file this package can run."""
    reader = _Reader(file)
    tensor_count, key_count = _read_preamble(reader)
    metadata = _read_metadata(reader, key_count)
    alignment = _alignment(metadata)
    entries = [_read_tensor(reader) for _ in range(tensor_count)]
    data_start = -(-reader.at // alignment) * alignment
    return Header(metadata, _place(reader, entries, data_start, alignment, part))


class _Reader:
    """Reads the values of the header in order, and never beyond the end of the file. It does not
    use the map: in a file that is truncated meanwhile, that would kill the process (SIGBUS)."""

    def __init__(self, file: MappedFile) -> None:
        self.source, self._file = str(file.path), file
        self.data = bytearray()  # of the file, as far as it was read
        self.size = file.size
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.at = 0
        self.strings_left = MAX_STRINGS

    def fetch(self, end: int) -> int:
        """Read the file up to `end`, which is no further than self.end; returns up to where it was
        read. FormatError if it ends earlier by now."""
        while (first := len(self.data)) < end:
            piece = np.empty(min(_PIECE_BYTES, self.end - first), np.uint8)
            self._file.read(first, piece, "the header")
            self.data += piece.data
        return first

    def fault(self, message: str) -> FormatError:
        return FormatError(f"{self.source}: {message}")

    def need(self, n_bytes: int, what: str) -> None:
        """FormatError unless the file has n_bytes more."""
        if n_bytes <= self.end - self.at:
            return
        if n_bytes <= self.size - self.at:
            raise self.fault(f"{what} ends beyond {MAX_HEADER_BYTES:,} bytes, too far for metadata")
        raise self.fault(
            f"{what} needs {n_bytes:,} bytes at offset {self.at:,}, but the file ends at"
            f" {self.size:,}; it is truncated or damaged"
        )

    def take(self, n_bytes: int, what: str) -> bytes:
        self.need(n_bytes, what)
        start, self.at = self.at, self.at + n_bytes
        self.fetch(self.at)
        return bytes(self.data[start : self.at])

    def u32(self, what: str) -> int:
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        return int.from_bytes(self.take(8, what), "little")

    def string(self, what: str) -> str:
        raw = self.take(self.u64(f"the length of {what}"), what)
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise self.fault(f"{what} is not UTF-8: {error}") from None

    def strings(self, count: int, what: str) -> list[str]:
        """An array of strings. Reads in pieces, so that a false count allocates no memory."""
        if count > self.strings_left:
            raise self.fault(f"{what} has {count:,} strings, more than {MAX_STRINGS:,} in the file")
        self.strings_left -= count
        self.need(8 * count, what)
        texts: list[str] = []
        while len(texts) < count:
            n = min(count - len(texts), _STRINGS_AT_ONCE)
            texts += self._short_strings(n) or self._any_strings(n, what, len(texts))
        return texts

    def _any_strings(self, count: int, what: str, first: int) -> list[str]:
        """Strings of any length, one by one. first: the number of the first, for messages."""
        data, at, end, read = self.data, self.at, self.end, len(self.data)
        length_at = struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                start = at + 8
                if start > read:
                    read = self.fetch(min(start, end))
                at = start + length_at(data, at)[0]
                if at > end:
                    break
                if at > read:
                    read = self.fetch(at)
                texts.append(data[start:at].decode())
        except UnicodeDecodeError as error:
            raise self.fault(f"{what}[{first + len(texts)}] is not UTF-8: {error}") from None
        except struct.error:
            at = end + 1
        if at > end:
            raise self.fault(
                f"{what}[{first + len(texts)}] ends past the end of the file or of what metadata"
                f" may take ({end:,} bytes); it is truncated or damaged"
            )
        self.at = at
        return texts

    def _short_strings(self, count: int) -> list[str] | None:
        """The next strings if each has 1 to 255 bytes, none of them zero, as tokens and merges
        have. None if they do not, or are no UTF-8; nothing is taken then.

        The only zero bytes are then the upper seven of each length. They show where strings begin
        and end without a loop, which takes a third of the time. Llama 3 has 408,000 strings.
        """
        most = min(self.end - self.at, 32 * count)
        self.fetch(self.at + most)
        region = np.frombuffer(self.data, np.uint8, most, self.at).copy()
        zeros = np.flatnonzero(region == 0)
        starts = zeros[: 7 * count : 7] - 1  # where lengths begin
        if len(zeros) < 7 * count or starts[0] != 0:
            return None
        ends = starts + 8 + region[starts]  # where strings end
        if (
            (zeros[6 : 7 * count : 7] != starts + 7).any()
            or (ends[:-1] != starts[1:]).any()
            or ends[-1] > most
            or (zeros[7 * count :] < ends[-1]).any()
        ):
            return None
        region[starts] = 0
        try:
            pieces = region[: ends[-1]].tobytes().decode().split(8 * "\0")
        except UnicodeDecodeError:
            return None
        self.at += int(ends[-1])
        return pieces[1:]

    def numbers(self, kind: int, count: int, what: str) -> npt.NDArray[np.generic]:
        dtype = _NUMBERS[kind]
        raw = self.take(count * dtype.itemsize, what)
        if kind == _BOOL and raw.strip(b"\0\1"):
            raise self.fault(f"{what} has a bool that is neither 0 nor 1")
        return np.frombuffer(raw, dtype)

    def value(self, what: str) -> object:
        kind = self.u32(f"the type of {what}")
        if kind == _STRING:
            return self.string(what)
        if kind == _ARRAY:
            kind, count = self.u32(f"the type of {what}"), self.u64(f"the count of {what}")
            if kind == _STRING:
                return self.strings(count, what)
            if kind == _ARRAY:
                raise self.fault(f"{what} is an array of arrays, which no model needs")
            if kind in _NUMBERS:
                return self.numbers(kind, count, what)
        elif kind in _NUMBERS:
            return self.numbers(kind, 1, what)[0].item()
        raise self.fault(f"{what} has type {kind}, which GGUF does not define")


def _read_preamble(reader: _Reader) -> tuple[int, int]:
    """Check magic and version; return the counts of tensors and of metadata keys."""
    reader.fetch(min(reader.end, 4))
    if not reader.data.startswith(b"GGUF"):
        for magic, meaning in _OTHER_FORMATS.items():
            if reader.data.startswith(magic):
                raise reader.fault(f"not a GGUF file but {meaning}")
        begins = bytes(reader.data[:4])
        raise reader.fault(f"not a GGUF file: it begins with {begins!r}, not b'GGUF'")
    reader.take(4, "the magic")
    version = reader.u32("the version")
    if version not in (2, 3):
        if version and version & 0xFFFF == 0:
            raise reader.fault("a big-endian GGUF file; only little-endian ones are supported")
        raise reader.fault(f"GGUF version {version}; versions 2 and 3 are supported")
    counts = []
    for what, limit in (("tensors", MAX_TENSORS), ("metadata keys", MAX_KEYS)):
        count = reader.u64(f"the count of {what}")
        if count > limit:
            raise reader.fault(f"claims {count:,} {what}; no model has more than {limit:,}")
        counts.append(count)
    return counts[0], counts[1]


def _read_metadata(reader: _Reader, count: int) -> Metadata:
    values: dict[str, object] = {}
    for index in range(count):
        key = reader.string(f"the name of metadata key {index}")
        if key in values:
            raise reader.fault(f"metadata key {quote(key)} is there twice")
        values[key] = reader.value(f"metadata {quote(key)}")
    return Metadata(reader.source, values)


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", 32)
    if alignment < 8 or alignment & (alignment - 1):
        raise metadata.fault(
            f"general.alignment is {alignment}; expected a power of two, at least 8"
        )
    return alignment


def _read_tensor(reader: _Reader) -> Tensor:
    """A tensor's entry. Its offset counts from the start of the data; its part is not set yet."""
    name = reader.string("a tensor's name")
    what = f"tensor {quote(name)}"
    n_dims = reader.u32(f"the number of dims of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.fault(f"{what} has {n_dims:,} dims; expected 1 to {MAX_DIMS}")
    shape = tuple(reversed([reader.u64(f"a dim of {what}") for _ in range(n_dims)]))
    number, offset = reader.u32(f"the type of {what}"), reader.u64(f"the offset of {what}")

    kind = TYPES.get(number)
    table = kind is not None and kind.name == INTEGERS and name.endswith(INTEGER_TABLES)
    if kind is None or (kind.name not in SUPPORTED_TYPES and not table):
        name_of_type = kind.name if kind else REMOVED_TYPES.get(number, f"number {number}")
        raise reader.fault(
            f"{what} is of type {name_of_type.upper()}; supported are"
            f" {', '.join(SUPPORTED_TYPES).upper()}: use a file of one of these"
        )
    if 0 in shape:
        raise reader.fault(f"{what} has shape {shape}; a dim of 0 holds nothing")
    if shape[-1] % kind.block_size:
        raise reader.fault(
            f"{what} has rows of {shape[-1]:,} elements; {kind.name.upper()} needs a multiple of"
            f" {kind.block_size}"
        )
    row_bytes = kind.row_bytes(shape[-1])
    nbytes = math.prod(shape[:-1]) * row_bytes
    return Tensor(name, kind.name, shape, row_bytes, nbytes, (Extent(0, offset, nbytes),))


def _place(
    reader: _Reader, tensors: list[Tensor], data_start: int, alignment: int, part: int
) -> list[Tensor]:
    """The tensors with offsets in the file, after a check of bounds and overlaps."""
    placed: dict[str, Tensor] = {}
    for tensor in tensors:
        what = f"tensor {quote(tensor.name)}"
        if tensor.name in placed:
            raise reader.fault(f"{what} is there twice")
        if tensor.offset % alignment:
            raise reader.fault(f"{what} starts at {tensor.offset:,}, no multiple of {alignment}")
        start = data_start + tensor.offset
        if start + tensor.nbytes > reader.size:
            raise reader.fault(
                f"{what} of shape {tensor.shape} ends at {start + tensor.nbytes:,}, but the file"
                f" at {reader.size:,}; it is truncated or damaged"
            )
        extent = Extent(part, start, tensor.nbytes)
        placed[tensor.name] = dataclasses.replace(tensor, extents=(extent,))
    by_offset = sorted(placed.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(by_offset):
        if before.offset + before.nbytes > after.offset:
            raise reader.fault(f"tensors {quote(before.name)} and {quote(after.name)} overlap")
    return list(placed.values())
