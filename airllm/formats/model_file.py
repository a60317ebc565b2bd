"""A model on disk as the rest of the package sees it, be it one file or many, of any format.

Metadata has GGUF's keys, and tensors have GGUF's names and layout: what another format says
otherwise is translated where that format is read.
"""

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from airllm.formats.mapped_file import MappedFile
from airllm.util.metadata import Metadata

__all__ = ["Closing", "Extent", "ModelFile", "ModelParts", "Tensor"]

FINGERPRINT_BYTES = 1024  # of each tensor
_MAX_HEADER_BYTES = 64 * 2**20

# What an address must be a multiple of for values to be used where they are. GGUF sees to it;
# others do not. Quantised blocks are bytes.
_ALIGNMENTS = {"f32": 4, "f16": 2, "bf16": 2}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Extent:
    """`nbytes` bytes from `offset` on in file number `part` of ModelFile.parts."""

    part: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry. Its bytes are those of `extents`, one after the other; where there are
    none, they stand in no file like that, and `read` and `data` make them."""

    name: str
    type: str  # "q4_1"
    shape: tuple[int, ...]  # row-major: a matrix is (n rows, k columns)
    row_bytes: int  # bytes of shape[-1] elements
    nbytes: int
    extents: tuple[Extent, ...]

    @property
    def offset(self) -> int:
        """Of the first byte, in its file."""
        return self.extents[0].offset

    @property
    def n_rows(self) -> int:
        """Of all leading axes together; 1 of a vector."""
        return math.prod(self.shape[:-1])


class ModelFile(Protocol):
    """An open model; all of it is checked, none of its tensors is read yet.

    path: the file, or the first of several, or their folder. metadata: GGUF's key-value pairs.
    tensors: every tensor by name. parts: the files that hold them.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    parts: tuple[MappedFile, ...]

    def data(self, name: str) -> Bytes:
        """A tensor's bytes, read-only: uint8 [n, row_bytes], 1-D: [row_bytes].

        A view of the memory map where they lie in one piece in a file, which stays valid after
        `close`; otherwise a copy. Raises KeyError for a name that is not there.
        """

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        """A tensor's bytes, as `data` has them, read into the beginning of `memory`, uint8 [n].

        rows: the first, and the one after the last, of all leading axes together; the result is
            then uint8 [rows, row_bytes]. None for the whole tensor.

        Slower than looking at the map, and safe: a file that is truncated at this very moment is a
        FormatError. Raises KeyError for a name that is not there, OSError where the disk fails.
        """

    def fingerprint(self) -> bytes:
        """32 bytes that tell models apart: SHA-256 of all that comes before the tensors' data and
        of each tensor's beginning. A copy under another name has the same. Milliseconds, where a
        hash of everything would take seconds."""

    def check_unchanged(self) -> None:
        """Raise FormatError if a file was written to or truncated since it was opened. To be called
        before the map is touched; a microsecond for each file."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def close(self) -> None:
        """Close the files. Views that `data` gave keep the maps alive until they are dropped."""


class Closing:
    """What has `close`, as a context manager."""

    def close(self) -> None:
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class ModelParts(Closing):
    """A ModelFile over open files, for the formats to derive from."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    parts: tuple[MappedFile, ...]

    def __init__(
        self,
        path: Path,
        metadata: Metadata,
        tensors: Iterable[Tensor],
        parts: Iterable[MappedFile],
        *,
        made: Mapping[str, Callable[[], Bytes]] | None = None,
        said: bytes = b"",
    ) -> None:
        """made: the bytes of the tensors without extents, by name.
        said: what else the model is made of, beside the files, for its fingerprint."""
        self.path, self.metadata = path, metadata
        self.tensors = MappingProxyType({tensor.name: tensor for tensor in tensors})
        self.parts = tuple(parts)
        self._made, self._said = dict(made or {}), said

    def data(self, name: str) -> Bytes:
        tensor = self.tensors[name]
        shape = (*tensor.shape[:-1], tensor.row_bytes)
        if len(tensor.extents) == 1:
            (extent,) = tensor.extents
            raw = self.parts[extent.part].view(extent.offset, extent.nbytes)
            if raw.ctypes.data % _ALIGNMENTS.get(tensor.type, 1) == 0:
                return raw.reshape(shape)
        copy = self.read(name, np.empty(tensor.nbytes, np.uint8))
        copy.flags.writeable = False
        return copy

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        tensor = self.tensors[name]
        first, end = rows or (0, tensor.n_rows)
        self.check_unchanged()
        raw = memory[: (end - first) * tensor.row_bytes]
        if not tensor.extents:
            raw[:] = self._made[name]()[first * tensor.row_bytes : end * tensor.row_bytes]
        skip, at = first * tensor.row_bytes, 0
        for extent in tensor.extents:
            if skip < extent.nbytes and at < raw.nbytes:
                n_bytes = min(extent.nbytes - skip, raw.nbytes - at)
                part = self.parts[extent.part]
                part.read(extent.offset + skip, raw[at : at + n_bytes], name)
                at += n_bytes
            skip = max(skip - extent.nbytes, 0)
        leading = tensor.shape[:-1] if rows is None else (end - first,)
        return raw.reshape(*leading, tensor.row_bytes)

    def fingerprint(self) -> bytes:
        import hashlib  # takes 4 MB: only where a fingerprint is asked for

        self.check_unchanged()
        digest = hashlib.sha256(self._said)
        first = [part.size for part in self.parts]
        for tensor in self.tensors.values():
            for extent in tensor.extents:
                first[extent.part] = min(first[extent.part], extent.offset)
        for part, n_bytes in zip(self.parts, first, strict=True):
            digest.update(os.pread(part.descriptor, min(n_bytes, _MAX_HEADER_BYTES), 0))
        for tensor in self.tensors.values():
            for extent in tensor.extents[:1]:
                n_bytes = min(extent.nbytes, FINGERPRINT_BYTES)
                digest.update(os.pread(self.parts[extent.part].descriptor, n_bytes, extent.offset))
        return digest.digest()

    def check_unchanged(self) -> None:
        for part in self.parts:
            part.check_unchanged()

    def close(self) -> None:
        for part in self.parts:
            part.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors)} tensors)"
