"""Writes what is new in a prefix tree to its folder while a server runs: a process that is killed
then loses little.

The engine's thread calls `go_on` between its steps, and takes no longer for that than it takes to
hold a snapshot's pages. Another thread then reads the snapshot's rows, which nobody writes to while
it holds their pages, and writes the file. It works on one snapshot at a time, the most recently
used first.
"""

import contextlib
import logging
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from time import monotonic

from airllm.state.prefix_files import PrefixFolder
from airllm.state.prefix_tree import Keys, PrefixTree
from airllm.state.sequence import SequenceState, Snapshot

__all__ = ["PrefixWriter"]

_log = logging.getLogger("airllm")

# Where there is always something to do, files are written after this many times the seconds that
# would have to pass without it, and take no more than one of BUSY_SHARE seconds.
_BUSY_TIMES, _BUSY_SHARE = 10, 10
# In this time, no more bytes are written than the tree may have: a long conversation is written
# anew when it has grown, and a solid-state disk wears out.
_TREE_SECONDS = 3600


class PrefixWriter:
    """For the engine's thread, apart from the thread that it starts.

    written: the snapshots that have a file. seconds: without a step, after which a tree that has
    changed is written. wake: called, in the other thread, when `go_on` should be called soon.
    """

    def __init__(
        self,
        tree: PrefixTree,
        folder: PrefixFolder,
        make_state: Callable[[], SequenceState],
        *,
        seconds: float,
        wake: Callable[[], None],
        written: Mapping[Snapshot, Path],
    ) -> None:
        self._tree, self._folder, self._make_state = tree, folder, make_state
        self._seconds, self._wake = seconds, wake
        self._state: SequenceState | None = None  # holds the snapshot that is being written
        self._paths = weakref.WeakKeyDictionary(written)
        self._n_written = tree.n_added  # the tree's n_added when all of it had been written
        self._idle_since: float | None = None
        self._rests_until = monotonic() + _BUSY_TIMES * seconds  # while there are steps
        self._most_bytes = float(tree.most_bytes)
        self._bytes, self._counted = self._most_bytes, monotonic()  # that may be written now
        self._n_bytes = 0  # written since the folder was tidied
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread: threading.Thread | None = None
        self._job_ended = threading.Event()
        self._job_ended.set()
        self._job_seconds = 0.0
        self._failed = False

    # ---- the engine's thread -------------------------------------------------------------------

    def go_on(self, *, idle: bool) -> float | None:
        """Begin what is due. idle: whether there are no steps. Returns the seconds after which to
        call again if there is no step before; None if that is not needed."""
        now = monotonic()
        self._idle_since = (self._idle_since or now) if idle else None
        if not self._job_ended.is_set():
            return None  # it wakes the engine's thread
        if self._state is not None and self._state.length:
            self._state.clear()
            self._rests_until = now + self._job_seconds * _BUSY_SHARE
        if self._failed:
            self._failed, self._n_written = False, self._tree.n_added  # until there is more
            self._paths.clear()
        if self._n_written == self._tree.n_added:
            self._rests_until = max(self._rests_until, now + _BUSY_TIMES * self._seconds)
            return None
        due = self._rests_until if self._idle_since is None else self._idle_since + self._seconds
        if now < due:
            return due - now
        return self._begin(now)

    def close(self) -> None:
        """Wait for the file that is being written."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _begin(self, now: float) -> float | None:
        """The next file. Returns the seconds until it may be written."""
        added = now - self._counted
        self._bytes = min(self._bytes + added * self._most_bytes / _TREE_SECONDS, self._most_bytes)
        self._counted = now
        in_order = list(self._tree.snapshots())
        if self._n_bytes > self._most_bytes:  # however many are still to be written
            self._tidy(in_order)
            return None
        for keys_of_it, snapshot in reversed(in_order):
            if snapshot in self._paths:
                continue
            missing = min(snapshot.nbytes, self._most_bytes) - self._bytes
            if missing > 0:
                return missing * _TREE_SECONDS / self._most_bytes
            self._bytes -= snapshot.nbytes
            self._n_bytes += snapshot.nbytes
            try:
                state = self._state = self._state or self._make_state()
            except MemoryError as error:
                self._fail(error)
                return None
            state.restore(snapshot)
            keys = keys_of_it()
            path = self._paths[snapshot] = self._folder.path(keys)
            self._start(partial(self._folder.write, path, state, keys))
            return None
        self._n_written = self._tree.n_added
        self._tidy(in_order)
        return None

    def _tidy(self, in_order: list[tuple[Callable[[], Keys], Snapshot]]) -> None:
        """Remove the files of snapshots that the tree no longer has."""
        self._n_bytes = 0
        paths = [self._paths[snapshot] for _, snapshot in in_order if snapshot in self._paths]
        self._start(partial(self._folder.keep_only, paths))

    def _start(self, job: Callable[[], None]) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="prefix-writer", daemon=True)
            self._thread.start()
        self._job_ended.clear()
        self._jobs.put(job)

    # ---- the other thread ----------------------------------------------------------------------

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)  # of a thread, on Linux
        while (job := self._jobs.get()) is not None:
            start = monotonic()
            try:
                job()
            except Exception as error:
                self._fail(error)
            self._job_seconds = monotonic() - start
            self._job_ended.set()
            self._wake()

    def _fail(self, error: Exception) -> None:
        _log.warning("what was evaluated could not be kept for the next start: %s", error)
        self._failed = True
