"""Keeps a prefix tree in a folder, over restarts: a session file for each snapshot.

A file is called after the model, its kv_type and the snapshot's keys, so that what is there already
is not written again. Its only message holds the kinds of the tokens. A file that is damaged is not
read. Nobody but the user may write to the folder: who can, could put words into answers.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from airllm.state import session
from airllm.state.layout import StateLayout
from airllm.state.prefix_tree import Keys, PrefixTree, keys_of, kinds_of
from airllm.state.sequence import SequenceState, Snapshot
from airllm.util.private import open_own_folder

__all__ = ["PrefixFolder"]

_log = logging.getLogger("airllm")
_ROLE = "kinds"
# After this time, a file that was not completed belongs to no process that still writes it.
_PARTIAL_SECONDS = 3600
_KINDS = re.compile(r"\d{1,9}x\d{1,9}(?:,\d{1,9}x\d{1,9})*+")


class PrefixFolder:
    """The files of one model. folder: is made when the first of them is written. fingerprint: of
    the model's file."""

    def __init__(self, folder: Path, layout: StateLayout, fingerprint: bytes) -> None:
        self._folder, self._fingerprint = folder, fingerprint
        self._beginning = f"{fingerprint.hex()[:16]}-{layout.kv_type}-"

    def path(self, keys: Keys) -> Path:
        """The file of a snapshot with these keys."""
        digest = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        return self._folder / f"{self._beginning}{digest}.session"

    def write(self, path: Path, state: SequenceState, keys: Keys) -> None:
        """Write the file of a snapshot, which `state` holds, unless it is there. OSError."""
        os.close(open_own_folder(self._folder, create=True))
        if not path.exists():
            said = {"role": _ROLE, "content": _as_text(keys)}
            session.save(path, state, self._fingerprint, [said])

    def keep_only(self, paths: Sequence[Path]) -> None:
        """Remove the files of other snapshots. paths: the least recently used first, which the
        files then say, too. OSError."""
        for number, path in enumerate(paths):
            if path.exists():
                os.utime(path, (number, number))
        for path in {*self._files()} - {*paths}:
            path.unlink(missing_ok=True)
        for path in self._folder.glob(f".{self._beginning}*"):  # of a process that was killed
            if path.stat().st_mtime < time.time() - _PARTIAL_SECONDS:
                path.unlink(missing_ok=True)

    def save(self, tree: PrefixTree, state: SequenceState) -> None:
        """Write the snapshots of a tree in place of those that the folder has. state: a sequence of
        the model, whose contents are lost. OSError; the files before it are there."""
        paths = []
        for keys_of_it, snapshot in tree.snapshots():
            keys = keys_of_it()
            state.restore(snapshot)
            paths.append(self.path(keys))
            self.write(paths[-1], state, keys)
        state.clear()
        self.keep_only(paths)

    def load(self, tree: PrefixTree, state: SequenceState, vocab_size: int) -> dict[Snapshot, Path]:
        """Fill a tree with what `save` wrote, the most recently used as far as there is room;
        returns the snapshots with their files. state: see `save`. PermissionError if others may
        write to the folder; other OSErrors if it cannot be read."""
        if not self._folder.exists():
            return {}
        os.close(open_own_folder(self._folder, create=False))
        chosen, n_bytes = [], 0
        for path in sorted(self._files(), key=_last_use, reverse=True):
            n_bytes += path.stat().st_size
            if n_bytes > tree.most_bytes:
                break
            chosen.append(path)
        found = {}
        for path in reversed(chosen):
            try:
                said = session.load(path, state, self._fingerprint, vocab_size)
                keys = _keys(state, said)
            except (OSError, ValueError) as error:
                _log.warning("not reused: %s", error)
                continue
            snapshot = state.snapshot()
            found[snapshot] = path
            tree.add(keys, snapshot)
        state.clear()
        return found

    def _files(self) -> Iterator[Path]:
        yield from self._folder.glob(f"{self._beginning}*.session")


def _last_use(path: Path) -> float:
    return path.stat().st_mtime


def _as_text(keys: Keys) -> str:
    """[7, 7, 2] -> "7x2,2x1"."""
    runs = ((kind, sum(1 for _ in same)) for kind, same in groupby(kinds_of(keys).tolist()))
    return ",".join(f"{kind}x{count}" for kind, count in runs)


def _keys(state: SequenceState, said: list[session.Message]) -> Keys:
    """ValueError if the kinds are not those of the state's tokens."""
    text = said[0]["content"] if [each.get("role") for each in said] == [_ROLE] else ""
    if not _KINDS.fullmatch(text):
        raise ValueError("a session of another purpose")
    runs = [tuple(map(int, run.split("x"))) for run in text.split(",")]
    if sum(count for _, count in runs) != state.length:
        raise ValueError("a session whose kinds are not those of its tokens")
    kinds = np.concatenate([np.full(count, kind, np.int64) for kind, count in runs])
    return keys_of(state.tokens, kinds)
