"""Writes any model as a GGUF file of a chosen type, a piece of a tensor at a time."""

import errno
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airllm.formats.gguf_writer import GGUFWriter, TensorInfo
from airllm.formats.hf_config import ROPE_INTERLEAVED
from airllm.formats.model_file import ModelFile, Tensor, in_pieces
from airllm.formats.multiplied import multiplied
from airllm.formats.numbers import FLOATS, WRITABLE
from airllm.formats.retype import convert_rows, target_type
from airllm.formats.tiled_heads import tiled_heads
from airllm.util.progress import OnProgress

__all__ = ["FILE_TYPES", "Converted", "convert"]

# Values of general.file_type: the type of most tensors in the file.
FILE_TYPES = {
    **{"f32": 0, "f16": 1, "bf16": 32},
    **{"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "iq4_nl": 25, "mxfp4": 38},
}
QUANTIZATION_VERSION = 2  # of the blocks' layout, since 2023
_LEFT_OUT = re.compile(r"split\..*|general\.(alignment|file_type|quantization_version)")


@dataclass(frozen=True)
class Converted:
    """path, n_tensors, nbytes: of the new file. requantized: the type of matrices that were
    quantised already, and so lost precision twice; None if there were none."""

    path: Path
    n_tensors: int
    nbytes: int
    requantized: str | None


def convert(
    model: ModelFile,
    path: str | os.PathLike[str],
    type: str,
    *,
    keep_quantized: bool = False,
    on_progress: OnProgress | None = None,
) -> Converted:
    """Write `model` to `path` with its matrices as `type`, its metadata and its tokeniser.

    keep_quantized: matrices that are quantised already keep their type.
    on_progress: called with (done, total) bytes of the new file.

    Takes about 10 MB beside the metadata (20 MB for a quantised folder), whatever the size of the
    model. The file appears once it is complete and replaces an older one; see GGUFWriter.
    ValueError for a type that cannot be written, FormatError for values that the type cannot hold,
    OSError if the file cannot be written. If the disk has too little room, the OSError comes before
    anything is written.
    """
    if type not in WRITABLE:
        raise ValueError(f"type is {type!r}; expected one of {', '.join(WRITABLE)}")
    path = Path(path)
    model = multiplied(tiled_heads(model))
    tied = "output.weight" not in model.tensors
    sources = sorted(model.tensors.values(), key=_place)
    kinds = {
        each.name: each.type
        if keep_quantized and each.type not in FLOATS
        else target_type(each, type, tied=tied)
        for each in sources
    }
    infos = [TensorInfo(tensor.name, kinds[tensor.name], tensor.shape) for tensor in sources]
    total = sum(info.nbytes for info in infos)
    _check_room(path, total)
    heads = {tensor.name: _reordered_head_dim(model, tensor) for tensor in sources}
    pieces = {
        each.name: list(in_pieces(each.n_rows, each.shape[-1], heads[each.name]))
        for each in sources
    }
    largest = max((pieces[each.name][0][1] * each.row_bytes for each in sources), default=0)
    memory, done = np.empty(largest, np.uint8), 0
    with GGUFWriter(path, _metadata(model, type), infos) as writer:
        for source in sources:
            head_dim = heads[source.name]
            for rows in pieces[source.name]:
                raw = convert_rows(model, source, kinds[source.name], rows, memory)
                writer.write(source.name, _neighbours(raw, head_dim) if head_dim > 1 else raw)
                done += raw.nbytes
                if on_progress is not None:
                    on_progress(done, total)
    lost = (each for each in sources if each.type not in (*FLOATS, kinds[each.name]))
    requantized = next((source.type for source in lost), None)
    return Converted(path, len(infos), path.stat().st_size, requantized)


def _place(tensor: Tensor) -> tuple[int, str]:
    """A key that sorts tensors in the order in which a forward pass needs them."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    if layer:
        return int(layer[1]), tensor.name
    return (2**31, tensor.name) if tensor.name.startswith("output") else (-1, tensor.name)


def _metadata(model: ModelFile, type: str) -> dict[str, object]:
    kept = {key: value for key, value in model.metadata.items() if not _LEFT_OUT.fullmatch(key)}
    kept.pop(ROPE_INTERLEAVED, None)
    n_quantized = {} if type in FLOATS else {"general.quantization_version": QUANTIZATION_VERSION}
    return {**kept, "general.file_type": FILE_TYPES[type], **n_quantized}


def _reordered_head_dim(model: ModelFile, tensor: Tensor) -> int:
    """head_dim for a tensor whose rows are reordered within each head; 1 for others."""
    if not re.fullmatch(r"blk\.\d+\.attn_[qk]\.(weight|bias)", tensor.name):
        return 1
    if model.metadata.flag(ROPE_INTERLEAVED, True):
        return 1
    architecture = model.metadata.text("general.architecture")
    return model.metadata.integer(f"{architecture}.attention.key_length", low=2)


def _neighbours(rows: NDArray[np.uint8], head_dim: int) -> NDArray[np.uint8]:
    """Reorders the rows of each head to 0, d/2, 1, d/2 + 1, ..., so that rope's pairs become
    neighbours, as in the family's GGUF files. rows: uint8 [n_heads * head_dim, row_bytes]"""
    halves = rows.reshape(-1, 2, head_dim // 2, rows.shape[-1])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows.shape)


def _check_room(path: Path, nbytes: int) -> None:
    folder = path.parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(folder))
    free = shutil.disk_usage(folder).free + _left_behind(path)
    if free < nbytes:
        raise OSError(
            errno.ENOSPC,
            f"the disk has {free / 1e6:,.0f} MB left; {nbytes / 1e6:,.0f} MB are needed",
            str(path),
        )


def _left_behind(path: Path) -> int:
    """What a conversion that was killed keeps of the disk: the writer empties that file first."""
    try:
        found = path.with_name(f"{path.name}.partial").lstat()
    except OSError:
        return 0
    return min(found.st_size, 512 * getattr(found, "st_blocks", 0))
