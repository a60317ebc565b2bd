"""Fetches a file of a repository of the Hugging Face Hub, from where the last attempt ended.

huggingface_hub gives the connection, with the user's token, proxies and certificates. It has no
download that outlives its process, so this module has one: what has come stays in a partial file,
which the next attempt goes on with. No more is written than the hub has listed, and a file is
complete only with the hash that it has listed.
"""

import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from airllm.hub import listing
from airllm.hub.listing import HubFile
from airllm.hub.names import HubName
from airllm.hub.places import HubError

__all__ = ["OnBytes", "fetch", "has_content"]

log = logging.getLogger("airllm.hub")

COPY_BYTES = 2**20
MOST_BYTES = 50 * 10**9  # the hub gives larger files only to programs of its own
ATTEMPTS = 5  # without a new byte
PAUSE_SECONDS = 1.0
_RANGE = re.compile(r"bytes (\d{1,18})-.*")

OnBytes = Callable[[int], None]  # called with the number of bytes so far


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...
    def hexdigest(self) -> str: ...


def fetch(name: HubName, commit: str, file: HubFile, partial: Path, on_bytes: OnBytes) -> None:
    """Fetch the file to `partial`, after what that has already. HubError if it cannot be fetched or
    is not what was listed, OSError if it cannot be written."""
    if file.size > MOST_BYTES:
        raise HubError(
            f"{name}: {file.path} has {file.size / 1e9:.0f} GB, and the hub gives files of more "
            f"than {MOST_BYTES / 1e9:.0f} GB only to its own program: `hf download {name.repo} "
            f"{file.path}`; then give --model the path"
        )
    with partial.open("a+b") as target:
        copy = _Copy(target, file, on_bytes)
        failures = 0
        while copy.size < file.size:
            before = copy.size
            try:
                _receive(name, commit, file, copy)
                fault: Exception | None = None
            except _transport_errors() as error:
                fault = error
            failures = 0 if copy.size > before else failures + 1
            if copy.size < file.size:
                if failures == ATTEMPTS:
                    raise listing.unreachable(fault or EOFError("the answers are empty"))
                log.debug("%s: again, after %d bytes: %s", file.path, copy.size, fault)
                time.sleep(PAUSE_SECONDS)
        target.flush()
        os.fsync(target.fileno())
        if copy.hexdigest() == _expected(file):
            return
    partial.unlink()
    raise HubError(
        f"{name}: {file.path} is not what {listing.endpoint()} has promised: its hash is wrong. It "
        "was deleted; pull again, or from another mirror"
    )


def has_content(path: Path, file: HubFile, on_bytes: OnBytes) -> bool:
    """Whether `path` has the content that the hub's hash says."""
    try:
        with path.open("rb") as content:
            if os.fstat(content.fileno()).st_size != file.size:
                return False
            digest = _digest_of(file)
            for done in _hashed(content, digest):
                on_bytes(done)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return digest.hexdigest() == _expected(file)


class _Copy:
    """A partial file, its size and the digest of its content."""

    def __init__(self, target: BinaryIO, file: HubFile, on_bytes: OnBytes) -> None:
        self._target, self._file, self._on_bytes = target, file, on_bytes
        self._restarts = 0
        target.seek(0)
        self._digest, self.size = _digest_of(file), 0
        for size in _hashed(target, self._digest):
            self.size = size
            on_bytes(size)
        is_wrong = self.size == file.size and self.hexdigest() != _expected(file)
        if self.size > file.size or is_wrong:
            self.restart()

    def wrong(self, fault: str) -> HubError:
        return HubError(f"{self._file.path} is not what {listing.endpoint()} has promised: {fault}")

    def restart(self) -> None:
        self._restarts += 1
        if self._restarts > ATTEMPTS:
            raise self.wrong("the hub never goes on with what it has begun")
        self._target.truncate(0)
        self._digest, self.size = _digest_of(self._file), 0

    def append(self, block: bytes) -> None:
        if self.size + len(block) > self._file.size:
            raise self.wrong(f"it has more than {self._file.size:,} bytes")
        self._target.write(block)
        self._digest.update(block)
        self.size += len(block)
        self._on_bytes(self.size)

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


def _receive(name: HubName, commit: str, file: HubFile, copy: _Copy) -> None:
    """One answer of the hub, as far as it comes."""
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(name.repo, file.path, revision=commit, endpoint=listing.endpoint())
    wanted = {"Range": f"bytes={copy.size}-"} if copy.size else {}
    with listing.opened(url, wanted) as response:
        status = response.status_code
        if status not in (200, 206, 416):
            raise listing.refusal(name, status, response.headers.get("X-Error-Code", ""))
        begins = _RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if status == 416 or (copy.size and (begins is None or int(begins[1]) != copy.size)):
            copy.restart()  # the hub sends the whole file, or nothing of it
            if status != 200:
                return
        for block in response.iter_raw():  # as it comes: a block that is cut off would be lost
            copy.append(block)
        if copy.size < file.size and "Content-Length" in response.headers:  # it is not cut off
            raise copy.wrong(f"it ends after {copy.size:,} of {file.size:,} bytes")


def _transport_errors() -> tuple[type[Exception], ...]:
    from huggingface_hub.errors import HTTPError

    return (HTTPError, ConnectionError, TimeoutError)


def _digest_of(file: HubFile) -> _Digest:
    if file.sha256:
        return hashlib.sha256()
    # As Git does.
    return hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)


def _expected(file: HubFile) -> str:
    return file.sha256 or file.git_sha1


def _hashed(content: BinaryIO, digest: _Digest) -> Iterator[int]:
    """Hashes the rest of a file; yields the number of bytes so far."""
    done = 0
    while block := content.read(COPY_BYTES):
        digest.update(block)
        done += len(block)
        yield done
