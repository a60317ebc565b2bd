"""What makes a file last through a power cut, and says its name where that fails."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

__all__ = ["naming", "sync_directory"]


def sync_directory(folder: Path) -> None:
    """Make a rename in it, or a new file, last, where directories can be synced."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """An OSError inside names `path`. Those of reads, writes and fsync name no file by themselves,
    and "No space left on device" alone does not say where."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from None
