"""The models in a folder that its owner has filled by hand."""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from airllm.hub.choice import PART
from airllm.hub.local import LocalModel

__all__ = ["model_at", "models_in_directory", "told_apart"]

MOST_FILES = 100_000  # that are looked at; a tenth of a second for each 10,000
_ENDINGS = (".gguf", ".safetensors", ".json")
# GGUF files that are no language models: vision towers, importance matrices, vocabularies.
_NO_MODEL = re.compile(r"mmproj|imatrix|ggml-vocab", re.IGNORECASE)


@dataclass(frozen=True)
class _Found:
    """name: without ".gguf". folder: the subfolder in which the model is, or ""."""

    name: str
    folder: str
    path: Path
    files: Sequence[Path]


def models_in_directory(directory: Path) -> list[LocalModel]:
    """The GGUF files and Hugging Face folders in a folder and in its subfolders, by name.

    A split file is one model, if all of its files are there. Names are those of files without
    ".gguf", and of folders; equal names in different subfolders are told apart as FOLDER/NAME.
    Links are followed. Hidden files are left out. OSError if the folder cannot be read.
    """
    found = list(_found_in(directory))
    times = Counter(one.name for one in found)
    models = []
    for one in found:
        name = f"{one.folder}/{one.name}" if times[one.name] > 1 and one.folder else one.name
        if (model := _local(name, one)) is not None:
            models.append(model)
    return told_apart(sorted(models, key=lambda model: (model.name.lower(), model.name)))


def model_at(path: Path) -> LocalModel | None:
    """The model of a file or a folder; None if it has gone."""
    name = path.name.removesuffix(".gguf")
    files, _ = _entries(path if path.is_dir() else path.parent, MOST_FILES, may_fail=True)
    if not path.is_dir():
        parts = next((one.files for one in _gguf(files, "") if one.path == path), [path])
        return _local(name, _Found(name, "", path, parts))
    return _local(name, _Found(name, "", path, files)) if files else None


def told_apart(models: Iterable[LocalModel]) -> list[LocalModel]:
    """Models in this order; a name that came before gets a number."""
    found: dict[str, LocalModel] = {}
    for model in models:
        name, number = model.name, 1
        while name in found:
            number += 1
            name = f"{model.name}-{number}"
        found[name] = model if name == model.name else replace(model, name=name)
    return list(found.values())


def _found_in(directory: Path) -> Iterator[_Found]:
    files, folders = _entries(directory, MOST_FILES)
    yield from _gguf(files, "")
    left = MOST_FILES - len(files) - len(folders)
    for folder in folders:
        inner, _ = _entries(folder, max(left, 0), may_fail=True)
        left -= len(inner)
        if any(file.name == "config.json" for file in inner):
            if any(file.suffix == ".safetensors" for file in inner):
                yield _Found(folder.name, "", folder, inner)
        else:
            yield from _gguf(inner, folder.name)


def _entries(
    directory: Path, most: int, *, may_fail: bool = False
) -> tuple[list[Path], list[Path]]:
    """The files and the folders in a folder, by name. may_fail: none if it cannot be read."""
    files, folders = [], []
    try:
        with os.scandir(directory) as entries:
            for number, entry in enumerate(entries):
                if number >= most:
                    break
                with contextlib.suppress(OSError):  # of a link that leads to itself
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir():
                        folders.append(Path(entry.path))
                    elif entry.name.endswith(_ENDINGS) and entry.is_file():
                        files.append(Path(entry.path))
    except OSError:
        if not may_fail:
            raise
    return sorted(files), sorted(folders)


def _gguf(files: Sequence[Path], folder: str) -> Iterator[_Found]:
    parts: dict[tuple[str, int], dict[int, Path]] = {}
    for file in files:
        if file.suffix != ".gguf" or _NO_MODEL.search(file.name):
            continue
        split = PART.fullmatch(file.stem)
        if split is None:
            yield _Found(file.stem, folder, file, [file])
        else:
            parts.setdefault((split[1], int(split[3])), {})[int(split[2])] = file
    for (name, count), numbered in parts.items():
        if len(numbered) == count and 1 in numbered:
            yield _Found(name, folder, numbered[1], [numbered[n] for n in sorted(numbered)])


def _local(name: str, found: _Found) -> LocalModel | None:
    """None for files that have gone since they were found."""
    try:
        stats = [file.stat() for file in found.files]
    except OSError:
        return None
    if not all(stat.S_ISREG(one.st_mode) for one in stats):
        return None
    return LocalModel(
        name=name.encode("utf-8", "replace").decode(),  # names of files may be any bytes
        path=found.path,
        files=tuple(found.files),
        n_bytes=sum(one.st_size for one in stats),
        modified=max((one.st_mtime for one in stats), default=0.0),
        fetched=False,
    )
