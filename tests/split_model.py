"""Writes a GGUF model in parts, as llama-gguf-split does; shares no code with airllm.formats."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from gguf_writer import TensorSpec, gguf_bytes


def part_name(number: int, count: int) -> str:
    """number: from 1 on."""
    return f"model-{number:05}-of-{count:05}.gguf"


def split_bytes(
    metadata: Mapping[str, object], parts: Sequence[Sequence[TensorSpec]]
) -> dict[str, bytes]:
    """Each part's file by its name: the first has the metadata."""
    n_tensors = sum(map(len, parts))
    files = {}
    for index, tensors in enumerate(parts):
        own: dict[str, object] = dict(metadata) if index == 0 else {}
        own["split.no"] = np.uint16(index)
        own["split.count"] = np.uint16(len(parts))
        own["split.tensors.count"] = np.int32(n_tensors)
        files[part_name(index + 1, len(parts))] = gguf_bytes(own, tensors)
    return files


def write_split(
    folder: Path, metadata: Mapping[str, object], parts: Sequence[Sequence[TensorSpec]]
) -> Path:
    """Returns the first part's path."""
    files = split_bytes(metadata, parts)
    for name, raw in files.items():
        (folder / name).write_bytes(raw)
    return folder / next(iter(files))
