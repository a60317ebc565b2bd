"""What the Hugging Face Hub says is in a repository.

Nothing that it says is trusted: an answer is bounded in bytes and in time, and a file counts only
if its name stays within the repository and its hash is given.
"""

import json
import logging
import os
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from airllm.hub.names import HubName
from airllm.hub.places import HubError
from airllm.util.printable import printable
from airllm.util.shown import shown
from airllm.util.version import __version__
from airllm.util.waiting import Waiting

__all__ = ["HubFile", "Listing", "ask", "endpoint", "opened", "refusal", "unreachable"]

log = logging.getLogger("airllm.hub")

MAX_BYTES = 32 << 20  # of an answer; 10,000 files take 3 MB
MAX_FILES = 100_000
MAX_SIZE = 1 << 50
TIMEOUT, MOST_SECONDS = 15.0, 60.0  # for a piece of an answer, and for the whole

_NAME = re.compile(r"[^\\:\x00-\x1f\x7f]{1,500}")
_SHA1, _SHA256 = re.compile(r"[0-9a-f]{40}"), re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class HubFile:
    """path: within the repository. Either sha256, of the content, or git_sha1, Git's hash of it."""

    path: str
    size: int
    sha256: str = ""
    git_sha1: str = ""


@dataclass(frozen=True)
class Listing:
    commit: str
    files: Mapping[str, HubFile]


def endpoint() -> str:
    """The hub's address: HF_ENDPOINT, or https://huggingface.co."""
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not address.startswith(("https://", "http://")):
        raise HubError(f"HF_ENDPOINT is {shown(address)}; expected an address with https://")
    return address.rstrip("/")


def ask(reference: HubName) -> Listing:
    """The files of the newest commit. HubError if there are none, or if the hub does not say."""
    from huggingface_hub.errors import HTTPError

    url = f"{endpoint()}/api/models/{reference.repo}?blobs=true"

    def tell(seconds: int) -> None:
        log.info("waiting for %s to answer", endpoint())

    try:
        with Waiting(tell, once=True), opened(url) as response:
            if response.status_code != 200:
                code = response.headers.get("X-Error-Code", "")
                raise refusal(reference, response.status_code, code)
            body = _bounded(response.iter_raw(), url)
    except (HTTPError, OSError) as error:
        raise unreachable(error) from error
    except ValueError as error:  # an address that is none
        raise HubError(f"{endpoint()}: {error}") from error
    return _read(body, url)


def opened(url: str, headers: Mapping[str, str] | None = None) -> AbstractContextManager[Any]:
    """The answer of the hub to a GET, as httpx has it, with the user's token, proxies and
    certificates. Its content is neither read yet nor compressed."""
    from huggingface_hub.utils import build_hf_headers, get_session

    common = build_hf_headers(library_name="airllm", library_version=__version__)
    return get_session().stream(
        "GET",
        url,
        headers={**common, "Accept-Encoding": "identity", **(headers or {})},
        timeout=TIMEOUT,
        follow_redirects=True,
    )


def refusal(reference: HubName, status: int, code: str = "") -> HubError:
    """What an answer of this HTTP status means. code: the hub's own word for it."""
    base = f"hf.co/{reference.repo}"
    if code == "GatedRepo" or status == 403:
        return HubError(
            f"{base} is gated: its authors want to be asked. Accept their terms on "
            f"{endpoint()}/{reference.repo} , and give a token of that account: `hf auth login`, "
            "or the variable HF_TOKEN"
        )
    if status in (401, 404):
        return HubError(
            f"{base} does not exist, or is private; a private repository needs a token: "
            "`hf auth login`, or the variable HF_TOKEN"
        )
    if status == 429:
        return HubError(f"{endpoint()} has had too many requests; try again later")
    return HubError(f"{endpoint()} answered with status {status} for {base}; try again later")


def unreachable(error: Exception) -> HubError:
    return HubError(
        f"{endpoint()} cannot be reached: {printable(error) or type(error).__name__}. HF_ENDPOINT "
        "may name a mirror; without a network, give --model the path of a file"
    )


def _bounded(pieces: Any, url: str) -> bytes:
    body, end = bytearray(), time.monotonic() + MOST_SECONDS
    for piece in pieces:
        body += piece
        if len(body) > MAX_BYTES:
            raise HubError(f"{url}: the answer has more than {MAX_BYTES:,} bytes")
        if time.monotonic() > end:
            raise HubError(f"{url}: the answer took more than {MOST_SECONDS:.0f} s")
    return bytes(body)


def _read(body: bytes, url: str) -> Listing:
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise HubError(f"{url}: the answer is no JSON; is this a hub of Hugging Face?") from None
    commit = found.get("sha") if isinstance(found, dict) else None
    entries = found.get("siblings") if isinstance(found, dict) else None
    if not isinstance(commit, str) or not _SHA1.fullmatch(commit) or not isinstance(entries, list):
        raise HubError(f"{url}: the answer does not say which files there are")
    if len(entries) > MAX_FILES:
        raise HubError(f"{url}: the answer has {len(entries):,} files")
    files = [file for file in map(_file, entries) if file is not None]
    return Listing(commit, {file.path: file for file in files})


def _file(entry: object) -> HubFile | None:
    """None for a file that cannot be fetched: a name that leads elsewhere, no size, or no hash."""
    if not isinstance(entry, dict):
        return None
    path, size, lfs = entry.get("rfilename"), entry.get("size"), entry.get("lfs")
    if not isinstance(path, str) or not _NAME.fullmatch(path) or not path.isprintable():
        return None
    if any(not part or part.startswith(".") for part in path.split("/")):
        return None
    if type(size) is not int or not 0 <= size < MAX_SIZE:
        return None
    sha256 = lfs.get("sha256") if isinstance(lfs, dict) else None
    if isinstance(sha256, str) and _SHA256.fullmatch(sha256):
        return HubFile(path, size, sha256=sha256)
    blob = entry.get("blobId")
    if lfs is None and isinstance(blob, str) and _SHA1.fullmatch(blob):
        return HubFile(path, size, git_sha1=blob)
    return None
