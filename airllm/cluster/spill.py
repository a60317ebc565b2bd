"""Where weights lie that memory has no room for: one nameless file, or one that is kept.

Both take planes (a matrix, or an expert's) as they come from the wire; a stream reads them back.
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


def open_spill(cache: Path | None, nbytes: int = 0) -> Spill:
    """nbytes: of all planes that a run will store, file_bytes each."""
    return CacheFile(cache, nbytes) if cache is not None else SpillFile()


def file_bytes(plane_bytes: int) -> int:
    """What a plane takes of the file."""
    return -(-plane_bytes // _ALIGNMENT) * _ALIGNMENT


def room_bytes(cache: Path | None) -> int:
    """What open_spill's file may hold: what is free on the disk, and what the cache takes of it,
    as planes that a run does not need make room for those that it does."""
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
    """A file without a name, which is gone when the process is."""

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
    """A file that outlives the process, with an index that knows planes by the SHA-256 of their
    bytes: a line "digest place bytes" each, written when the plane is.

    What is there already is compared with what came; what is damaged is written anew, at the end.
    Where the disk has no room for that, it takes the place of planes that this run has not asked
    for; otherwise nothing is ever removed: what is not used any more is the user's to delete, both
    files together. Both are this user's alone.
    """

    def __init__(self, folder: Path, nbytes: int = 0) -> None:
        """nbytes: as open_spill. OSError where the folder cannot be had, is not this user's alone,
        or another worker has it."""
        path = folder / _WEIGHTS
        self.name = str(path)
        with contextlib.ExitStack() as stack:
            inside = open_own_folder(folder, create=True)
            stack.callback(os.close, inside)
            self.descriptor = open_own_file(inside, _WEIGHTS, path)
            opened = stack.enter_context(contextlib.ExitStack())
            opened.callback(os.close, self.descriptor)
            _lock(self.descriptor, folder)
            # Closing does not unlock: io_uring holds the file until the kernel has ended the ring.
            opened.callback(fcntl.flock, self.descriptor, fcntl.LOCK_UN)
            self._index = open_own_file(inside, _INDEX, folder / _INDEX)
            opened.callback(os.close, self._index)
            self._places = dict(self._known())
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
                self._empty()
            raise
        self._end = max(self._end, place + file_bytes(data.nbytes))
        self._places[digest, data.nbytes] = place
        self._use(place, data.nbytes)
        with contextlib.suppress(OSError):  # what the index does not know is written again
            os.write(self._index, b"%s %d %d\n" % (digest.encode(), place, data.nbytes))
        return place

    def release(self) -> None:
        self._files.close()

    def __repr__(self) -> str:
        return self.name

    def _place(self, nbytes: int) -> int:
        """Where a new plane goes: never over one of this run."""
        if not self._replaces or _free_bytes(self.descriptor) >= nbytes:
            return self._end  # not over others either: a damaged index may name a place twice
        begin = 0
        for used, end in [*self._used, (self._end, self._end)]:
            if used - begin >= nbytes:
                return begin
            begin = max(begin, end)
        return begin

    def _use(self, place: int, nbytes: int) -> None:
        bisect.insort(self._used, (place, place + file_bytes(nbytes)))

    def _empty(self) -> None:
        """The disk is full: what is kept would make every other run fail as well."""
        with contextlib.suppress(OSError):
            os.ftruncate(self._index, 0)
            os.ftruncate(self.descriptor, 0)

    def _known(self) -> Iterator[tuple[tuple[str, int], int]]:
        """What the index says, the last word of it; a line that makes no sense says nothing.
        New lines are written where the reading ends."""
        with os.fdopen(os.dup(self._index), "rb") as file:
            file.seek(0)
            while line := file.readline(_LONGEST_LINE):
                found = _LINE.fullmatch(line)
                if found and int(found[2]) % _ALIGNMENT == 0:
                    yield (found[1].decode(), int(found[3])), int(found[2])


def _free_bytes(descriptor: int) -> int:
    """Of the disk that a file is on, for this user."""
    disk = os.fstatvfs(descriptor)
    return disk.f_bavail * disk.f_frsize


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


def _write_all(descriptor: int, data: Bytes, offset: int, name: str) -> None:
    view = data.data
    try:
        while view.nbytes:
            n = os.pwrite(descriptor, view, offset)
            view, offset = view[n:], offset + n
    except OSError as error:  # which does not say where
        raise OSError(error.errno, error.strerror, name) from None
