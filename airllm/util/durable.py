"""Makes files survive a power cut, and names the file in errors."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["naming", "sync_directory"]


def sync_directory(folder: Path) -> None:
    """Make a rename or a new file in a folder permanent, if the system can sync folders."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Adds `path` to an OSError inside the `with` that names no file. Errors of reads, writes and
    fsync name none, and "No space left on device" alone does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
