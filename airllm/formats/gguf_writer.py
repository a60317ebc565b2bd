"""Writes GGUF files from front to back, in the memory of one piece of a tensor.

`gguf_header` describes the format. Metadata and the table of tensors come first, so the caller must
know all types and shapes at the start; the data follows piece by piece.
"""

import errno
import io
import os
import stat
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from airllm.formats.ggml_types import TYPES
from airllm.util.durable import naming, sync_directory

ALIGNMENT = 32

# What an unfinished file begins with, in place of magic, version and counts: nobody takes it for a
# model, and the next writer recognises a file that a killed writer left.
_UNFINISHED = b"airllm's unfinished file"

_NUMBER_OF_TYPE = {kind.name: number for number, kind in TYPES.items()}
_KIND_OF_TYPE = {kind.name: kind for kind in TYPES.values()}
_BOOL, _STRING, _ARRAY = 7, 8, 9
_NUMBERS = {
    name: number
    for number, name in enumerate(("uint8", "int8", "uint16", "int16", "uint32", "int32"))
} | {"float32": 6, "bool": _BOOL, "uint64": 10, "int64": 11, "float64": 12}


@dataclass(frozen=True)
class TensorInfo:
    """A tensor to be written. shape: row-major, (n rows, k columns) or (k,)."""

    name: str
    type: str  # "q4_1"
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """ValueError for an unknown type, or rows that are not whole blocks."""
        kind = _KIND_OF_TYPE.get(self.type)
        if kind is None:
            raise ValueError(f"tensor {self.name}: there is no type {self.type!r}")
        if self.shape[-1] % kind.block_size:
            raise ValueError(
                f"tensor {self.name}: rows of {self.shape[-1]} values; {self.type} needs a "
                f"multiple of {kind.block_size}"
            )
        n_rows = int(np.prod(self.shape[:-1], dtype=np.int64))
        return n_rows * kind.row_bytes(self.shape[-1])


class GGUFWriter:
    """with GGUFWriter(path, metadata, tensors) as writer:
        for tensor in tensors:
            for piece in ...:
                writer.write(tensor.name, piece)

    metadata: str, bool, int (uint32, or the first of int32, uint64, int64 that holds it), float
        (float32), NumPy scalars and 1-D arrays in their own type, lists of strings.

    The writer fills `path`.partial, and renames it to `path` when all data is on the disk. An
    exception removes the partial file; one that a killed process left is reused by the next writer.
    OSError, which names the file, if it cannot be written, another process writes it, `path` is a
    directory or a device, or `path`.partial is a file that no writer of this package left.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        metadata: Mapping[str, object],
        tensors: Sequence[TensorInfo],
    ) -> None:
        self.path = Path(path)
        if self.path.exists() and not self.path.is_file():  # before anything is written
            raise FileExistsError(errno.EEXIST, "is there, and is no regular file", str(path))
        self._partial = self.path.with_name(self.path.name + ".partial")
        self._tensors = list(tensors)
        self._written = 0  # bytes written of self._tensors[0]
        head = _head(metadata, self._tensors)
        self._beginning = head[: len(_UNFINISHED)]
        self._file = _open_exclusively(self._partial)
        try:
            self._write(_UNFINISHED + head[len(_UNFINISHED) :])
        except BaseException:
            self._abandon()
            raise

    def write(self, name: str, data: NDArray[Any]) -> None:
        """Write the next piece of a tensor: the bytes of a C-contiguous array of any type.

        Tensors must come in the order of the table. ValueError for another order, or for more bytes
        than the tensor has.
        """
        while self._tensors and self._written == self._tensors[0].nbytes:
            self._next_tensor()
        if not self._tensors or self._tensors[0].name != name:
            expected = self._tensors[0].name if self._tensors else "nothing more"
            raise ValueError(f"{self.path}: data for {name}; expected {expected}")
        tensor = self._tensors[0]
        if self._written + data.nbytes > tensor.nbytes:
            raise ValueError(
                f"{self.path}: {self._written + data.nbytes} bytes for {name}; expected "
                f"{tensor.nbytes}"
            )
        self._write(np.ascontiguousarray(data).data)
        self._written += data.nbytes

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            if error is None:
                self._finish()
        except BaseException:
            self._abandon()
            raise
        if error is not None:
            self._abandon()
        self._file.close()

    def _finish(self) -> None:
        while self._tensors and self._written == self._tensors[0].nbytes:
            self._next_tensor()
        if self._tensors:
            tensor = self._tensors[0]
            raise ValueError(
                f"{self.path}: {self._written} bytes for {tensor.name}; expected {tensor.nbytes}"
            )
        with naming(self._partial):
            self._file.seek(0)
            self._write(self._beginning)
            os.fsync(self._file.fileno())
        self._partial.replace(self.path)
        sync_directory(self.path.parent)

    def _abandon(self) -> None:
        self._partial.unlink(missing_ok=True)  # while the lock shows that it is ours
        self._file.close()

    def _write(self, data: bytes | memoryview) -> None:
        left = memoryview(data).cast("B")
        with naming(self._partial):
            while left:
                left = left[self._file.write(left) :]

    def _next_tensor(self) -> None:
        self._write(bytes(-self._written % ALIGNMENT))
        self._tensors.pop(0)
        self._written = 0


def _open_exclusively(path: Path) -> io.FileIO:
    """An empty file, locked against other writers until this process closes it or ends."""
    how = os.O_RDWR | os.O_CREAT
    for name in ("O_CLOEXEC", "O_BINARY", "O_NOFOLLOW", "O_NONBLOCK"):  # a pipe would wait
        how |= getattr(os, name, 0)
    while True:
        file = io.FileIO(_open_no_link(path, how), "r+")
        try:
            with naming(path):
                _check_regular(file, path)
                _lock(file, path)
                # Another writer may have finished meanwhile: then the file has its final name.
                if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    _check_ours(file, path)
                    file.truncate(0)
                    file.seek(0)
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _open_no_link(path: Path, how: int) -> int:
    """Somebody else may have put a link there, in a shared folder, to a file of the user's."""
    try:
        return os.open(path, how, 0o666)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link, a pipe
            raise _no_file(path) from None
        raise


def _check_regular(file: io.FileIO, path: Path) -> None:
    found = os.fstat(file.fileno())
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        raise _no_file(path)


def _no_file(path: Path) -> OSError:
    text = "is a link or no regular file, and what it leads to would be overwritten; remove it"
    return FileExistsError(errno.EEXIST, text, str(path))


def _check_ours(file: io.FileIO, path: Path) -> None:
    """Another program may keep a file under this name, a download for instance."""
    beginning = file.read(len(_UNFINISHED)) or b""
    if not _UNFINISHED.startswith(beginning):
        raise FileExistsError(
            errno.EEXIST,
            "is there, and is no unfinished file of this program; move it, or choose another name",
            str(path),
        )


def _lock(file: io.FileIO, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows has no fcntl: nothing keeps two writers apart
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(errno.EAGAIN, "another process is writing it", str(path)) from None


def _head(metadata: Mapping[str, object], tensors: Sequence[TensorInfo]) -> bytes:
    """The bytes before the tensors' data."""
    head = bytearray(struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        head += _string(key)
        head += _typed(key, value)
    offset = 0
    for tensor in tensors:
        nbytes = tensor.nbytes  # raises if the type or shape is wrong
        dims = tensor.shape[::-1]  # the file has the fastest axis first
        head += _string(tensor.name)
        head += struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
        head += struct.pack("<IQ", _NUMBER_OF_TYPE[tensor.type], offset)
        offset += nbytes + -nbytes % ALIGNMENT
    head += bytes(-len(head) % ALIGNMENT)
    return bytes(head)


def _string(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _typed(key: str, value: object) -> bytes:
    """The number of a value's type and the value. TypeError if GGUF has no such type."""
    if isinstance(value, str):
        return struct.pack("<I", _STRING) + _string(value)
    if isinstance(value, (list, tuple)):
        if not all(isinstance(text, str) for text in value):
            raise TypeError(f"metadata {key}: a list of other things than strings; use an array")
        texts = b"".join(map(_string, value))
        return struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + texts
    if isinstance(value, np.ndarray) and value.ndim == 1 and value.dtype.name in _NUMBERS:
        number = _NUMBERS[value.dtype.name]
        return struct.pack("<IIQ", _ARRAY, number, value.size) + _little_endian(value)
    scalar = _scalar(value)
    if scalar is None or scalar.dtype.name not in _NUMBERS:
        raise TypeError(f"metadata {key}: GGUF has no type for {value!r}")
    return struct.pack("<I", _NUMBERS[scalar.dtype.name]) + _little_endian(scalar)


def _scalar(value: object) -> NDArray[Any] | None:
    """The value as a NumPy scalar of the type to write; None if it is no scalar."""
    if isinstance(value, (bool, np.generic)):
        return np.asarray(value)
    if isinstance(value, float):
        return np.asarray(value, np.float32)
    if isinstance(value, int):
        for dtype in (np.uint32, np.int32, np.uint64, np.int64):
            limits = np.iinfo(dtype)
            if limits.min <= value <= limits.max:
                return np.asarray(value, dtype)
    return None


def _little_endian(values: NDArray[Any]) -> bytes:
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()
