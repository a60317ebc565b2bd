"""Where weights lie that memory has no room for: one nameless file, or a folder that is kept.

Both store planes (a matrix, or an expert's) as they came from the wire, and read them back.
"""

import contextlib
import hashlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]


class Spill(Protocol):
    def store(self, data: Bytes) -> object:
        """Keep a copy; returns what `read` takes. OSError where it cannot be written."""

    def read(self, place: object, memory: Bytes) -> None:
        """The bytes that were stored, of memory's length. OSError where they are not there."""

    def close(self) -> None: ...


def open_spill(cache: Path | None) -> Spill:
    return CacheFolder(cache) if cache is not None else SpillFile()


def free_bytes(cache: Path | None) -> int:
    """Of the disk that open_spill writes to."""
    folder = cache or spill_folder()
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free


def spill_folder() -> Path:
    """TMPDIR, or /var/tmp: /tmp is memory on many systems."""
    disk = Path("/var/tmp")
    return disk if "TMPDIR" not in os.environ and disk.is_dir() else Path(tempfile.gettempdir())


class SpillFile:
    """A file without a name, which is gone when the process is. Places are offsets."""

    def __init__(self) -> None:
        handle, name = tempfile.mkstemp(dir=spill_folder(), prefix="airllm-")
        Path(name).unlink()
        self._handle, self._end = handle, 0

    def store(self, data: Bytes) -> int:
        place = self._end
        _write_all(self._handle, data, place)
        self._end += data.nbytes
        return place

    def read(self, place: object, memory: Bytes) -> None:
        assert isinstance(place, int)
        _read_all(self._handle, memory, place, "the spill file")

    def close(self) -> None:
        os.close(self._handle)


class CacheFolder:
    """A file for each plane, named by the SHA-256 of its bytes. Places are paths.

    A file that is there already is compared with what came, so that a damaged one is replaced. The
    folder is never emptied: what is not used any more is the user's to delete.
    """

    def __init__(self, folder: Path) -> None:
        """OSError where the folder cannot be had."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder
        self.reused_bytes = 0

    def store(self, data: Bytes) -> Path:
        path = self._folder / f"{hashlib.sha256(data.data).hexdigest()}.weights"
        if self._holds(path, data):
            self.reused_bytes += data.nbytes
            return path
        handle, temporary = tempfile.mkstemp(dir=self._folder, prefix=".", suffix=".part")
        try:
            try:
                _write_all(handle, data, 0)
            finally:
                os.close(handle)
            Path(temporary).replace(path)  # it appears when it is complete
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
        return path

    def read(self, place: object, memory: Bytes) -> None:
        assert isinstance(place, Path)
        handle = os.open(place, os.O_RDONLY)
        try:
            _read_all(handle, memory, 0, str(place))
        finally:
            os.close(handle)

    def close(self) -> None:
        pass

    def _holds(self, path: Path, data: Bytes) -> bool:
        try:
            if path.stat().st_size != data.nbytes:
                return False
            return bool((np.memmap(path, np.uint8, "r") == data).all())
        except FileNotFoundError:
            return False


def _write_all(handle: int, data: Bytes, offset: int) -> None:
    view = data.data
    while view.nbytes:
        n = os.pwrite(handle, view, offset)
        view, offset = view[n:], offset + n


def _read_all(handle: int, memory: Bytes, offset: int, name: str) -> None:
    view = memory.data
    while view.nbytes:
        n = os.preadv(handle, [view], offset)
        if n == 0:
            raise OSError(f"{name} ends too early: it was changed")
        view, offset = view[n:], offset + n
