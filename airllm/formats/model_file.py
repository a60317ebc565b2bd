"""A model on disk, in one file or many, in any format: the interface for the rest of the package.

Metadata has GGUF's keys, and tensors have GGUF's names and layout. The reader of another format
translates.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Protocol, Self

import numpy as np
import numpy.typing as npt

from airllm.formats.mapped_file import MappedFile
from airllm.util.closing import Closing
from airllm.util.metadata import Metadata

__all__ = [
    "DerivedModel",
    "Extent",
    "Made",
    "ModelFile",
    "ModelParts",
    "Tensor",
    "full_name",
    "in_pieces",
]

FINGERPRINT_BYTES = 1024  # of each tensor
PIECE_VALUES = 2**20  # of a tensor that are made at a time: 4 MiB as float32
_MAX_HEADER_BYTES = 64 * 2**20

# The alignment that values need to be used in place. GGUF guarantees it; other formats do not.
# Quantised blocks are bytes.
_ALIGNMENTS = {"f32": 4, "f16": 2, "bf16": 2}

Bytes = npt.NDArray[np.uint8]

# Slots of recurrent layers whose tensors have no suffix.
_BARE = frozenset(["ssm_a", "ssm_d"])


@dataclass(frozen=True, slots=True)
class Extent:
    """The place of `nbytes` bytes: at `offset` in file number `part` of ModelFile.parts."""

    part: int
    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor's entry. Its bytes are those of `extents`, joined. Without extents no file has these
    bytes, and `read` and `data` make them; see Made."""

    name: str
    type: str  # "q4_1"
    shape: tuple[int, ...]  # row-major: a matrix is (n rows, k columns)
    row_bytes: int  # bytes of shape[-1] elements
    nbytes: int
    extents: tuple[Extent, ...]

    @property
    def offset(self) -> int:
        """The offset of the first byte in its file."""
        return self.extents[0].offset

    @property
    def n_rows(self) -> int:
        """The product of all leading axes; 1 for a vector."""
        return math.prod(self.shape[:-1])


def full_name(slot: str, suffix: str = "weight") -> str:
    """The name of a weight slot's tensor in its layer. GGUF has a few slots without a suffix, and
    slots that are biases or scales by their own name ("exp_probs_b.bias"). A slot that ends with a
    dot has no suffix, where that of other architectures has."""
    if slot.endswith("."):
        return slot.removesuffix(".")
    return slot if slot in _BARE or slot.endswith((".bias", ".scale")) else f"{slot}.{suffix}"


@dataclass(frozen=True, slots=True)
class Made:
    """Makes the bytes of a tensor without extents.

    rows: (first, end) of its rows, all leading axes taken together, to uint8 [rows, row_bytes].
    FormatError if the file has no sense there. sources: the places in the files that the rows are
    made from.
    """

    rows: Callable[[int, int], Bytes]
    sources: tuple[Extent, ...] = ()


def in_pieces(n_rows: int, k: int, multiple: int = 1) -> Iterator[tuple[int, int]]:
    """(first, end) row of each piece of at most PIECE_VALUES values, or of `multiple` rows if these
    have more values. k: values of a row."""
    step = max(PIECE_VALUES // k // multiple, 1) * multiple
    for first in range(0, n_rows, step):
        yield first, min(first + step, n_rows)


class ModelFile(Protocol):
    """An open model. Its metadata and table are checked; no tensor has been read yet.

    path: the file, or the first of several, or their folder. metadata: GGUF's key-value pairs.
    tensors: every tensor by name. parts: the files that hold them.
    """

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    parts: tuple[MappedFile, ...]

    def data(self, name: str) -> Bytes:
        """A tensor's bytes, read-only: uint8 [n, row_bytes], 1-D: [row_bytes].

        If the bytes are in one piece in a file, the result is a view of the memory map and stays
        valid after `close`; otherwise it is a copy. KeyError for an unknown name, FormatError if
        the file has changed by now. Whoever uses a view later has to check again.
        """

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        """Read a tensor's bytes into the beginning of `memory`, uint8 [n]; return them as `data`
        does.

        rows: (first, end) of the rows to read, all leading axes taken together; the result is
            uint8 [rows, row_bytes]. None for the whole tensor.

        It is slower than the map, but safe: a truncation at this moment is a FormatError.
        KeyError for an unknown name, OSError if the disk fails.
        """

    def fingerprint(self) -> bytes:
        """32 bytes that identify the model: SHA-256 of everything before the tensors' data and of
        each tensor's first bytes. A copy under another name has the same fingerprint. It takes
        milliseconds; a hash of the whole file would take seconds."""

    def check_unchanged(self) -> None:
        """FormatError if a file was written to or truncated since it was opened. Call it before
        touching the map; it takes a microsecond for each file."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def close(self) -> None:
        """Close the files. Views from `data` keep the maps alive until they are dropped."""


class ModelParts(Closing):
    """A ModelFile over open files. The formats derive from it."""

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
        made: Mapping[str, Made] | None = None,
        said: bytes = b"",
    ) -> None:
        """made: what makes the bytes of tensors without extents, by name.
        said: the model's other descriptions (JSON files), for its fingerprint."""
        self.path, self.metadata = path, metadata
        self.tensors = MappingProxyType({tensor.name: tensor for tensor in tensors})
        self.parts = tuple(parts)
        self._made, self._said = dict(made or {}), said
        self.closed = False

    def remade(
        self, metadata: Metadata, tensors: Iterable[Tensor], made: Mapping[str, Made]
    ) -> "ModelParts":
        """Another model over the same files, which closes them in place of this one. made: of its
        tensors without extents; it may read from this one."""
        self.closed = True
        return ModelParts(self.path, metadata, tensors, self.parts, made=made)

    def data(self, name: str) -> Bytes:
        tensor = self.tensors[name]
        self.check_unchanged()
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
            made, by_row = self._made[name], raw.reshape(end - first, tensor.row_bytes)
            for start, stop in in_pieces(end - first, tensor.shape[-1]):
                by_row[start:stop] = made.rows(first + start, first + stop)
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
        import hashlib  # takes 4 MB, so only if a fingerprint is wanted

        self.check_unchanged()
        digest = hashlib.sha256(self._said)
        first = [part.size for part in self.parts]
        extents = [self._extents(tensor) for tensor in self.tensors.values()]
        for of_tensor in extents:
            for extent in of_tensor:
                first[extent.part] = min(first[extent.part], extent.offset)
        for part, n_bytes in zip(self.parts, first, strict=True):
            digest.update(part.pread(0, min(n_bytes, _MAX_HEADER_BYTES)))
        for of_tensor in extents:
            for extent in of_tensor[:1]:
                n_bytes = min(extent.nbytes, FINGERPRINT_BYTES)
                digest.update(self.parts[extent.part].pread(extent.offset, n_bytes))
        return digest.digest()

    def _extents(self, tensor: Tensor) -> tuple[Extent, ...]:
        """The places of its bytes, or of the bytes that it is made from."""
        made = self._made.get(tensor.name)
        return tensor.extents if made is None else made.sources

    def check_unchanged(self) -> None:
        for part in self.parts:
            part.check_unchanged()

    def release(self) -> None:
        for part in self.parts:
            part.close()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {len(self.tensors)} tensors)"


class DerivedModel(Closing):
    """A ModelFile whose tensors are made of another's. Classes that derive from it have `read`.

    It leaves closing the other to whoever opened that, unless its constructor sets `closed` to
    False."""

    path: Path
    metadata: Metadata
    tensors: Mapping[str, Tensor]
    parts: tuple[MappedFile, ...]

    def __init__(self, model: ModelFile, metadata: Metadata, tensors: Mapping[str, Tensor]) -> None:
        self._model, self.path, self.parts = model, model.path, model.parts
        self.metadata, self.tensors = metadata, MappingProxyType(dict(tensors))

    def read(self, name: str, memory: Bytes, rows: tuple[int, int] | None = None) -> Bytes:
        raise NotImplementedError

    def data(self, name: str) -> Bytes:
        made = self.read(name, np.empty(self.tensors[name].nbytes, np.uint8))
        made.flags.writeable = False
        return made

    def fingerprint(self) -> bytes:
        return self._model.fingerprint()

    def check_unchanged(self) -> None:
        self._model.check_unchanged()

    def release(self) -> None:
        self._model.close()

    def __repr__(self) -> str:
        return repr(self._model)
