"""Where weights lie that memory has no room for: one nameless file, or one that is kept.

Both take planes (a matrix, or an expert's) as they come from the wire; a stream reads them back.
"""

import fcntl
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

_ALIGNMENT = 4096  # of planes in the file, so that reads past the page cache read nothing else
_PIECE_BYTES = 1 << 20  # that are compared at once


class Spill(Protocol):
    """descriptor, name: of the file that planes are read from. stored_bytes: of all planes;
    reused_bytes: of those that were there already."""

    descriptor: int
    name: str
    stored_bytes: int
    reused_bytes: int

    def store(self, data: Bytes) -> int:
        """Keep a copy; returns its place in the file. OSError where it cannot be written."""

    def close(self) -> None: ...


def open_spill(cache: Path | None) -> Spill:
    return CacheFile(cache) if cache is not None else SpillFile()


def room_bytes(cache: Path | None) -> int:
    """What open_spill's file may hold: what is free on the disk, and what is in the cache."""
    folder = cache or spill_folder()
    kept = (folder / _WEIGHTS).stat().st_size if (folder / _WEIGHTS).exists() else 0
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free + kept


def spill_folder() -> Path:
    """TMPDIR, or /var/tmp: /tmp is memory on many systems."""
    disk = Path("/var/tmp")
    return disk if "TMPDIR" not in os.environ and disk.is_dir() else Path(tempfile.gettempdir())


class SpillFile:
    """A file without a name, which is gone when the process is."""

    def __init__(self) -> None:
        folder = spill_folder()
        self.descriptor, path = tempfile.mkstemp(dir=folder, prefix="airllm-")
        Path(path).unlink()
        self.name = f"the spill file in {folder}"
        self._end = 0
        self.stored_bytes = self.reused_bytes = 0

    def store(self, data: Bytes) -> int:
        self.stored_bytes += data.nbytes
        place = self._end
        _write_all(self.descriptor, data, place)
        self._end = _aligned(place + data.nbytes)
        return place

    def close(self) -> None:
        os.close(self.descriptor)


_WEIGHTS, _INDEX = "weights", "weights.index"
_LINE = re.compile(r"([0-9a-f]{64}) ([0-9]{1,15}) ([0-9]{1,15})")


class CacheFile:
    """A file that outlives the process, with an index that knows planes by the SHA-256 of their
    bytes: a line "digest place bytes" each, written when the plane is.

    What is there already is compared with what came; what is damaged is written anew, at the end.
    Nothing is ever removed: what is not used any more is the user's to delete, both files together.
    """

    def __init__(self, folder: Path) -> None:
        """OSError where the folder cannot be had, or another worker has it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / _WEIGHTS
        self.name = str(path)
        self.descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _lock(self.descriptor, folder)
            self._index = (folder / _INDEX).open("a+", encoding="ascii", errors="replace")
        except BaseException:
            os.close(self.descriptor)
            raise
        self._places = dict(self._known())
        self._end = _aligned(os.fstat(self.descriptor).st_size)
        self.stored_bytes = self.reused_bytes = 0

    def store(self, data: Bytes) -> int:
        self.stored_bytes += data.nbytes
        digest = hashlib.sha256(data.data).hexdigest()
        known = self._places.get((digest, data.nbytes))
        if known is not None and _holds(self.descriptor, known, data):
            self.reused_bytes += data.nbytes
            return known
        place = self._end  # and never over what is there: a damaged index may name it twice
        _write_all(self.descriptor, data, place)
        self._end = _aligned(place + data.nbytes)
        self._places[digest, data.nbytes] = place
        print(digest, place, data.nbytes, file=self._index, flush=True)
        return place

    def close(self) -> None:
        self._index.close()
        os.close(self.descriptor)

    def _known(self) -> Iterator[tuple[tuple[str, int], int]]:
        """What the index says, the last word of it; a line that makes no sense says nothing."""
        self._index.seek(0)
        for line in self._index:
            if found := _LINE.fullmatch(line.strip()):
                yield (found[1], int(found[3])), int(found[2])


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        text = "another worker uses this cache; give each a folder of its own"
        raise OSError(error.errno, text, str(folder)) from None


def _holds(descriptor: int, place: int, data: Bytes) -> bool:
    """Whether the file has these bytes there."""
    memory = bytearray(min(_PIECE_BYTES, data.nbytes))
    for at in range(0, data.nbytes, _PIECE_BYTES):
        piece = data[at : at + _PIECE_BYTES].data
        view = memoryview(memory)[: piece.nbytes]
        if os.preadv(descriptor, [view], place + at) != piece.nbytes or view != piece:
            return False
    return True


def _write_all(descriptor: int, data: Bytes, offset: int) -> None:
    view = data.data
    while view.nbytes:
        n = os.pwrite(descriptor, view, offset)
        view, offset = view[n:], offset + n


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
