"""Translates Hugging Face's tensors to GGUF's: names, stacked experts, Gemma's norms plus 1."""

import functools
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from airllm.formats import hf_rearranged, hf_sources
from airllm.formats.hf_config import Change, HFConfig, Slots
from airllm.formats.hf_quantized import quantised
from airllm.formats.hf_sources import RowSource, Stored
from airllm.formats.mapped_file import MappedFile, quote
from airllm.formats.model_file import Made, Tensor, full_name
from airllm.formats.numbers import decode
from airllm.formats.safetensors import StoredTensor
from airllm.util.metadata import FormatError

__all__ = ["Shard", "Translated", "plus_one", "translate_tensors"]

_HEAD = "lm_head.weight"
_HEADS = re.compile(r"(.*\.)?lm_head\.(q?weight\w*|qzeros|scales|g_idx)")  # also quantised
_IN_LAYER = re.compile(r"\b(layers|h|blocks)\.(?P<layer>\d{1,5})\.")
_LAYER = re.compile(r"(layers|h|blocks)\.(?P<layer>\d{1,5})\.(?P<stem>.*)")
# Matrices that GGUF stacks: those of experts, and of Gemma 3n's streams. Parts that it joins: those
# of a table of n-grams.
_EXPERT = re.compile(
    r"(?P<before>(.*\bexperts|altup_\w+)\.|.*\bshard_)(?P<number>\d{1,5})(?P<after>(\..*)?)"
)
# The vision part of a model that sees pictures, next-token heads that are not used, and tables of
# rope and of attention's masks that older files have.
_LEFT_OUT = re.compile(
    r"(.*\.)?(vision_tower|vision_model|visual|multi_modal_projector|audio_tower|embed_vision"
    r"|vision_embedder"
    r"|vit_large_projector|embed_audio|patch_merge_mlp|mtp(_\w+)?|vision|aligner"
    r"|vision_adapter|vision_projection|vit|perceive)\..*"
    r"|image_\w+|.*\.rotary_emb\.inv_freq|(.*\.)?(attn|attention)\.(masked_)?bias"
)
_MTP = re.compile(r"(?:model\.)?mtp\.(?:layers\.(?P<number>\d{1,5})\.)?(?P<stem>.*)")
_OF_MTP = {  # what heads have beside their layers, as layers behind the last have it
    "fc": "eh_proj",
    "pre_fc_norm_embedding": "enorm",
    "pre_fc_norm_hidden": "hnorm",
    "norm": "shared_head.norm",
    "lm_head": "shared_head.head",
}
_NEXT_NAMES = {
    "eh_proj": "nextn.eh_proj",
    "enorm": "nextn.enorm",
    "hnorm": "nextn.hnorm",
    "embed_tokens": "nextn.embed_tokens",
    "shared_head.norm": "nextn.shared_head_norm",
    "final_layernorm": "layer_output_norm",  # Ling's name of the same
    "shared_head.head": "nextn.shared_head_head",
}
# Weights of convolutions of each channel by itself: [channels, 1, taps] in folders.
_CONV = re.compile(r"blk\.\d+\.((ssm|ple)_conv1d(_[qkv])?|shortconv\.conv)\.weight")
_NORM = re.compile(r".*norm(_key|_query|_conv)?\.weight")
# GGUF has the norms of these slots as folders have them; see HFConfig.plus_one.
_WHOLE_NORMS = ("ssm_norm.weight",)


@dataclass(frozen=True)
class Shard:
    """One file of weights, and the table of its tensors."""

    file: MappedFile
    table: Sequence[StoredTensor]


@dataclass(frozen=True)
class Translated:
    """tensors: with GGUF's names. made: what makes the bytes of tensors without extents. n_heads:
    of next-token heads among the tensors. numbers: what GGUF has as metadata, see HFConfig."""

    tensors: list[Tensor]
    made: dict[str, Made]
    n_heads: int = 0
    numbers: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def translate_tensors(folder: str, shards: Sequence[Shard], config: HFConfig) -> Translated:
    """All tensors of the shards with GGUF's names, and those that `config` adds.

    A tensor that GGUF has no name for keeps its own; check_tensors refuses it by that name.
    FormatError for a type other than F32, F16, BF16 and those of config.quantization, for a tensor
    that two files have, and for missing experts.
    """
    tensors: dict[str, Tensor] = {}
    made: dict[str, Made] = {}
    experts: dict[str, dict[int, RowSource]] = defaultdict(dict)
    parts: set[str] = set()  # those of `experts` that are joined, not stacked
    prefix = _prefix(folder, shards, config)

    def put(name: str, source: RowSource) -> None:
        if len(source.shape) == 2 and source.shape[0] == 1:  # GGUF files have a vector
            source = replace(source, shape=source.shape[1:])
        if name.split(".")[-1] in config.columns:
            source = hf_rearranged.column(source)
        if _CONV.fullmatch(name):
            source = hf_rearranged.channels(source)
        add(source.tensor(name), source.made)
        if source.scale:
            own = f"{name.removesuffix('.weight')}.scale"
            values = np.array(source.scale, np.float32)
            n_bytes = values.nbytes
            tensor = Tensor(own, "f32", values.shape, n_bytes, n_bytes, ())
            add(tensor, Made(functools.partial(_bytes_of, values)))

    def add(tensor: Tensor, how: Made | None) -> None:
        if tensor.name in tensors:
            raise FormatError(f"{folder}: there are two tensors for {quote(tensor.name)}")
        tensors[tensor.name] = tensor
        if how is not None:
            made[tensor.name] = how

    stored = _stored(folder, shards, config)
    numbers = _numbers(folder, stored, config)
    for source, place in _places(stored, config, prefix):
        [first, *others] = place.slots.names
        if place.expert is not None:
            of_slot = experts[first]
            if place.expert in of_slot:
                raise FormatError(f"{folder}: there are two tensors {quote(source.name)}")
            of_slot[place.expert] = source
            if place.slots.joined:
                parts.add(first)
        elif place.slots.head_rows is not None:
            of_heads = hf_rearranged.of_heads(source, place.slots.head_rows)
            for name, part in zip(place.slots.names, of_heads, strict=True):
                put(name, part)
        elif place.slots.head_parts:
            for index, name in enumerate(place.slots.names):
                put(name, hf_rearranged.of_head_parts(source, place.slots.head_parts, index))
        elif others:
            for name, part in _shared_out(place.slots, source):
                put(name, part)
        elif place.slots.rows:
            put(first, hf_rearranged.padded(source, place.slots.rows))
        elif (change := _change(first, config)) is not None:
            put(first, _changed(source, change))
        else:
            put(first, source)
    for name, by_number in experts.items():
        made_of = hf_rearranged.joined if name in parts else hf_rearranged.stacked
        put(name, made_of(name, _in_order(folder, name, by_number)))
    for name, values in config.tensors.items():
        tensors[name] = Tensor(name, "f32", values.shape, values.nbytes, values.nbytes, ())
        made[name] = Made(functools.partial(_bytes_of, values))
    heads = [i for i in config.further if f"blk.{i}.nextn.eh_proj.weight" in tensors]
    n_heads = heads[-1] + 1 - config.further.start if heads else 0
    if not heads:  # what is left of a head that somebody took out
        rest = tuple(f"blk.{i}." for i in config.further)
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith(rest)}
        made = {name: each for name, each in made.items() if name in tensors}
    return Translated(list(tensors.values()), made, n_heads, numbers)


def _stored(folder: str, shards: Sequence[Shard], config: HFConfig) -> dict[str, Stored]:
    """The tensors of the shards that the language model needs, by name."""
    found: dict[str, Stored] = {}
    for part, shard in enumerate(shards):
        for entry in shard.table:
            name = entry.name
            if config.heads == "mtp" and _MTP.fullmatch(name):
                pass
            elif _LEFT_OUT.fullmatch(name) or (config.tied and _HEADS.fullmatch(name)):
                continue
            if name in found:
                raise FormatError(f"{folder}: there are two tensors {quote(name)}")
            stored = Stored(part, shard.file, entry)
            constant = next((key for key in config.constants if name.endswith(f".{key}")), None)
            if constant is None:
                found[name] = stored
            else:
                _check_constant(stored, config.constants[constant])
    return found


def _numbers(
    folder: str, tensors: dict[str, Stored], config: HFConfig
) -> dict[str, NDArray[np.float32]]:
    """Takes the tensors of config.numbers out: a number of each layer, by GGUF's key."""
    found: dict[str, NDArray[np.float32]] = {}
    n_layers = config.further.start
    for stem, key in config.numbers.items():
        of_layers = {}
        for name in [name for name in tensors if name.endswith(f".{stem}")]:
            stored, layer = tensors.pop(name), _IN_LAYER.search(name)
            stored.expect_dtype(*hf_sources.FLOAT_TYPES)
            if stored.shape not in ((), (1,)) or layer is None:
                raise stored.fault(f"has shape {list(stored.shape)}; expected a number of a layer")
            of_layers[int(layer["layer"])] = stored.floats(0, 1)[0, 0]
        if sorted(of_layers) != list(range(n_layers)):
            raise FormatError(f"{folder}: expected a tensor {stem} in each of {n_layers} layers")
        found[key] = np.array([of_layers[layer] for layer in range(n_layers)], np.float32)
    return found


def _check_constant(stored: Stored, expected: NDArray[np.int64]) -> None:
    stored.expect_dtype("I64")
    stored.expect_shape(*expected.shape)
    values = stored.read(0, 1).reshape(-1).view("<i8")
    if not np.array_equal(values, expected):
        raise stored.fault("differs from what config.json says of it")


def _places(
    tensors: dict[str, Stored], config: HFConfig, prefix: str
) -> Iterator[tuple[RowSource, "_Place"]]:
    """Each tensor, quantised or not, and its place."""
    matrices: list[RowSource] = []
    floats = list(tensors.values())
    if config.quantization is not None:
        matrices, floats = quantised(tensors, config.quantization)
    for source in matrices:
        place = _place(source.name.removeprefix(prefix), config)
        if place is not None:
            yield source, place
    for stored in floats:
        place = _place(stored.name.removeprefix(prefix), config)
        if place is not None:
            if place.slots.below:
                yield hf_sources.integers(stored, place.slots.below), place
                continue
            slots = place.slots
            stored = stored.stacked(slots.matrices) if slots.matrices else stored
            others = bool(slots.columns) and stored.shape[-1:] != (slots.columns,)
            turned = slots.transposed or others
            yield (hf_rearranged.transposed if turned else hf_sources.plain)(stored), place


def _bytes_of(values: NDArray[np.float32], first: int, end: int) -> NDArray[np.uint8]:
    return values.astype("<f4").reshape(-1, values.shape[-1]).view(np.uint8)[first:end]


@dataclass(frozen=True)
class _Place:
    """slots: the names of the tensor in GGUF. expert: its number, if it is the matrix of one
    expert."""

    slots: Slots
    expert: int | None = None


def _place(name: str, config: HFConfig) -> _Place | None:
    """Of "layers.3.self_attn.q_proj.bias": blk.3.attn_q.bias. None for a tensor to leave out."""
    names = config.names
    head = _MTP.fullmatch(name) if config.heads == "mtp" else None
    if head is not None:
        name = _as_layer(head, config.further.start)
    if name.endswith(_HEAD):
        return _Place(Slots(("output.weight",)))
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        stem, suffix = name, "weight"
    before, number, whole = "", None, stem
    if layer := _LAYER.fullmatch(stem):
        before, stem = f"blk.{int(layer['layer'])}.", layer["stem"]
        if int(layer["layer"]) in config.further:
            if not config.heads:
                return None
            if config.heads == "mtp" and head is None:
                return _Place(Slots((name,)))  # one layer more than config.json says
            names = {**names, **_NEXT_NAMES}
    if expert := _EXPERT.fullmatch(stem):
        number, stem = int(expert["number"]), f"{expert['before']}*{expert['after']}"
    keys = whole, f"{stem}.{suffix}", stem
    slots = next((names[key] for key in keys if key in names), None)
    if slots is None:
        return _Place(Slots((name,)))
    if not isinstance(slots, Slots):
        slots = Slots((slots,) if isinstance(slots, str) else slots)
    before = "" if slots.joined else before
    of_gguf = tuple(f"{before}{full_name(slot, suffix)}" for slot in slots.names)
    return _Place(replace(slots, names=of_gguf), number)


def _as_layer(head: re.Match[str], n_layers: int) -> str:
    """The name of a tensor of a head, as those of layers behind the last are named."""
    stem = head["stem"]
    if head["number"] is None:
        first, _, suffix = stem.rpartition(".")
        stem = f"{_OF_MTP.get(first, first)}.{suffix}"
    return f"layers.{n_layers + int(head['number'] or 0)}.{stem}"


def _prefix(folder: str, shards: Sequence[Shard], config: HFConfig) -> str:
    """The prefix of the language model: "model.", or "language_model.model." if it is a part."""
    stems = [stem for stem, slot in config.names.items() if slot == "token_embd"]
    end = re.compile(rf"(|.*\.)({'|'.join(map(re.escape, stems))})\.weight")
    names = (stored.name for part in shards for stored in part.table)
    # A next-token head may have an embedding, too.
    names = (n for n in names if not _LEFT_OUT.fullmatch(n) and not _IN_LAYER.search(n))
    prefixes = [found[1] for name in names if (found := end.fullmatch(name))]
    if len(prefixes) != 1:
        raise FormatError(f"{folder}: has {len(prefixes)} tensors {stems[-1]}.weight; expected one")
    return prefixes[0]


def _in_order(folder: str, name: str, numbered: dict[int, RowSource]) -> list[RowSource]:
    """The matrices of all experts, or all parts of a table."""
    if sorted(numbered) != list(range(len(numbered))):
        missing = next(number for number in range(len(numbered)) if number not in numbered)
        what = "expert" if "_exps" in name else "part"
        raise FormatError(f"{folder}: {what} {missing} of {name} is missing")
    return [numbered[number] for number in range(len(numbered))]


def _shared_out(slots: Slots, source: RowSource) -> Iterable[tuple[str, RowSource]]:
    """Shares a tensor's rows out among the names. Of three axes, the first counts experts, and each
    expert's rows are shared out. A bias of experts is [n_experts, n]."""
    names, shape, n_dims = slots.names, source.shape, len(source.shape)
    bias = slots.alternate and names[0].endswith(".bias")
    axis = n_dims - 1 if bias else max(n_dims - 2, 0)  # of the rows
    if n_dims not in (1, 2, 3) or shape[axis] % len(names):
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} has shape {list(shape)}; expected "
            f"rows for {len(names)} tensors: {', '.join(names)}"
        )
    for index, name in enumerate(names):
        if slots.alternate:
            part = hf_rearranged.alternate(source, len(names), index, bias=bias)
        else:
            n_matrices = shape[0] if n_dims == 3 else 1
            part = hf_rearranged.sliced(source, len(names), index, n_matrices)
        yield name, part


def _change(name: str, config: HFConfig) -> Change | None:
    """What GGUF's values of the tensor are, given the folder's; None: the same."""
    if config.plus_one and _NORM.fullmatch(name) and not name.endswith(_WHOLE_NORMS):
        return plus_one
    return config.changed.get(name.removesuffix(".weight").split(".")[-1])


def plus_one(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of the weight of a norm: Gemma multiplies by 1 + weight, and GGUF stores the sum."""
    return values + np.float32(1.0)


def _changed(source: RowSource, change: Change) -> RowSource:
    if source.scale:
        raise FormatError(
            f"{source.file.path}: tensor {quote(source.name)} is quantised; expected floats"
        )

    def rows(first: int, end: int) -> NDArray[np.uint8]:
        values = change(decode(source.rows(first, end), source.type))
        return values.astype("<f4", copy=False).view(np.uint8)

    return replace(source, type="f32", extents=(), rows=rows, sources=source.extents)
