"""One file of a model, mapped into memory; `read` works without the map, if the file may change."""

import io
import mmap
import os
import stat
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from airllm.util.closing import Closing
from airllm.util.durable import naming
from airllm.util.metadata import FormatError

__all__ = ["MappedFile", "quote"]

MAX_FAULT_NAME = 80  # characters of a name in an error message

_CHUNK = 2**18  # bytes that read_strip reads at a time
_CHEAP_GAP = 2**13  # bytes: reading them takes less time than another call, about 2 us


class MappedFile(Closing):
    """An open regular file that is not empty.

    path: as given; another file may have that name by now. descriptor: open for reading until
    `close`. map: the whole file. size: in bytes.
    """

    path: Path
    size: int
    map: mmap.mmap
    _descriptor: int
    _identity: tuple[int, int]

    @classmethod
    def open(cls, path: Path, *, hint: str) -> Self:
        """hint: advice for a caller who gave a directory: "give the .gguf file in it".

        FormatError if it is no regular file, or is empty; OSError if it cannot be opened.
        """
        self = cls()
        self.path = path
        self._descriptor = descriptor = _open_regular_file(path, hint)
        self.closed = False
        try:
            self._identity = _identity(descriptor)
            self.size = self._identity[0]
            if self.size == 0:
                raise FormatError(f"{path}: is empty")
            try:
                with naming(path):
                    self.map = mmap.mmap(descriptor, self.size, access=mmap.ACCESS_READ)
            except ValueError:  # it is shorter than it was
                raise FormatError(f"{path}: the file was changed while it was opened") from None
        except BaseException:
            self.close()
            raise
        return self

    @property
    def descriptor(self) -> int:
        """RuntimeError after `close`."""
        if self.closed:
            raise RuntimeError(f"{self.path}: the file is closed")
        return self._descriptor

    def view(self, offset: int, nbytes: int) -> npt.NDArray[np.uint8]:
        """Bytes of the map, read-only: uint8 [nbytes]. Valid after `close`, too."""
        return np.frombuffer(self.map, np.uint8, nbytes, offset)

    def pread(self, offset: int, nbytes: int) -> bytes:
        """Up to so many bytes of the file itself. OSError names the file."""
        with naming(self.path):
            return os.pread(self.descriptor, nbytes, offset)

    def read(self, offset: int, memory: npt.NDArray[np.uint8], what: str) -> None:
        """Fill `memory` by reading the file. FormatError names `what` if the file ends too early;
        OSError names the file if the disk fails."""
        try:
            with io.FileIO(self.descriptor, closefd=False) as file:
                file.seek(offset)
                done = 0
                while done < memory.nbytes:  # Linux reads 2 GiB at a time
                    n_bytes = file.readinto(memory[done:].data)
                    if not n_bytes:
                        raise FormatError(f"{self.path}: {quote(what)} cannot be read to its end")
                    done += n_bytes
        except OSError as error:
            raise OSError(error.errno, f"{quote(what)}: {error.strerror}", str(self.path)) from None

    def read_strip(self, offset: int, memory: npt.NDArray[np.uint8], step: int, what: str) -> None:
        """Fill each row of `memory`, uint8 [n, n_bytes], from the bytes at offset, offset + step,
        and so on. Errors: see `read`."""
        n, n_bytes = memory.shape
        if step > _CHUNK or step - n_bytes > _CHEAP_GAP:
            for at in range(n):
                self.read(offset + at * step, memory[at], what)
            return
        together = _CHUNK // step
        chunk = np.empty((together, step), np.uint8)
        for first in range(0, n, together):
            count = min(together, n - first)
            last = (count - 1) * step + n_bytes
            self.read(offset + first * step, chunk.reshape(-1)[:last], what)
            memory[first : first + count] = chunk[:count, :n_bytes]

    def check_unchanged(self) -> None:
        """FormatError if the file was written to or truncated since `open`.

        Call it before touching the map: reading a page that a truncation removed kills the process
        (SIGBUS). It is one fstat, about a microsecond. Deleting the file, or renaming another over
        it, does no harm: the map still holds the file that was opened.
        """
        if _identity(self.descriptor) != self._identity:
            raise FormatError(
                f"{self.path}: the file was changed while it was in use; load the model again"
            )

    def release(self) -> None:
        """Close the descriptor. Views keep the map alive until they are dropped."""
        os.close(self._descriptor)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r})"


def quote(name: str) -> str:
    return repr(name if len(name) <= MAX_FAULT_NAME else name[:MAX_FAULT_NAME] + "...")


def _open_regular_file(path: Path, hint: str) -> int:
    """A descriptor. Checks the kind of file first: opening a named pipe would wait for a writer."""
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise FormatError(f"{path}: is a directory; {hint}")
    if not stat.S_ISREG(mode):
        raise FormatError(f"{path}: is not a regular file")
    return os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
