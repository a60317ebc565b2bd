"""Keeps a prefix tree in a folder, over restarts: a session file for each snapshot.

A file is called after the model, its kv_type and the snapshot's keys, so that what is there already
is not written again. Its only message holds the kinds of the tokens. A file that is damaged is not
read. Nobody but the user may write to the folder: who can, could put words into answers.
"""

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import numpy as np

from airllm.state import session
from airllm.state.prefix_tree import Keys, PrefixTree, keys_of, kinds_of
from airllm.state.sequence import SequenceState
from airllm.util.private import open_own_folder

__all__ = ["load_tree", "save_tree"]

_log = logging.getLogger("airllm")
_ROLE = "kinds"
_KINDS = re.compile(r"\d{1,9}x\d{1,9}(?:,\d{1,9}x\d{1,9})*+")


def save_tree(tree: PrefixTree, folder: Path, state: SequenceState, fingerprint: bytes) -> None:
    """Write the snapshots of a tree, in place of those that the folder has of this model. state: a
    sequence of the model, whose contents are lost. fingerprint: of the model's file.

    OSError if the folder cannot be made or a file cannot be written; those before it are there.
    """
    os.close(open_own_folder(folder, create=True))
    before = set(_files(folder, state, fingerprint))
    for number, (keys, snapshot) in enumerate(tree.snapshots()):
        digest = hashlib.sha256(keys.tobytes()).hexdigest()[:32]
        path = folder / f"{_beginning(state, fingerprint)}{digest}.session"
        if path not in before:
            state.restore(snapshot)
            said = {"role": _ROLE, "content": _as_text(keys)}
            session.save(path, state, fingerprint, [said])
        before.discard(path)
        os.utime(path, (number, number))  # the order of their use
    state.clear()
    for path in before:
        path.unlink(missing_ok=True)


def load_tree(
    tree: PrefixTree,
    folder: Path,
    state: SequenceState,
    fingerprint: bytes,
    vocab_size: int,
) -> None:
    """Fill a tree with what save_tree wrote, the most recently used as far as there is room. state,
    fingerprint: see save_tree. PermissionError if others may write to the folder; other OSErrors if
    it cannot be read."""
    if not folder.exists():
        return
    os.close(open_own_folder(folder, create=False))
    chosen, n_bytes = [], 0
    for path in sorted(_files(folder, state, fingerprint), key=_last_use, reverse=True):
        n_bytes += path.stat().st_size
        if n_bytes > tree.most_bytes:
            break
        chosen.append(path)
    for path in reversed(chosen):
        try:
            said = session.load(path, state, fingerprint, vocab_size)
            keys = _keys(state, said)
        except (OSError, ValueError) as error:
            _log.warning("not reused: %s", error)
            continue
        tree.add(keys, state.snapshot())
    state.clear()


def _beginning(state: SequenceState, fingerprint: bytes) -> str:
    """Of the names of a model's files."""
    return f"{fingerprint.hex()[:16]}-{state.layout.kv_type}-"


def _files(folder: Path, state: SequenceState, fingerprint: bytes) -> Iterator[Path]:
    yield from folder.glob(f"{_beginning(state, fingerprint)}*.session")


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
