"""Translates Hugging Face's tensors to GGUF's: names, stacked experts, Gemma's norms plus 1."""

import functools
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_config import HFConfig
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, Tensor
from airllm.formats.safetensors import StoredTensor
from airllm.util.metadata import FormatError

__all__ = ["Shard", "Translated", "translate_tensors"]

_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_HEAD = "lm_head.weight"
_LAYER = re.compile(r"layers\.(?P<layer>\d{1,5})\.(?P<stem>.*)")
_EXPERT = re.compile(r"(?P<before>.*\bexperts)\.(?P<number>\d{1,5})\.(?P<after>.*)")
# The vision part of a model that sees pictures, and a table of rope that older files have.
_LEFT_OUT = re.compile(
    r"(.*\.)?(vision_tower|vision_model|visual|multi_modal_projector)\..*|.*\.rotary_emb\.inv_freq"
)


@dataclass(frozen=True)
class Shard:
    """One file of weights, and the table of its tensors."""

    file: MappedFile
    table: Sequence[StoredTensor]


@dataclass(frozen=True)
class Translated:
    """tensors: with GGUF's names. made: functions for the bytes of tensors without extents."""

    tensors: list[Tensor]
    made: dict[str, Callable[[], NDArray[np.uint8]]]


def translate_tensors(folder: str, shards: Sequence[Shard], config: HFConfig) -> Translated:
    """All tensors of the shards with GGUF's names, and those that `config` adds.

    A tensor that GGUF has no name for keeps its own; check_tensors refuses it by that name.
    FormatError for a type other than F32, F16 and BF16, for a tensor that two files have, and for
    missing experts.
    """
    tensors: dict[str, Tensor] = {}
    made: dict[str, Callable[[], NDArray[np.uint8]]] = {}
    experts: dict[tuple[str, ...], dict[int, tuple[int, StoredTensor]]] = defaultdict(dict)
    prefix = _prefix(folder, shards)

    def put(found: Tensor) -> None:
        if len(found.shape) == 2 and found.shape[0] == 1:  # GGUF files have a vector
            found = replace(found, shape=found.shape[1:])
        if found.name in tensors:
            raise FormatError(f"{folder}: there are two tensors for {quote(found.name)}")
        tensors[found.name] = found

    for part, shard in enumerate(shards):
        for stored in shard.table:
            if _LEFT_OUT.fullmatch(stored.name) or (config.tied and stored.name.endswith(_HEAD)):
                continue
            place = _place(stored.name.removeprefix(prefix), config)
            if place is None:
                continue
            if place.expert is not None:
                of_slot = experts[place.names]
                if place.expert in of_slot:
                    raise FormatError(f"{folder}: there are two tensors {quote(stored.name)}")
                of_slot[place.expert] = part, stored
            elif len(place.names) > 1:
                for tensor in _shared_out(place.names, part, stored, shard.file):
                    put(tensor)
            else:
                [name] = place.names
                tensor = _tensor(name, [(part, stored)], stored.shape, shard.file)
                if config.plus_one and name.endswith("norm.weight"):
                    made[name] = _plus_one(shard.file, stored)
                    n_bytes = 4 * math.prod(stored.shape)
                    tensor = Tensor(name, "f32", stored.shape, n_bytes, n_bytes, ())
                put(tensor)
    for names, by_number in experts.items():
        put(_stacked(folder, names[0], by_number, shards))
    for name, values in config.tensors.items():
        put(Tensor(name, "f32", values.shape, values.nbytes, values.nbytes, ()))
        made[name] = functools.partial(_bytes_of, values)
    return Translated(list(tensors.values()), made)


def _bytes_of(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    return values.astype("<f4").view(np.uint8)


@dataclass(frozen=True)
class _Place:
    """names: of the tensor in GGUF, or of the tensors that share its rows. expert: its number, if
    it is the matrix of one expert."""

    names: tuple[str, ...]
    expert: int | None = None


def _place(name: str, config: HFConfig) -> _Place | None:
    """Of "layers.3.self_attn.q_proj.bias": blk.3.attn_q.bias. None for a tensor to leave out."""
    if name.endswith(_HEAD):
        return _Place(("output.weight",))
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, suffix = name, "weight"
    before, number = "", None
    if layer := _LAYER.fullmatch(stem):
        before, stem = f"blk.{int(layer['layer'])}.", layer["stem"]
        if int(layer["layer"]) in config.left_out:
            return None
    if expert := _EXPERT.fullmatch(stem):
        number, stem = int(expert["number"]), f"{expert['before']}.*.{expert['after']}"
    slots = config.names.get(stem)
    if slots is None:
        return _Place((name,))
    slots = (slots,) if isinstance(slots, str) else slots
    # GGUF has slots that are biases by their own name ("exp_probs_b.bias").
    names = (slot if slot.endswith(".bias") else f"{slot}.{suffix}" for slot in slots)
    return _Place(tuple(f"{before}{each}" for each in names), number)


def _prefix(folder: str, shards: Sequence[Shard]) -> str:
    """The prefix of the language model: "model.", or "language_model.model." if it is a part."""
    end = "embed_tokens.weight"
    names = (stored.name for part in shards for stored in part.table)
    prefixes = [name.removesuffix(end) for name in names if name.endswith(end)]
    if len(prefixes) != 1:
        raise FormatError(f"{folder}: has {len(prefixes)} tensors {end}; expected one")
    return prefixes[0]


def _tensor(
    name: str,
    pieces: Iterable[tuple[int, StoredTensor]],
    shape: tuple[int, ...],
    file: MappedFile,
) -> Tensor:
    """A tensor made of pieces in files. pieces: (number of the file, entry), all of one type."""
    pieces = list(pieces)
    first = pieces[0][1]
    if first.dtype not in _TYPES:
        raise FormatError(
            f"{file.path}: tensor {quote(first.name)} is of type {first.dtype}; supported are "
            f"{', '.join(_TYPES)}"
        )
    if not shape or 0 in shape:
        raise FormatError(
            f"{file.path}: tensor {quote(first.name)} has shape {list(shape)}, which holds nothing"
        )
    extents = tuple(Extent(part, stored.offset, stored.nbytes) for part, stored in pieces)
    row_bytes = shape[-1] * _BYTES[first.dtype]
    nbytes = sum(extent.nbytes for extent in extents)
    return Tensor(name, _TYPES[first.dtype], shape, row_bytes, nbytes, extents)


def _stacked(
    folder: str, slot: str, experts: dict[int, tuple[int, StoredTensor]], shards: Sequence[Shard]
) -> Tensor:
    """One tensor of all experts' matrices: [n_experts, n, k]."""
    if sorted(experts) != list(range(len(experts))):
        missing = next(number for number in range(len(experts)) if number not in experts)
        raise FormatError(f"{folder}: expert {missing} of {slot} is missing")
    ordered = [experts[number] for number in range(len(experts))]
    first = ordered[0][1]
    for part, stored in ordered:
        if (stored.dtype, stored.shape) != (first.dtype, first.shape):
            raise FormatError(
                f"{shards[part].file.path}: tensor {quote(stored.name)} differs in type or shape "
                f"from {quote(first.name)}"
            )
    return _tensor(slot, ordered, (len(ordered), *first.shape), shards[ordered[0][0]].file)


def _shared_out(
    names: Sequence[str], part: int, stored: StoredTensor, file: MappedFile
) -> Iterable[Tensor]:
    """Shares a tensor's rows out among the names: the first rows of it, or of each expert's matrix
    ([n_experts, n, k]), to the first name."""
    shape, n_dims = list(stored.shape), len(stored.shape)
    rows = max(n_dims - 2, 0)  # the axis
    if n_dims not in (1, 2, 3) or 0 in shape or shape[rows] % len(names):
        raise FormatError(
            f"{file.path}: tensor {quote(stored.name)} has shape {shape}; expected rows for "
            f"{len(names)} tensors: {', '.join(names)}"
        )
    n_experts = shape[0] if n_dims == 3 else 1
    nbytes = stored.nbytes // n_experts // len(names)
    shape[rows] //= len(names)
    for index, name in enumerate(names):
        pieces = [
            (part, replace(stored, offset=stored.offset + at * nbytes, nbytes=nbytes))
            for at in range(index, n_experts * len(names), len(names))
        ]
        yield _tensor(name, pieces, tuple(shape), file)


def _plus_one(file: MappedFile, stored: StoredTensor) -> Callable[[], NDArray[np.uint8]]:
    """Adds 1 to the weight of a norm: Gemma multiplies by 1 + weight, and GGUF stores the sum."""

    def make() -> NDArray[np.uint8]:
        raw = np.empty(stored.nbytes, np.uint8)
        file.read(stored.offset, raw, stored.name)
        if stored.dtype == "BF16":
            values = (raw.view("<u2").astype("<u4") << 16).view("<f4")
        else:
            values = raw.view("<f4" if stored.dtype == "F32" else "<f2").astype("<f4")
        return (values + np.float32(1.0)).view(np.uint8)

    return make
