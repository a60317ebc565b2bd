"""Fetches models from the Hugging Face Hub, or another hub that HF_ENDPOINT names: chooses the
files, and puts them in their places when all are there."""

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from zlib import crc32

from airllm.hub import listing
from airllm.hub.choice import ModelFiles, choose, models_in
from airllm.hub.download import OnBytes, fetch, has_content
from airllm.hub.listing import HubFile, Listing
from airllm.hub.local import find_reference
from airllm.hub.names import HubName
from airllm.hub.places import HubError, check_space, explain, holding, models_dir
from airllm.util.durable import sync_directory
from airllm.util.progress import Progress
from airllm.util.waiting import Waiting

__all__ = ["offer_of", "pull_reference"]

log = logging.getLogger("airllm.hub")


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
    try:
        missing = _missing(files, target, progress)
        if not missing:  # before anything is written: the folder may be read-only
            return target / wanted.main
        work.mkdir(parents=True, exist_ok=True)
        with holding(work.with_name(f"{work.name}.lock")):
            missing = _missing(missing, target, progress)  # another process may have been faster
            if missing:
                log.info("fetching %s (%s, %.0f MB)", reference, wanted.label, _size(missing) / 1e6)
                try:
                    _fetch(reference, found.commit, missing, target, work, progress)
                except BaseException:
                    if there := _size_of_partials(work):
                        text = "%.0f MB are here already; the same command goes on from there"
                        log.info(text, there / 1e6)
                    raise
            shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        raise HubError(explain(error, str(reference), _size(files))) from error
    return target / wanted.main


def offer_of(reference: HubName) -> tuple[str, int]:
    """See airllm.hub.offer."""
    wanted, files = _chosen(reference, listing.ask(reference))
    return wanted.label, _size(files)


def _chosen(reference: HubName, found: Listing) -> tuple[ModelFiles, list[HubFile]]:
    wanted = choose(models_in(found.files), reference.quant, f"hf.co/{reference.repo}")
    return wanted, [found.files[path] for path in wanted.files]


def _fetch(
    reference: HubName,
    commit: str,
    missing: list[HubFile],
    target: Path,
    work: Path,
    progress: bool,
) -> None:
    """Fetches the missing files into `work`, then moves them to their places, the last one last."""
    total = _size(missing)
    check_space(max(0, total - _size_of_partials(work)))
    before = 0
    for file in missing:
        with Progress(f"fetching {file.path}", "bytes", shown=progress) as shown:

            def show(n: int, note: str, before: int = before, shown: Progress = shown) -> None:
                shown.update(before + n, total, note)

            _fetch_file(reference, commit, file, _partial(work, file), show)
        before += file.size
    for file in missing:
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        _partial(work, file).replace(place)
        sync_directory(place.parent)


def _fetch_file(
    reference: HubName, commit: str, file: HubFile, place: Path, show: Callable[[int, str], None]
) -> None:
    """show: called with the bytes so far, and a note if none have come for some time."""
    so_far = 0

    def on_bytes(n: int) -> None:
        nonlocal so_far
        so_far = n
        waiting.heard()
        show(n, "")

    with Waiting(lambda seconds: show(so_far, f"nothing has come for {seconds} s")) as waiting:
        _copy_from_cache(reference, commit, file, place, on_bytes)
        fetch(reference, commit, file, place, on_bytes)


def _copy_from_cache(
    reference: HubName, commit: str, file: HubFile, place: Path, on_bytes: OnBytes
) -> None:
    """Copies the file from the cache that huggingface_hub keeps for other programs, if it is there
    and intact. `fetch` then takes it for what it has fetched itself."""
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(reference.repo, file.path, revision=commit)
    if isinstance(cached, str) and has_content(Path(cached), file, on_bytes):
        log.info("%s is in the cache of huggingface_hub", file.path)
        shutil.copyfile(cached, place)


def _partial(work: Path, file: HubFile) -> Path:
    """Named by the hash, so that a file that has changed since is not gone on with, and by the
    path, as two files may be equal."""
    return work / f"{file.sha256 or file.git_sha1}-{crc32(file.path.encode()):08x}"


def _size_of_partials(work: Path) -> int:
    return sum(path.stat().st_size for path in work.rglob("*") if path.is_file())


def _size(files: list[HubFile]) -> int:
    return sum(file.size for file in files)


def _missing(files: list[HubFile], folder: Path, progress: bool) -> list[HubFile]:
    """The files that are not in the folder with the content that the hub's hash says."""
    found = []
    for file in files:
        with Progress(f"checking {file.path}", "bytes", shown=progress) as shown:
            if not has_content(folder / file.path, file, partial(shown.update, total=file.size)):
                found.append(file)
    return found
