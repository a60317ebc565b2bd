"""The extension's Stream in Python. It reads nothing ahead; all else is the same."""

import errno
import os
from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Memory and an offset in it.
Target = tuple[NDArray[np.uint8], int]
# File, offset, bytes, and a target for each slot.
Range = tuple[int, int, int, Sequence[Target]]


class PlainStream:
    """See tensor_ops_cpp.Stream: the same sections, errors and statistics."""

    def __init__(
        self,
        files: Sequence[tuple[int, str]],
        sections: Sequence[Sequence[Range]],
        *,
        endless: bool = True,
    ) -> None:
        self._files, self._sections, self._endless = files, list(sections), endless
        self._slots = len(sections[0][0][3]) if sections else 1
        self._opened = [_identity(descriptor) for descriptor, _ in files]
        self._next = 0
        self._held = self._closed = False
        self._bytes = 0
        self._seconds = 0.0

    def take(self) -> tuple[int, int]:
        if self._closed:
            raise RuntimeError("Stream: it is closed")
        if self._held or (not self._endless and self._next >= len(self._sections)):
            raise RuntimeError("the last section was not released, or there is no other")
        section, slot = self._next % len(self._sections), self._next % self._slots
        start = perf_counter()
        for file, offset, n_bytes, targets in self._sections[section]:
            memory, at = targets[slot]
            self._read(*self._files[file], offset, memory[at : at + n_bytes])
            self._bytes += n_bytes
        for file, *_ in self._sections[section]:
            descriptor, name = self._files[file]
            if _identity(descriptor) != self._opened[file]:
                raise OSError(errno.ESTALE, "the file was changed while it was read", name)
        self._seconds += perf_counter() - start
        self._held = True
        return section, slot

    def push(self, section: Sequence[Range]) -> None:
        self._sections.append(section)

    def release(self) -> None:
        if self._held:
            self._held = False
            if not self._endless:
                self._sections[self._next] = []
            self._next += 1

    def rewind(self) -> None:
        self._held = False
        self._next = 0

    def close(self) -> None:
        self._closed = True
        self._sections = []

    def stats(self) -> dict[str, Any]:
        return {
            "bytes_read": self._bytes,
            "bytes_taken": self._bytes,
            "disk_seconds": self._seconds,
            "waited_for_disk_seconds": self._seconds,
            "waited_for_compute_seconds": 0.0,
            "pack_seconds": 0.0,
            "io": "plain",
            "direct": False,
            "depth": 1,
            "buffer_bytes": 0,
        }

    def _read(self, descriptor: int, name: str, offset: int, memory: NDArray[np.uint8]) -> None:
        done, what = 0, f"{memory.nbytes} bytes at offset {offset}"
        while done < memory.nbytes:
            try:
                n_bytes = os.preadv(descriptor, [memory[done:].data], offset + done)
            except OSError as error:
                raise OSError(error.errno, f"{error.strerror}, reading {what}", name) from None
            if n_bytes == 0:
                end = os.fstat(descriptor).st_size
                text = f"the file ends at {end}, before the end of {what}: it is truncated"
                raise OSError(errno.EIO, text, name)
            done += n_bytes


def _identity(descriptor: int) -> tuple[int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns
