"""Writes any model as a GGUF file of a chosen type, a piece of a tensor at a time."""

import errno
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from airllm.formats.gguf_writer import GGUFWriter, TensorInfo
from airllm.formats.hf_config import ROPE_INTERLEAVED
from airllm.formats.importance import Importance
from airllm.formats.joined_latents import joined_latents
from airllm.formats.mixes import chosen_types, file_type
from airllm.formats.model_file import ModelFile, Tensor, in_pieces
from airllm.formats.multiplied import multiplied
from airllm.formats.numbers import FLOATS, WEIGHTED
from airllm.formats.retype import convert_rows
from airllm.formats.tiled_heads import tiled_heads
from airllm.util.progress import OnProgress

__all__ = ["Converted", "convert", "written_shape"]

QUANTIZATION_VERSION = 2  # of the blocks' layout, since 2023
_LEFT_OUT = re.compile(
    r"split\..*|quantize\.imatrix\..*|general\.(alignment|file_type|quantization_version)"
)


@dataclass(frozen=True)
class Converted:
    """path, n_tensors, nbytes: of the new file. requantized: the type of matrices that were
    quantised already, and so lost precision twice; None if there were none. fallbacks: names of
    tensors whose rows are no whole blocks of the type that they would have, with (that type, their
    type). not_weighted: names of tensors whose importance the file does not have."""

    path: Path
    n_tensors: int
    nbytes: int
    requantized: str | None
    fallbacks: Mapping[str, tuple[str, str]]
    not_weighted: Sequence[str]


def convert(
    model: ModelFile,
    path: str | os.PathLike[str],
    type: str,
    *,
    keep_quantized: bool = False,
    importance: Importance | None = None,
    on_progress: OnProgress | None = None,
) -> Converted:
    """Write `model` to `path` with its matrices as `type`, its metadata and its tokeniser.

    type: one of mixes.CONVERTIBLE. keep_quantized: matrices that are quantised already keep their
    type. importance: how much the columns of each matrix count where scales are searched for;
    matrices that it does not have are quantised without.
    on_progress: called with (done, total) bytes of the new file.

    Takes about 10 MB beside the metadata (20 MB for a quantised folder), whatever the size of the
    model. The file appears once it is complete and replaces an older one; see GGUFWriter.
    ValueError for a type that cannot be written, or that importance means nothing to; FormatError
    for values that the type cannot hold, or for the importance of another model; OSError if the
    file cannot be written. If the disk has too little room, the OSError comes before anything is
    written.
    """
    path, model = Path(path), joined_latents(multiplied(tiled_heads(model)))
    chosen = chosen_types(model, type)
    sources = sorted(model.tensors.values(), key=_place)
    kept = {each.name for each in sources if keep_quantized and each.type not in FLOATS}
    kinds = {
        each.name: each.type if each.name in kept else chosen.types[each.name] for each in sources
    }
    weighted = [each for each in sources if kinds[each.name] in WEIGHTED and each.name not in kept]
    if importance is not None and not weighted:
        raise ValueError(
            f"importance means nothing to {type}, whose scales are not searched for; choose a type "
            "of 2 to 6 bits, or convert without it"
        )
    not_weighted = [] if importance is None else importance.missing(weighted)
    weights = {} if importance is None else {each.name: importance.of(each) for each in weighted}
    infos = [
        TensorInfo(each.name, kinds[each.name], written_shape(model, each)) for each in sources
    ]
    total = sum(info.nbytes for info in infos)
    _check_room(path, total)
    heads = {tensor.name: _reordered_head_dim(model, tensor) for tensor in sources}
    pieces = {
        each.name: list(in_pieces(each.n_rows, each.shape[-1], heads[each.name]))
        for each in sources
    }
    largest = max((pieces[each.name][0][1] * each.row_bytes for each in sources), default=0)
    memory, done = np.empty(largest, np.uint8), 0
    with GGUFWriter(path, _metadata(model, type, importance), infos) as writer:
        for source in sources:
            head_dim = heads[source.name]
            for rows in pieces[source.name]:
                raw = convert_rows(
                    model, source, kinds[source.name], rows, memory, weights.get(source.name)
                )
                if head_dim > 1:
                    of_row = raw.shape[-1] if len(source.shape) > 1 else raw.size // source.shape[0]
                    raw = _neighbours(raw.reshape(-1, of_row), head_dim).reshape(raw.shape)
                writer.write(source.name, raw)
                done += raw.nbytes
                if on_progress is not None:
                    on_progress(done, total)
    lost = (each for each in sources if each.type not in (*FLOATS, kinds[each.name]))
    requantized = next((source.type for source in lost), None)
    fallbacks = {name: both for name, both in chosen.fallbacks.items() if name not in kept}
    return Converted(path, len(infos), path.stat().st_size, requantized, fallbacks, not_weighted)


def _place(tensor: Tensor) -> tuple[int, str]:
    """A key that sorts tensors in the order in which a forward pass needs them."""
    layer = re.match(r"blk\.(\d+)\.", tensor.name)
    if layer:
        return int(layer[1]), tensor.name
    return (2**31, tensor.name) if tensor.name.startswith("output") else (-1, tensor.name)


def written_shape(model: ModelFile, tensor: Tensor) -> tuple[int, ...]:
    """The shape that other programs expect: of Mamba-2, which has ssm_d and no ssm_x, ssm_a and
    ssm_d are matrices with a value in each row, and ssm_norm has a row for each group. Filters of
    Kimi Delta Attention have an axis of one value."""
    layer, _, slot = tensor.name.rpartition(".ssm_")
    if f"{layer}.ssm_conv1d_q.weight" in model.tensors:
        if slot.startswith("conv1d_") and len(tensor.shape) == 2:
            return tensor.shape[0], 1, tensor.shape[1]
        return tensor.shape
    has_d, has_x = (f"{layer}.ssm_{name}" in model.tensors for name in ("d", "x.weight"))
    if not has_d or has_x or slot not in ("a", "d", "norm.weight"):
        return tensor.shape
    n_rows = tensor.n_rows * tensor.shape[-1]
    if slot == "norm.weight":
        architecture = model.metadata.text("general.architecture")
        n_rows = model.metadata.integer(f"{architecture}.ssm.group_count", low=1)
    return n_rows, tensor.n_rows * tensor.shape[-1] // n_rows


def _metadata(model: ModelFile, type: str, importance: Importance | None) -> dict[str, object]:
    kept = {key: value for key, value in model.metadata.items() if not _LEFT_OUT.fullmatch(key)}
    kept.pop(ROPE_INTERLEAVED, None)
    n_quantized = {} if type in FLOATS else {"general.quantization_version": QUANTIZATION_VERSION}
    by_importance = (
        {}
        if importance is None
        else {
            "quantize.imatrix.file": importance.path.name,
            "quantize.imatrix.entries_count": len(importance.vectors),
        }
    )
    return {**kept, "general.file_type": file_type(type), **n_quantized, **by_importance}


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
    neighbours, as in the family's GGUF files. rows: uint8 [n_heads * head_dim, row_bytes]; of a
    bias each value is a row"""
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
