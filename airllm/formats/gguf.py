"""Reads GGUF files: metadata, and tensors as views of the memory map.

The format (ggml's docs/gguf.md), little-endian throughout:

    "GGUF", u32 version, u64 tensor count, u64 metadata count
    metadata: string key, u32 type, value
    tensors:  string name, u32 number of dims, u64 dims (fastest first), u32 type, u64 offset
    padding to `general.alignment`, then the tensors' data

A string is a u64 length and that many bytes of UTF-8; an array is a u32 type, a u64 count and the
values. Nothing in the file is believed: each count and length is compared with what is left of the
file, and with the limits below, before anything is allocated or looped over. All of it is done in
`open`, so a GGUFFile that exists is one whose tensors can all be read.
"""

import dataclasses
import io
import itertools
import math
import mmap
import os
import stat
import struct
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt

from airllm.formats.ggml_types import REMOVED_TYPES, SUPPORTED_TYPES, TYPES
from airllm.formats.metadata import FormatError, Metadata

__all__ = ["FormatError", "GGUFFile", "Metadata", "Tensor"]

# What a file may ask for at most, so that a hostile one of many gigabytes is refused as fast as a
# small one. The largest vocabularies need 0.8 million strings and 20 MB; models have some thousand
# tensors and under a hundred keys.
MAX_HEADER_BYTES = 64 * 2**20
MAX_STRINGS = 2**21
MAX_TENSORS = 2**16
MAX_KEYS = 2**16
MAX_DIMS = 4
FINGERPRINT_BYTES = 1024  # of each tensor
_STRINGS_AT_ONCE = 2**13
MAX_FAULT_NAME = 80  # characters of a name that an error message repeats

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

# What people take for a GGUF file, by its first bytes.
_OTHER_FORMATS = {
    b"version https": "a Git LFS pointer, not the model; fetch the model with `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive (a PyTorch checkpoint?); convert it to GGUF",
    b"tjgg": "a model of the older GGML format; convert it to GGUF",
    b"lmgg": "a model of the older GGML format; convert it to GGUF",
    b"fmgg": "a model of the older GGML format; convert it to GGUF",
    b"<": "a web page or XML; was the download refused?",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry: `nbytes` bytes of type `type` ("q4_1") at `offset` in the file."""

    name: str
    type: str
    shape: tuple[int, ...]  # row-major: a matrix is (n rows, k columns)
    row_bytes: int  # bytes of shape[-1] elements
    nbytes: int
    offset: int


class GGUFFile:
    """An open GGUF file; all of it is checked, none of its tensors is read yet.

    metadata: the file's key-value pairs.
    tensors: every tensor by name, in the file's order.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    _map: mmap.mmap
    _descriptor: int | None
    _identity: tuple[int, int]

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map the file and check it.

        Raises FormatError for anything that is not a GGUF file this package can run, and OSError
        (FileNotFoundError, PermissionError...) where the file cannot be opened at all.
        """
        self = cls()
        self.path = Path(path)
        self._descriptor = descriptor = _open_regular_file(self.path)
        try:
            self._identity = _identity(descriptor)
            self._map = mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ)
            self._read()
        except BaseException:
            self.close()
            raise
        return self

    def data(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, read-only and without a copy: uint8 [n, row_bytes], 1-D: [row_bytes].

        The view stays valid after `close`. Raises KeyError for a name the file does not have.
        """
        tensor = self.tensors[name]
        raw = np.frombuffer(self._map, np.uint8, tensor.nbytes, tensor.offset)
        return raw.reshape(*tensor.shape[:-1], tensor.row_bytes)

    def read(self, name: str, memory: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """A tensor's bytes, as `data` has them, read into the beginning of `memory`, uint8 [n].

        Slower than looking at the map, and safe: a file that is truncated at this very moment is a
        FormatError. Raises KeyError for a name the file does not have.
        """
        tensor = self.tensors[name]
        raw = memory[: tensor.nbytes]
        self.check_unchanged()
        assert self._descriptor is not None
        with io.FileIO(self._descriptor, closefd=False) as file:
            file.seek(tensor.offset)
            done = 0
            while done < tensor.nbytes:  # Linux reads 2 GiB at a time
                n_bytes = file.readinto(raw[done:].data)
                if not n_bytes:
                    raise FormatError(f"{self.path}: {_quote(name)} cannot be read to its end")
                done += n_bytes
        return raw.reshape(*tensor.shape[:-1], tensor.row_bytes)

    def fingerprint(self) -> bytes:
        """32 bytes that tell models apart: SHA-256 of all that comes before the tensors' data and
        of each tensor's beginning. A copy under another name has the same. Milliseconds, where a
        hash of the whole file would take seconds."""
        import hashlib

        self.check_unchanged()
        assert self._descriptor is not None
        parts = [(tensor.offset, tensor.nbytes) for tensor in self.tensors.values()]
        header_bytes = min((offset for offset, _ in parts), default=MAX_HEADER_BYTES)
        digest = hashlib.sha256(os.pread(self._descriptor, header_bytes, 0))
        for offset, n_bytes in parts:
            digest.update(os.pread(self._descriptor, min(n_bytes, FINGERPRINT_BYTES), offset))
        return digest.digest()

    def check_unchanged(self) -> None:
        """Raise FormatError if the file was written to or truncated since `open`.

        Call it before touching the map: reading a page that a truncation took away kills the
        process (SIGBUS). One fstat, about a microsecond. A file that was deleted, or that another
        was renamed over, does no harm: the map still holds the one that was opened.
        """
        if self._descriptor is None:
            raise FormatError(f"{self.path}: the file was closed")
        if _identity(self._descriptor) != self._identity:
            raise FormatError(
                f"{self.path}: the file was changed while it was in use; load the model again"
            )

    def close(self) -> None:
        """Close the file. Views that `data` gave keep the map alive until they are dropped."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"GGUFFile({str(self.path)!r}, {len(self.tensors)} tensors)"

    def _read(self) -> None:
        reader = _Reader(str(self.path), self._map)
        tensor_count, key_count = _read_preamble(reader)
        self.metadata = _read_metadata(reader, key_count)
        alignment = _alignment(self.metadata)
        _refuse_parts(self.metadata)
        tensors = [_read_tensor(reader) for _ in range(tensor_count)]
        data_start = -(-reader.at // alignment) * alignment
        self.tensors = MappingProxyType(_place(reader, tensors, data_start, alignment))


class _Reader:
    """Takes values from the header in order, none from beyond its end."""

    def __init__(self, source: str, data: mmap.mmap) -> None:
        self.source = source
        self.data = data
        self.size = len(data)
        self.end = min(self.size, MAX_HEADER_BYTES)
        self.at = 0
        self.strings_left = MAX_STRINGS

    def fault(self, message: str) -> FormatError:
        return FormatError(f"{self.source}: {message}")

    def need(self, n_bytes: int, what: str) -> None:
        """Raise unless n_bytes more are there."""
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
        return self.data[start : self.at]

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
        """An array of strings, so many at a time that what is claimed buys no memory."""
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
        """Strings of an array from number `first` on, one after the other."""
        data, at, end = self.data, self.at, self.end
        length_at = struct.Struct("<Q").unpack_from
        texts = []
        try:
            for _ in range(count):
                start = at + 8
                at = start + length_at(data, at)[0]
                if at > end:
                    break
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
        """The same where each has 1 to 255 bytes and none of them is zero, as tokens and merges
        have; None, and nothing is taken, where they are not like that, or no UTF-8.

        The only zero bytes are then the upper seven of each length, and tell where strings begin
        and end without a loop over them: a third of the time. A Llama 3 has 408,000.
        """
        most = min(self.end - self.at, 32 * count)
        region = np.frombuffer(self.data, np.uint8, most, self.at).copy()
        zeros = np.flatnonzero(region == 0)
        starts = zeros[: 7 * count : 7] - 1  # of the lengths
        if len(zeros) < 7 * count or starts[0] != 0:
            return None
        ends = starts + 8 + region[starts]  # of the strings
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


def _open_regular_file(path: Path) -> int:
    """A descriptor; looks before it opens, because opening a named pipe would wait for a writer."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise FormatError(f"{path}: is a directory; give the .gguf file in it")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: is not a regular file")
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    if os.fstat(descriptor).st_size == 0:
        os.close(descriptor)
        raise FormatError(f"{path}: is empty")
    return descriptor


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns


def _read_preamble(reader: _Reader) -> tuple[int, int]:
    """Check magic and version; return the counts of tensors and of metadata keys."""
    if reader.data[:4] != b"GGUF":
        for magic, meaning in _OTHER_FORMATS.items():
            if reader.data[: len(magic)] == magic:
                raise reader.fault(f"not a GGUF file but {meaning}")
        raise reader.fault(f"not a GGUF file: it begins with {reader.data[:4]!r}, not b'GGUF'")
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
            raise reader.fault(f"metadata key {_quote(key)} is there twice")
        values[key] = reader.value(f"metadata {_quote(key)}")
    return Metadata(reader.source, values)


def _alignment(metadata: Metadata) -> int:
    alignment = metadata.integer("general.alignment", 32)
    if alignment < 8 or alignment & (alignment - 1):
        raise metadata.fault(
            f"general.alignment is {alignment}; expected a power of two, at least 8"
        )
    return alignment


def _refuse_parts(metadata: Metadata) -> None:
    parts = metadata.integer("split.count", 1)
    if parts > 1:
        raise metadata.fault(
            f"one of {parts} parts of a split model; join them with `llama-gguf-split --merge`"
        )


def _read_tensor(reader: _Reader) -> Tensor:
    """A tensor's entry, its offset still counted from the start of the data."""
    name = reader.string("a tensor's name")
    what = f"tensor {_quote(name)}"
    n_dims = reader.u32(f"the number of dims of {what}")
    if not 1 <= n_dims <= MAX_DIMS:
        raise reader.fault(f"{what} has {n_dims:,} dims; expected 1 to {MAX_DIMS}")
    shape = tuple(reversed([reader.u64(f"a dim of {what}") for _ in range(n_dims)]))
    number, offset = reader.u32(f"the type of {what}"), reader.u64(f"the offset of {what}")

    kind = TYPES.get(number)
    if kind is None or kind.name not in SUPPORTED_TYPES:
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
    return Tensor(name, kind.name, shape, row_bytes, nbytes, offset)


def _place(
    reader: _Reader, tensors: list[Tensor], data_start: int, alignment: int
) -> dict[str, Tensor]:
    """Tensors by name with their place in the file, each inside it and clear of the others."""
    placed: dict[str, Tensor] = {}
    for tensor in tensors:
        what = f"tensor {_quote(tensor.name)}"
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
        placed[tensor.name] = dataclasses.replace(tensor, offset=start)
    by_offset = sorted(placed.values(), key=lambda tensor: tensor.offset)
    for before, after in itertools.pairwise(by_offset):
        if before.offset + before.nbytes > after.offset:
            raise reader.fault(f"tensors {_quote(before.name)} and {_quote(after.name)} overlap")
    return placed


def _quote(name: str) -> str:
    return repr(name if len(name) <= MAX_FAULT_NAME else name[:MAX_FAULT_NAME] + "...")
