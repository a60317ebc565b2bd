"""The header of a safetensors file: the table of its tensors.

The format (huggingface/safetensors), little-endian throughout:

    u64 length of the header
    header: JSON, padded with spaces: {"name": {"dtype": "BF16", "shape": [n, k],
        "data_offsets": [begin, end]}, ..., "__metadata__": {"name": "text", ...}}
    data: the tensors, without gaps; offsets count from its beginning

The whole table is checked before anything is used: each byte of data belongs to exactly one tensor,
and each tensor has the bytes that its type and shape need. The `safetensors` package checks the
same, but it returns arrays; streaming needs places in a file.
"""

import math
import re
from dataclasses import dataclass

import numpy as np

from airllm.formats.json_file import parse_object
from airllm.formats.mapped_file import MappedFile, quote
from airllm.util.metadata import FormatError

__all__ = ["StoredTensor", "read_table"]

MAX_HEADER_BYTES = 32 * 2**20  # 18,000 tensors, those of the largest mixtures, take 2 MB
MAX_TENSORS = 2**18
MAX_DIMS = 8

_BITS = {
    **{"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8},
    **{"U16": 16, "I16": 16, "F16": 16, "BF16": 16, "U32": 32, "I32": 32, "F32": 32},
    **{"U64": 64, "I64": 64, "F64": 64, "C64": 64},
}
# Files that people mistake for safetensors, by their first bytes.
_OTHER_FORMATS = {
    b"version ": "a Git LFS pointer, not the model; fetch the model with `git lfs pull`",
    b"PK\x03\x04": "a ZIP archive (a PyTorch checkpoint?)",
    b"GGUF": "a GGUF file; give it itself, not its folder",
    b"<": "a web page or XML; was the download refused?",
}


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's entry: `nbytes` bytes of type `dtype` ("BF16") at `offset` in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    nbytes: int


def read_table(file: MappedFile) -> list[StoredTensor]:
    """The tensors in the order of their data. FormatError if the file is damaged."""
    source = str(file.path)
    raw = _header(file)
    data_start = 8 + len(raw)
    entries = parse_object(raw, source)
    entries.pop("__metadata__", None)
    if len(entries) > MAX_TENSORS:
        raise FormatError(
            f"{source}: has {len(entries):,} tensors; at most {MAX_TENSORS:,} are expected"
        )
    tensors = [_tensor(source, name, entry, data_start) for name, entry in entries.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    at, last = data_start, "the header"
    for tensor in tensors:
        if tensor.offset != at:
            relation = "overlaps" if tensor.offset < at else "leaves a gap after"
            raise FormatError(f"{source}: tensor {quote(tensor.name)} {relation} {last}")
        at, last = tensor.offset + tensor.nbytes, quote(tensor.name)
    if at != file.size:
        raise FormatError(
            f"{source}: {last} ends at {at:,}, but the file at {file.size:,}; it is truncated or "
            "damaged"
        )
    return tensors


def _header(file: MappedFile) -> bytes:
    start = file.pread(0, 16)
    for magic, meaning in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise FormatError(f"{file.path}: not a safetensors file but {meaning}")
    length = int.from_bytes(start[:8], "little")
    if file.size < 10 or start[8:9] != b"{":
        raise FormatError(f"{file.path}: not a safetensors file: it begins with {start[:9]!r}")
    if length > file.size - 8:
        raise FormatError(
            f"{file.path}: its header needs {length:,} bytes, but the file ends at {file.size:,}; "
            "it is truncated or damaged"
        )
    if length > MAX_HEADER_BYTES:
        raise FormatError(
            f"{file.path}: claims a header of {length:,} bytes; at most {MAX_HEADER_BYTES:,} are "
            "expected"
        )
    header = np.empty(length, np.uint8)
    file.read(8, header, "the header")  # reading never kills the process, as the map may
    return header.tobytes()


def _tensor(source: str, name: str, entry: object, data_start: int) -> StoredTensor:
    what = f"{source}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{what} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or not re.fullmatch("[A-Z0-9_]{1,16}", dtype):
        raise FormatError(f"{what} has a dtype that is no name of a type")
    if dtype not in _BITS:
        raise FormatError(f"{what} is of type {dtype}, which is not known")
    if not _are_sizes(shape) or len(shape) > MAX_DIMS:
        raise FormatError(f"{what} has a shape that is no list of at most {MAX_DIMS} sizes")
    if not _are_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{what} has data_offsets that are no beginning and end")
    begin, end = offsets
    expected = math.prod(shape) * _BITS[dtype] // 8
    if end - begin != expected:
        raise FormatError(
            f"{what} of type {dtype} and shape {shape} has {end - begin:,} bytes; expected "
            f"{expected:,}"
        )
    return StoredTensor(name, dtype, tuple(shape), data_start + begin, expected)


def _are_sizes(value: object) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)
