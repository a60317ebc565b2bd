"""The models that are on this machine: found, listed and removed by name."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from airllm.hub.choice import ModelFiles, choose, models_in
from airllm.hub.known import KNOWN_MODELS
from airllm.hub.names import HOST, HubName
from airllm.hub.places import HubError, models_dir

__all__ = ["LocalModel", "find_model", "find_reference", "local_models", "model_path", "remove"]


@dataclass(frozen=True)
class LocalModel:
    """name: as -m takes it. path: to open. files: all of its files. fetched: by `pull`, so that it
    can be fetched again."""

    name: str
    path: Path
    files: tuple[Path, ...]
    n_bytes: int
    modified: float  # seconds since the epoch
    fetched: bool


def find_model(name_or_path: str | os.PathLike[str]) -> Path | None:
    """The file or the folder of a model; None if there is none.

    A name is one of, in this order: a known model that was pulled; a path that exists; a model that
    was pulled from a repository, `hf.co/ORG/REPO[:QUANT]` or `ORG/REPO[:QUANT]`; a file or a folder
    in models_dir(), without ".gguf". A known model's file of the wrong size does not count: `pull`
    fetches it again. Only `pull` checks the hash.
    """
    name = os.fspath(name_or_path)
    if known := KNOWN_MODELS.get(name):
        path = models_dir() / known.file_name
        with contextlib.suppress(OSError):
            if path.stat().st_size == known.n_bytes:
                return path
        return None
    if not name:
        return None
    if Path(name).exists():
        return Path(name)
    if reference := HubName.parse(name):
        return find_reference(reference)
    if Path(name).name == name and not name.startswith("."):
        for path in (models_dir() / f"{name}.gguf", models_dir() / name / "config.json"):
            if path.is_file():
                return path.parent if path.name == "config.json" else path
    return None


def model_path(name_or_path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """What find_model finds, or the argument itself where that is a path at which nothing is.
    HubError for the name of a model that has not been pulled."""
    found = find_model(name_or_path)
    if found is not None:
        return found
    name = os.fspath(name_or_path)
    if name in KNOWN_MODELS or HubName.parse(name, with_host=True):
        raise HubError(
            f"{name} has not been fetched yet. Run: airllm pull {name}, or in Python: "
            f"airllm.hub.pull({name!r})"
        )
    return name_or_path


def find_reference(reference: HubName) -> Path | None:
    """The path of a repository's model that was pulled, or None. HubError if it is not clear which
    of several is meant."""
    folder = models_dir() / reference.folder
    models = _models_of(folder)
    if not models:
        return None
    if reference.quant is None:
        return folder / choose(models, None, str(reference)).main
    with contextlib.suppress(HubError):
        return folder / choose(models, reference.quant, str(reference)).main
    return None


def local_models() -> list[LocalModel]:
    """All models in models_dir(), by name."""
    return sorted(_local_models(), key=lambda model: model.name.lower())


def remove(name: str) -> LocalModel:
    """Deletes a model that was pulled. HubError if there is none of that name, or if it was not
    fetched by `pull`, and may be somebody's work."""
    path = find_model(name)
    models = {model.path: model for model in local_models()}
    if path is None or path not in models:
        there = ", ".join(model.name for model in models.values() if model.fetched)
        raise HubError(f"{name}: no model of that name was pulled; there are: {there or 'none'}")
    model = models[path]
    if not model.fetched:
        raise HubError(f"{path} was not fetched by airllm, which therefore does not delete it")
    for file in model.files:
        file.unlink(missing_ok=True)
    folder = model.path if model.path.is_dir() else model.path.parent
    root = models_dir()
    while folder != root and folder.is_relative_to(root):
        try:
            folder.rmdir()
        except OSError:  # other models are in it
            break
        folder = folder.parent
    reference = HubName.parse(model.name, with_host=True)
    if reference is not None:
        shutil.rmtree(root / f".{reference.folder.replace('/', '--')}", ignore_errors=True)
    return model


def _local_models() -> Iterator[LocalModel]:
    root = models_dir()
    known = {model.file_name: model.name for model in KNOWN_MODELS.values()}
    for name in known.values():
        path = find_model(name)
        if path is not None:
            yield _local(name, path, [path], fetched=True)
    for path in sorted(root.glob("*")):
        if path.name in known or path.name.startswith(".") or path.name == HOST:
            continue
        if path.is_dir() and (path / "config.json").is_file():
            yield _local(path.name, path, sorted(path.glob("*")), fetched=False)
        elif path.suffix == ".gguf" and path.is_file():
            yield _local(path.stem, path, [path], fetched=False)
    for folder in sorted((root / HOST).glob("*/*")):
        models = _models_of(folder)
        repo = folder.relative_to(root).as_posix()
        for model in models:
            files = [folder / file for file in model.files]
            name = repo if model.main == "" and len(models) == 1 else f"{repo}:{model.label}"
            yield _local(name, folder / model.main, files, fetched=True)


def _models_of(folder: Path) -> list[ModelFiles]:
    """The models in a repository's folder, without those that lack a file."""
    paths = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }
    while True:
        try:
            return models_in(paths)
        except HubError:  # a pull of a split model was interrupted while its files were moved
            complete = {path for path in paths if "-of-" not in path}
            if complete == paths:
                return []
            paths = complete


def _local(name: str, path: Path, files: list[Path], *, fetched: bool) -> LocalModel:
    found = [file.stat() for file in files if file.is_file()]
    return LocalModel(
        name=name,
        path=path,
        files=tuple(files),
        n_bytes=sum(stat.st_size for stat in found),
        modified=max((stat.st_mtime for stat in found), default=0.0),
        fetched=fetched,
    )
