"""Fetches models from the Hugging Face Hub, or another hub that HF_ENDPOINT names.

huggingface_hub fetches the files: with the user's token, proxies and certificates, from its own
cache if they are there, and from where an interrupted download ended. This module chooses the
files, bounds their sizes, and compares their hashes before they appear under their names.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from airllm import __version__
from airllm.hub import listing
from airllm.hub.choice import ModelFiles, choose, models_in
from airllm.hub.listing import HubFile, Listing
from airllm.hub.local import find_reference
from airllm.hub.names import HubName
from airllm.hub.places import HubError, check_space, explain, holding, models_dir
from airllm.util.durable import sync_directory
from airllm.util.printable import printable
from airllm.util.progress import Progress

__all__ = ["offer_of", "pull_reference"]

log = logging.getLogger("airllm.hub")

COPY_BYTES = 2**20


def pull_reference(reference: HubName, *, progress: bool = True) -> Path:
    """Fetch a model and return its path: of the (first) GGUF file, or of the folder.

    Files that are there already and have the right hash are not fetched again. HubError if the
    model cannot be fetched, or the hub sends something else than it has promised.
    """
    try:
        found = listing.ask(reference)
    except HubError as error:
        local = find_reference(reference)
        if local is None or not isinstance(error.__cause__, Exception):
            raise
        log.warning("%s. What was fetched before is used", error)
        return local
    wanted, files = _chosen(reference, found)
    target = models_dir() / reference.folder
    work = models_dir() / f".{reference.folder.replace('/', '--')}"
    needed = sum(file.size for file in files)
    try:
        if all(_is_intact(target / file.path, file) for file in files):
            return target / wanted.main
        work.mkdir(parents=True, exist_ok=True)
        with holding(work.with_name(f"{work.name}.lock")):
            _fetch(reference, found, wanted, files, target, work, progress)
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise HubError(explain(error, str(reference), needed)) from error
    return target / wanted.main


def offer_of(reference: HubName) -> tuple[str, int]:
    """See airllm.hub.offer."""
    wanted, files = _chosen(reference, listing.ask(reference))
    return wanted.label, sum(file.size for file in files)


def _chosen(reference: HubName, found: Listing) -> tuple[ModelFiles, list[HubFile]]:
    wanted = choose(models_in(found.files), reference.quant, f"hf.co/{reference.repo}")
    return wanted, [found.files[path] for path in wanted.files]


def _fetch(
    reference: HubName,
    found: Listing,
    wanted: ModelFiles,
    files: list[HubFile],
    target: Path,
    work: Path,
    progress: bool,
) -> None:
    """Fetches what is missing into `work`, then moves it to its place."""
    missing = [file for file in files if not _is_intact(target / file.path, file)]
    total = sum(file.size for file in missing)
    there = sum(path.stat().st_size for path in work.rglob("*") if path.is_file())
    check_space(max(0, total - there))
    log.info("fetching %s (%s, %.0f MB)", reference, wanted.label, total / 1e6)
    before = 0
    for file in missing:
        with Progress(f"fetching {file.path}", "bytes", shown=progress) as shown:
            done = before

            def update(n: int, done: int = done, shown: Progress = shown) -> None:
                shown.update(done + n, total)

            _download(reference, found.commit, file, work, update)
        with Progress(f"checking {file.path}", "bytes", shown=progress) as shown:
            if not _is_intact(work / file.path, file, shown):
                (work / file.path).unlink(missing_ok=True)
                raise HubError(
                    f"{reference}: {file.path} is not what {listing.endpoint()} has promised: its "
                    "size or its hash is wrong. It was deleted; pull again, or from another mirror"
                )
        before += file.size
    for file in missing:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        (work / file.path).replace(place)
        sync_directory(place.parent)


def _download(
    reference: HubName, commit: str, file: HubFile, work: Path, on_bytes: Callable[[int], None]
) -> None:
    """Has huggingface_hub put the file into `work`. HubError, OSError."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, HTTPError

    try:
        with _quiet():
            hf_hub_download(
                reference.repo,
                file.path,
                revision=commit,
                local_dir=work,
                endpoint=listing.endpoint(),
                library_name="airllm",
                library_version=__version__,
                etag_timeout=listing.TIMEOUT,
                tqdm_class=_bounded_bar(file, on_bytes),
            )
    except HfHubHTTPError as error:
        code = error.response.headers.get("X-Error-Code", "")
        raise listing.refusal(reference, error.response.status_code, code) from error
    except HTTPError as error:
        raise listing.unreachable(error) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.EPERM):
            raise
        raise HubError(f"{reference}: {file.path} was not fetched: {printable(error)}") from error


def _bounded_bar(file: HubFile, on_bytes: Callable[[int], None]) -> Any:
    """A class that huggingface_hub takes for tqdm. It ends a download that has more bytes than the
    file, which the hub could go on to send until the disk is full."""
    from tqdm import tqdm

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            super().__init__(*args, **{**kwargs, "disable": True})
            self.n = self.so_far = kwargs.get("initial") or 0

        def update(self, n: float | None = 1) -> bool | None:
            self.so_far += int(n or 0)
            if self.so_far > file.size:
                raise HubError(
                    f"{file.path}: {listing.endpoint()} sends more than the {file.size:,} bytes "
                    "that it has promised"
                )
            on_bytes(self.so_far)
            return None

    return Bar


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """huggingface_hub writes to stderr what is said here as errors and as progress."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _is_intact(path: Path, file: HubFile, shown: Progress | None = None) -> bool:
    """Whether `path` has the content that the hub's hash says."""
    if file.sha256:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)  # as Git does
    try:
        with path.open("rb") as content:
            if os.fstat(content.fileno()).st_size != file.size:
                return False
            done = 0
            while block := content.read(COPY_BYTES):
                digest.update(block)
                done += len(block)
                if shown is not None:
                    shown.update(done, file.size)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return digest.hexdigest() == (file.sha256 or file.git_sha1)
