"""Where models are on this machine, and what it takes to put a model there.

Under `models_dir()`:

    SmolLM2-135M-Instruct.Q4_1.gguf    a known model, or a file that the user has put there
    hf.co/ORG/REPO/                    what was pulled from a repository: GGUF files, or a folder
                                       with config.json and safetensors
    .NAME.lock                         held by the one process that pulls NAME
    .NAME/                             work in progress; removed when done
"""

import contextlib
import errno
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from airllm.util.errors import AirllmError

__all__ = ["HubError", "check_space", "explain", "holding", "models_dir"]

log = logging.getLogger("airllm.hub")


class HubError(AirllmError):
    """A model cannot be fetched; the message says why and what to do instead."""


def models_dir() -> Path:
    """The folder of the models: AIRLLM_HOME, else XDG_CACHE_HOME/airllm, else ~/.cache/airllm."""
    if home := os.environ.get("AIRLLM_HOME"):
        return Path(home).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "airllm"
    return Path.home() / ".cache" / "airllm"


def check_space(n_bytes: int) -> None:
    """OSError unless the disk of the models has room for n_bytes more."""
    if shutil.disk_usage(models_dir()).free < n_bytes:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def explain(error: OSError, name: str, needed: int) -> str:
    """Why `name` could not be written. needed: the most bytes that it takes while it is fetched."""
    where = error.filename or models_dir()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        free = shutil.disk_usage(models_dir()).free / 1e6
        return (
            f"{models_dir()}: the disk is full: {name} needs up to {needed / 1e6:.0f} MB while it"
            f" is fetched, {free:.0f} MB are free. Free some, or set AIRLLM_HOME to a folder on"
            " another disk."
        )
    if isinstance(error, FileNotFoundError):
        return f"{where}: no such file"
    return f"{where}: {error.strerror or error}. AIRLLM_HOME may name another folder for models."


@contextlib.contextmanager
def holding(path: Path) -> Iterator[None]:
    """Wait for, then hold, a lock that the system drops when the process ends, however it ends."""
    try:
        import fcntl
    except ImportError:  # Windows: two pulls at a time are not kept apart
        yield
        return
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another pull of the same model")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
