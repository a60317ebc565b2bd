"""Files for weights that do not fit in memory: a file without a name, or a cache that is kept.

Both take planes (a matrix, or an expert's matrix) as they come from the wire. A stream reads them.
"""

import bisect
import contextlib
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from airllm.util.closing import Closing
from airllm.util.private import open_own_file, open_own_folder

Bytes = NDArray[np.uint8]

# Alignment of planes in the file: reads that bypass the page cache then read nothing else.
_ALIGNMENT = 4096
_PIECE_BYTES = 1 << 20  # compared at once


class Spill(Protocol):
    """descriptor, name: of the file with the planes. stored_bytes: of all planes. reused_bytes: of
    the planes that the file had already."""

    descriptor: int
    name: str
    stored_bytes: int
    reused_bytes: int

    def store(self, data: Bytes) -> int:
        """Returns the offset of the plane's copy in the file. OSError if it cannot be written."""

    def close(self) -> None: ...


def open_spill(cache: Path | None, nbytes: int = 0) -> Spill:
    """nbytes: the sum of file_bytes over all planes that a run will store."""
    return CacheFile(cache, nbytes) if cache is not None else SpillFile()


def file_bytes(plane_bytes: int) -> int:
    """Bytes that a plane takes in the file."""
    return -(-plane_bytes // _ALIGNMENT) * _ALIGNMENT


def room_bytes(cache: Path | None) -> int:
    """Bytes that open_spill's file may hold: the free bytes of the disk, and those of the cache,
    because a run overwrites planes of the cache that it does not need."""
    folder = cache or spill_folder()
    kept = 0
    try:
        found = (folder / _WEIGHTS).lstat()
        if stat.S_ISREG(found.st_mode):
            kept = min(found.st_size, 512 * found.st_blocks)  # it may have holes
    except OSError:
        pass
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free + kept


def spill_folder() -> Path:
    """TMPDIR, or /var/tmp: /tmp is memory on many systems."""
    disk = Path("/var/tmp")
    return disk if "TMPDIR" not in os.environ and disk.is_dir() else Path(tempfile.gettempdir())


class SpillFile(Closing):
    """A file without a name, which disappears with the process."""

    def __init__(self) -> None:
        folder = spill_folder()
        self.descriptor, path = tempfile.mkstemp(dir=folder, prefix="airllm-")
        Path(path).unlink()
        self.name = f"the spill file in {folder}"
        self._end = 0
        self.stored_bytes = self.reused_bytes = 0
        self.closed = False

    def store(self, data: Bytes) -> int:
        self.stored_bytes += data.nbytes
        place = self._end
        _write_all(self.descriptor, data, place, self.name)
        self._end += file_bytes(data.nbytes)
        return place

    def release(self) -> None:
        os.close(self.descriptor)

    def __repr__(self) -> str:
        return self.name


_WEIGHTS, _INDEX = "weights", "weights.index"
_LINE = re.compile(rb"([0-9a-f]{64}) ([0-9]{1,15}) ([0-9]{1,15})\n")
_LONGEST_LINE = 64 + 2 * 16 + 1


class CacheFile(Closing):
    """A file that outlives the process, with an index that finds planes by the SHA-256 of their
    bytes. The index has a line "digest offset bytes" for each plane, written after the plane.

    A plane that the index names is compared with the plane that came; a damaged plane is written
    anew, at the end. If the disk has no room for a plane, it overwrites planes that this run has
    not used. Nothing else is removed, unless a write finds the disk full; the user may delete the
    two files, both together. Both belong to this user alone.
    """

    def __init__(self, folder: Path, nbytes: int = 0) -> None:
        """nbytes: see open_spill. OSError if the folder cannot be opened, is not this user's alone,
        or is in use by another worker."""
        path = folder / _WEIGHTS
        self.name = str(path)
        with contextlib.ExitStack() as stack:
            inside = open_own_folder(folder, create=True)
            stack.callback(os.close, inside)
            self.descriptor = open_own_file(inside, _WEIGHTS, path)
            opened = stack.enter_context(contextlib.ExitStack())
            opened.callback(os.close, self.descriptor)
            _lock(self.descriptor, folder)
            # Closing alone does not unlock: io_uring holds the file until the kernel ends the ring.
            opened.callback(fcntl.flock, self.descriptor, fcntl.LOCK_UN)
            self._index = open_own_file(inside, _INDEX, folder / _INDEX)
            opened.callback(os.close, self._index)
            self._places = dict(self._read_index())
            self._end = file_bytes(os.fstat(self.descriptor).st_size)
            self._replaces = nbytes > _free_bytes(self.descriptor)
            self._files = opened.pop_all()
        self.closed = False
        self._used: list[tuple[int, int]] = []  # (begin, end) of this run's planes, in order
        self.stored_bytes = self.reused_bytes = 0

    def store(self, data: Bytes) -> int:
        self.stored_bytes += data.nbytes
        digest = hashlib.sha256(data.data).hexdigest()
        known = self._places.get((digest, data.nbytes))
        if known is not None and _holds(self.descriptor, known, data):
            self.reused_bytes += data.nbytes
            self._use(known, data.nbytes)
            return known
        place = self._place(file_bytes(data.nbytes))
        try:
            _write_all(self.descriptor, data, place, self.name)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                self._truncate()
            raise
        self._end = max(self._end, place + file_bytes(data.nbytes))
        self._places[digest, data.nbytes] = place
        self._use(place, data.nbytes)
        with contextlib.suppress(OSError):  # a plane that the index lacks is written again
            os.write(self._index, b"%s %d %d\n" % (digest.encode(), place, data.nbytes))
        return place

    def release(self) -> None:
        self._files.close()

    def __repr__(self) -> str:
        return self.name

    def _place(self, nbytes: int) -> int:
        """The offset for a new plane. It never overwrites a plane of this run."""
        if not self._replaces or _free_bytes(self.descriptor) >= nbytes:
            return self._end  # overwrites nothing, as a damaged index may name an offset twice
        begin = 0
        for used, end in [*self._used, (self._end, self._end)]:
            if used - begin >= nbytes:
                return begin
            begin = max(begin, end)
        return begin

    def _use(self, place: int, nbytes: int) -> None:
        bisect.insort(self._used, (place, place + file_bytes(nbytes)))

    def _truncate(self) -> None:
        """Empties both files: they fill the disk, so that all later runs would fail, too."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._index, 0)
            os.ftruncate(self.descriptor, 0)

    def _read_index(self) -> Iterator[tuple[tuple[str, int], int]]:
        """((digest, bytes), offset) of each line of the index, without malformed lines. Later
        lines replace earlier ones. New lines are written where this reading ends."""
        with os.fdopen(os.dup(self._index), "rb") as file:
            file.seek(0)
            while line := file.readline(_LONGEST_LINE):
                found = _LINE.fullmatch(line)
                if found and int(found[2]) % _ALIGNMENT == 0:
                    yield (found[1].decode(), int(found[3])), int(found[2])


def _free_bytes(descriptor: int) -> int:
    """Bytes that are free for this user on the disk of a file."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


def _lock(descriptor: int, folder: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        text = "another worker uses this cache; give each a folder of its own"
        raise OSError(error.errno, text, str(folder)) from None


def _holds(descriptor: int, place: int, data: Bytes) -> bool:
    """Whether the file has the bytes of `data` at `place`."""
    memory = bytearray(min(_PIECE_BYTES, data.nbytes))
    for at in range(0, data.nbytes, _PIECE_BYTES):
        piece = data[at : at + _PIECE_BYTES].data
        view = memoryview(memory)[: piece.nbytes]
        if os.preadv(descriptor, [view], place + at) != piece.nbytes or view != piece:
            return False
    return True


def _write_all(descriptor: int, data: Bytes, offset: int, name: str) -> None:
    view = data.data
    try:
        while view.nbytes:
            n = os.pwrite(descriptor, view, offset)
            view, offset = view[n:], offset + n
    except OSError as error:  # its text lacks the file's name
        raise OSError(error.errno, error.strerror, name) from None
