"""Translates Hugging Face's tensors to GGUF's: names, stacked experts, Gemma's norms plus 1."""

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Extent, Tensor
from airllm.formats.safetensors import StoredTensor
from airllm.util.metadata import FormatError

__all__ = ["Shard", "Translated", "translate_tensors"]

_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}
_BYTES = {"F32": 4, "F16": 2, "BF16": 2}

_NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    # All experts in one tensor: newer versions of transformers may write these.
    "mlp.experts.down_proj": "ffn_down_exps",
}
_GEMMA_NAMES = _NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_HEAD = "lm_head.weight"
_EXPERT = re.compile(
    r"layers\.(?P<layer>\d+)\.mlp\.experts\.(?P<expert>\d{1,5})\.(?P<part>\w+)_proj\.weight"
)
_BOTH = re.compile(r"layers\.(?P<layer>\d+)\.mlp\.experts\.gate_up_proj")
_LAYER = re.compile(r"layers\.(?P<layer>\d+)\.(?P<stem>.*)")
# The vision part of a model that sees pictures, and a table of rope that older files have.
_LEFT_OUT = re.compile(
    r"(.*\.)?(vision_tower|vision_model|multi_modal_projector)\..*|.*\.rotary_emb\.inv_freq"
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


def translate_tensors(
    folder: str, shards: Sequence[Shard], *, gemma: bool, tied: bool
) -> Translated:
    """All tensors of the shards with GGUF's names.

    A tensor that GGUF has no name for keeps its own; check_tensors refuses it by that name.
    gemma: add 1 to the weights of norms. tied: leave the output matrix out. FormatError for a type
    other than F32, F16 and BF16, for a tensor that two files have, and for missing experts.
    """
    tensors: dict[str, Tensor] = {}
    made: dict[str, Callable[[], NDArray[np.uint8]]] = {}
    experts: dict[str, dict[int, tuple[int, StoredTensor]]] = defaultdict(dict)
    prefix = _prefix(folder, shards)

    def put(*found: Tensor) -> None:
        for tensor in found:
            if tensor.name in tensors:
                raise FormatError(f"{folder}: there are two tensors for {quote(tensor.name)}")
            tensors[tensor.name] = tensor

    for number, part in enumerate(shards):
        for stored in part.table:
            if _LEFT_OUT.fullmatch(stored.name) or (tied and stored.name.endswith(_HEAD)):
                continue
            name = stored.name.removeprefix(prefix)
            if expert := _EXPERT.fullmatch(name):
                slot = f"blk.{expert['layer']}.ffn_{expert['part']}_exps.weight"
                if int(expert["expert"]) in experts[slot]:
                    raise FormatError(f"{folder}: there are two tensors {quote(stored.name)}")
                experts[slot][int(expert["expert"])] = number, stored
            elif both := _BOTH.fullmatch(name):
                put(*_halves(f"blk.{both['layer']}", number, stored, part.file))
            else:
                gguf_name = _gguf_name(name, gemma)
                tensor = _tensor(gguf_name, [(number, stored)], stored.shape, part.file)
                if gemma and gguf_name.endswith("norm.weight"):
                    made[gguf_name] = _plus_one(part.file, stored)
                    n_bytes = 4 * math.prod(stored.shape)
                    tensor = Tensor(gguf_name, "f32", stored.shape, n_bytes, n_bytes, ())
                put(tensor)
    put(*(_stacked(folder, slot, by_number, shards) for slot, by_number in experts.items()))
    return Translated(list(tensors.values()), made)


def _prefix(folder: str, shards: Sequence[Shard]) -> str:
    """The prefix of the language model: "model.", or "language_model.model." if it is a part."""
    end = "embed_tokens.weight"
    names = (stored.name for part in shards for stored in part.table)
    prefixes = [name.removesuffix(end) for name in names if name.endswith(end)]
    if len(prefixes) != 1:
        raise FormatError(f"{folder}: has {len(prefixes)} tensors {end}; expected one")
    return prefixes[0]


def _gguf_name(name: str, gemma: bool) -> str:
    """ "layers.3.self_attn.q_proj.bias" -> "blk.3.attn_q.bias" """
    if name.endswith(_HEAD):
        return "output.weight"
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, suffix = name, "weight"
    place = ""
    if layer := _LAYER.fullmatch(stem):
        place, stem = f"blk.{layer['layer']}.", layer["stem"]
    slot = (_GEMMA_NAMES if gemma else _NAMES).get(stem)
    return name if slot is None else f"{place}{slot}.{suffix}"


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


def _halves(layer: str, part: int, stored: StoredTensor, file: MappedFile) -> Iterable[Tensor]:
    """Gate and up of all experts, from one tensor [n_experts, 2 * n, k]."""
    if len(stored.shape) != 3 or stored.shape[1] % 2 or 0 in stored.shape:
        raise FormatError(
            f"{file.path}: tensor {quote(stored.name)} has shape {list(stored.shape)}; expected "
            "[experts, 2 * n, k]"
        )
    n_experts, both, k = stored.shape
    nbytes = stored.nbytes // n_experts // 2
    for half, slot in enumerate(("gate", "up")):
        pieces = [
            (part, _piece(stored, stored.offset + (2 * expert + half) * nbytes, nbytes))
            for expert in range(n_experts)
        ]
        yield _tensor(f"{layer}.ffn_{slot}_exps.weight", pieces, (n_experts, both // 2, k), file)


def _piece(stored: StoredTensor, offset: int, nbytes: int) -> StoredTensor:
    return StoredTensor(stored.name, stored.dtype, stored.shape, offset, nbytes)


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
