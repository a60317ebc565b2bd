"""The messages of earlier sittings, for the arrow keys.

The file has a JSON string in each line, so that a message of several lines stays one. Only its user
can read it. AIRLLM_HISTORY names another file; empty, there is none.
"""

import contextlib
import json
import os
from collections.abc import Callable
from pathlib import Path

from airllm.util.private import open_own_file, open_own_folder

__all__ = ["History"]

MOST_MESSAGES = 1000
MOST_BYTES = 1 << 20  # of the file; a longer message is not kept
_TRIMMED_BYTES = MOST_BYTES // 2


def history_path() -> Path | None:
    """The file; None if AIRLLM_HISTORY is set and empty."""
    named = os.environ.get("AIRLLM_HISTORY")
    if named is not None:
        return Path(named).expanduser() if named else None
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local/state") / "airllm" / "chat_history"


class History:
    """messages: those of earlier sittings, the oldest first. added: told each new message.

    A file that cannot be read or written, or that belongs to somebody else, is as good as none: the
    conversation goes on without a history.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.added: Callable[[str], object] | None = None
        self.messages: list[str] = []
        with contextlib.suppress(OSError):
            self.messages = self._read()

    def append(self, message: str) -> None:
        """Add a message, at once: the program may be ended at any time."""
        if self.added is not None:
            self.added(message)
        line = json.dumps(message).encode() + b"\n"
        if self._path is None or len(line) > _TRIMMED_BYTES:
            return
        with contextlib.suppress(OSError), os.fdopen(self._open(), "r+b") as file:
            torn = (
                file.seek(0, os.SEEK_END) and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n"
            )
            file.write(b"\n" + line if torn else line)

    def _open(self) -> int:
        assert self._path is not None
        folder = open_own_folder(self._path.parent, create=True)
        try:
            return open_own_file(folder, self._path.name, self._path)
        finally:
            os.close(folder)

    def _read(self) -> list[str]:
        """The messages in the file, which is cut to its newer half if it has become too large."""
        if self._path is None or not self._path.exists():
            return []
        with os.fdopen(self._open(), "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MOST_BYTES))
            lines = file.read(MOST_BYTES).splitlines(keepends=True)
            if size > MOST_BYTES:
                kept = b"".join(lines[1:])[-_TRIMMED_BYTES:].partition(b"\n")[2]
                file.seek(0)
                file.write(kept)
                file.truncate()
        found = []
        for line in lines[-MOST_MESSAGES:]:
            with contextlib.suppress(ValueError, RecursionError):
                message = json.loads(line)
                # NUL ends a text of readline's.
                if isinstance(message, str) and "\0" not in message:
                    found.append(message)
        return found
