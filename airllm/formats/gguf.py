"""Opens GGUF files: one, or all files of a split model (`gguf_header` describes the format).

The files of a split model are named NAME-00001-of-00003.gguf and so on. Each states its number
(`split.no`, from 0), the number of files (`split.count`) and the number of tensors in all of them
(`split.tensors.count`). The first file has the model's metadata.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

from airllm.formats.gguf_header import MAX_TENSORS, Header, read_header
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, ModelParts, Tensor
from airllm.util.metadata import FormatError, Metadata

__all__ = ["FormatError", "GGUFFile", "Metadata", "Tensor"]

_HINT = "give the .gguf file in it"
_PART_NAME = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")
MAX_PARTS = 99_999  # a name has five digits
MAX_EXPERTS = 2**12  # of a tensor whose halves are told apart
_HALVES = ("gate", "up")


class GGUFFile(ModelParts):
    """An open GGUF model, see ModelFile. path: its file, or the first of its files."""

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Self:
        """Map and check the file. For the first file of a split model, do so with all of them.

        Raises FormatError for anything that is not a GGUF file this package can run, and OSError
        (FileNotFoundError, PermissionError...) if a file cannot be opened.
        """
        path = Path(path)
        parts = [MappedFile.open(path, hint=_HINT)]
        try:
            header = read_header(parts[0])
            tensors = list(header.tensors)
            for other in _other_parts(path, header.metadata):
                parts.append(_open_part(other, path))
                tensors += _read_part(parts, header.metadata)
                _check_count(path, tensors)
            _check_together(path, header.metadata, tensors)
        except BaseException:
            for part in parts:
                part.close()
            raise
        return cls(path, header.metadata, _apart(tensors), parts)


def _apart(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors, with the gate and up matrices of experts apart: files may have them as one
    matrix for each expert, the gate's rows first."""
    names = {tensor.name for tensor in tensors}
    found = []
    for tensor in tensors:
        gate, up = (tensor.name.replace("_gate_up_exps.", f"_{each}_exps.") for each in _HALVES)
        halves = len(tensor.shape) == 3 and tensor.shape[1] % 2 == 0
        if gate == up or not halves or tensor.shape[0] > MAX_EXPERTS or {gate, up} & names:
            found.append(tensor)
            continue
        n_experts, n, k = tensor.shape
        n_bytes = n // 2 * tensor.row_bytes
        for half, name in enumerate((gate, up)):
            extents = tuple(
                Extent(tensor.extents[0].part, tensor.offset + at * n_bytes, n_bytes)
                for at in range(half, 2 * n_experts, 2)
            )
            shape, nbytes = (n_experts, n // 2, k), n_experts * n_bytes
            found.append(replace(tensor, name=name, shape=shape, nbytes=nbytes, extents=extents))
    return found


def _other_parts(path: Path, metadata: Metadata) -> Sequence[Path]:
    """The second and later files of a split model; empty for a model in one file."""
    count = metadata.integer("split.count", 1, high=MAX_PARTS)
    if count <= 1:
        return ()
    number = metadata.integer("split.no", high=MAX_PARTS)
    name = _PART_NAME.fullmatch(path.name)
    if number != 0:
        first = f"{name['stem']}-00001-of-{count:05}.gguf" if name else "the first"
        raise metadata.fault(f"part {number + 1} of {count} of a split model; give {first}")
    if name is None or int(name["number"]) != 1 or int(name["count"]) != count:
        raise metadata.fault(
            f"part 1 of {count} of a split model, whose name must end in -00001-of-{count:05}.gguf "
            "for the others to be found; give it back its name"
        )
    names = (f"{name['stem']}-{number:05}-of-{count:05}.gguf" for number in range(2, count + 1))
    return [path.with_name(other) for other in names]


def _open_part(path: Path, first: Path) -> MappedFile:
    try:
        return MappedFile.open(path, hint=f"it should be a part of {first.name}")
    except FileNotFoundError:
        raise FormatError(f"{first}: a split model whose part {path.name} is missing") from None


def _read_part(parts: Sequence[MappedFile], first: Metadata) -> list[Tensor]:
    """Check that the last of `parts` is the file its name promises, and return its tensors."""
    number = len(parts) - 1
    header: Header = read_header(parts[-1], number)
    found = header.metadata
    expected: dict[str, int | str] = {
        "split.no": number,
        "split.count": first.integer("split.count"),
        "split.tensors.count": first.integer("split.tensors.count"),
    }
    said: dict[str, int | str] = {key: found.integer(key) for key in expected}
    if "general.architecture" in found:  # the first file, or a whole model
        said["general.architecture"] = found.text("general.architecture")
        expected["general.architecture"] = first.text("general.architecture")
    for key, value in said.items():
        if value != expected[key]:
            raise found.fault(
                f"{key} is {value!r}; expected {expected[key]!r} in part {number + 1} of "
                f"{parts[0].path.name}: this file was renamed, or belongs to another model"
            )
    return header.tensors


def _check_count(path: Path, tensors: Sequence[Tensor]) -> None:
    if len(tensors) > MAX_TENSORS:
        raise FormatError(f"{path}: more than {MAX_TENSORS:,} tensors in the parts of this model")


def _check_together(path: Path, metadata: Metadata, tensors: Sequence[Tensor]) -> None:
    """Checks that need all parts: the number of tensors, and that names are unique."""
    names: set[str] = set()
    for tensor in tensors:
        if tensor.name in names:
            raise FormatError(
                f"{path}: tensor {quote(tensor.name)} is in two parts of this model; they do not "
                "belong together"
            )
        names.add(tensor.name)
    expected = metadata.integer("split.tensors.count", len(tensors))
    if len(tensors) != expected:
        raise metadata.fault(
            f"has {len(tensors):,} tensors in all its parts; split.tensors.count says {expected:,}"
        )
