"""The types of a file's tensors: one type for all matrices, or a mix that people know by name.

A mix such as Q4_K_M gives more bits to the matrices that matter most: attn_v, ffn_down of some
layers, and the one that makes the logits. The rules are those of llama-quantize, so that a file has
the types that its name promises.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np

from airllm.formats.ggml_types import INTEGER_TABLES, INTEGERS
from airllm.formats.model_file import ModelFile, Tensor
from airllm.formats.numbers import row_bytes
from airllm.util.shown import shown

__all__ = [
    "CONVERTIBLE",
    "FILE_TYPES",
    "MIXES",
    "ChosenTypes",
    "chosen_types",
    "file_type",
    "target_type",
]

_FINER = dict.fromkeys(("q4_0", "q4_1", "q5_0", "q5_1", "iq4_nl", "mxfp4"), "q8_0")

# Endings of matrices that stay F32. ssm_a, ssm_d and norms are vectors in effect; _ape has a vector
# for each token of a group, and _fn a few rows for the factors of hyper-connections.
_EXACT = (
    *(".bias", "ffn_gate_inp.weight", "ssm_conv1d.weight", "shortconv.conv.weight"),
    *("ple_conv1d.weight", "position_embd.weight"),
    *("_norm.weight", "ssm_a", "ssm_d", "_ape.weight", "_fn.weight"),
    *(f"ssm_conv1d_{part}.weight" for part in "qkv"),
)
# Small matrices that mixes leave as they are.
_KEPT = re.compile(r".*(altup|laurel|per_layer_model_proj).*|.*indexer\.[kq]_proj\.weight")
# What rows that are no whole blocks of 256 get: blocks of 32, with more bits.
_OF_32 = {"q2_k": "q4_0", "q3_k": "q4_0", "q4_k": "q5_0", "q5_k": "q5_1", "q6_k": "q8_0"}

_EMBEDDINGS = ("token_embd.weight", "per_layer_token_embd.weight")
_VALUES = ("attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")


@dataclass(frozen=True)
class _Model:
    """n_layers, n_experts, heads that share a key (of the first layer): of the metadata. large: of
    the Llama kind with 80 layers, whose attn_v is small for the model."""

    n_layers: int
    n_experts: int
    shared: int
    large: bool


# The type of a tensor by its number among n of its kind, None for the mix's own.
_Rule = Callable[[int, int, _Model], str | None]


@dataclass(frozen=True)
class Mix:
    """number: general.file_type. type: of the matrices that no rule gives another one. head: of the
    matrix that makes the logits. stacked: of matrices that are stacked, as those of experts."""

    number: int
    type: str
    attn_v: _Rule = lambda i, n, model: None
    ffn_down: _Rule = lambda i, n, model: None
    attn_output: str | None = None
    attn_output_of_8: str | None = "q5_k"  # of a model with 8 experts
    head: str = "q6_k"
    stacked: str | None = None


def _more_bits(i: int, n: int, model: _Model) -> str | None:
    """The first and the last eighth of the layers, and each third of those between."""
    return "q6_k" if i < n // 8 or i >= 7 * n // 8 or (i - n // 8) % 3 == 2 else None


def _always(type: str) -> _Rule:
    return lambda i, n, model: type


MIXES: Mapping[str, Mix] = MappingProxyType(
    {
        "q6_k": Mix(18, "q6_k", attn_output_of_8=None),
        "q5_k_m": Mix(17, "q5_k", _more_bits, _more_bits, attn_output_of_8=None),
        "q5_k_s": Mix(16, "q5_k", attn_output_of_8=None),
        "q4_k_m": Mix(15, "q4_k", _more_bits, _more_bits),
        "q4_k_s": Mix(
            14,
            "q4_k",
            lambda i, n, model: "q5_k" if i < 4 else None,
            lambda i, n, model: "q5_k" if i < n // 8 else None,
        ),
        "q3_k_l": Mix(13, "q3_k", _always("q5_k"), _always("q5_k"), "q5_k", None),
        "q3_k_m": Mix(
            12,
            "q3_k",
            lambda i, n, model: "q5_k" if i < 2 else "q4_k",
            lambda i, n, model: "q5_k" if i < n // 16 else "q4_k",
            "q4_k",
        ),
        "q3_k_s": Mix(11, "q3_k"),
        "q2_k": Mix(
            10,
            "q2_k",
            lambda i, n, model: "q4_k" if model.shared >= 4 else "q3_k",
            _always("q3_k"),
            "q3_k",
        ),
        "q2_k_s": Mix(
            21,
            "q2_k",
            lambda i, n, model: "q4_k" if model.shared >= 4 else None,
            lambda i, n, model: "q4_k" if i < n // 8 else None,
            attn_output_of_8=None,
        ),
        "mxfp4_moe": Mix(38, "q8_0", attn_output_of_8=None, head="q8_0", stacked="mxfp4"),
    }
)
_ALIASES = {"q3_k": "q3_k_m", "q4_k": "q4_k_m", "q5_k": "q5_k_m"}  # llama-quantize's

# Values of general.file_type: the type of most tensors in the file.
FILE_TYPES = {
    **{"f32": 0, "f16": 1, "bf16": 32},
    **{"q4_0": 2, "q4_1": 3, "q8_0": 7, "q5_0": 8, "q5_1": 9, "iq4_nl": 25, "mxfp4": 38},
    **{name: mix.number for name, mix in MIXES.items()},
}

# What a model can be converted to, from the most bits to the fewest.
CONVERTIBLE = (
    *("q8_0", "q6_k", "q5_k_m", "q5_k_s", "q5_1", "q5_0", "q4_k_m", "q4_k_s", "q4_1", "q4_0"),
    *("iq4_nl", "mxfp4", "mxfp4_moe", "q3_k_l", "q3_k_m", "q3_k_s", "q2_k", "q2_k_s"),
    *("f16", "bf16", "f32"),
)


@dataclass(frozen=True)
class ChosenTypes:
    """types: of every tensor, by name. fallbacks: (the type that the mix wants, the type), where
    rows are no whole blocks of the wanted type."""

    types: Mapping[str, str]
    fallbacks: Mapping[str, tuple[str, str]]


def file_type(type: str) -> int:
    """The value of general.file_type of a model of this type."""
    return FILE_TYPES[_ALIASES.get(type, type)]


def chosen_types(model: ModelFile, type: str, *, argument: str = "type") -> ChosenTypes:
    """The types that the tensors of `model` get in a model of `type`, as if all were float.

    Vectors, biases, short convolutions and the routers of experts are F32: they are a thousandth of
    a model and matter much. In a mix, other small matrices keep their type. The matrix that makes
    the logits (the embedding if no other is there) has at least 6 bit in a mix, otherwise 8.
    ValueError for an unknown type, which says the argument's name.
    """
    type = _ALIASES.get(type, type)
    if type not in FILE_TYPES:
        raise ValueError(f"{argument} is {shown(type)}; expected one of {', '.join(CONVERTIBLE)}")
    if type in MIXES:
        wanted = dict(_mixed(model, MIXES[type]))
    else:
        tied = _head(model) in _EMBEDDINGS
        wanted = {name: _plain(each, type, tied) for name, each in model.tensors.items()}
    types, fallbacks = {}, {}
    for name, want in wanted.items():
        types[name] = found = _whole_blocks(want, model.tensors[name].shape[-1])
        if found != want:
            fallbacks[name] = want, found
    return ChosenTypes(types, fallbacks)


def target_type(tensor: Tensor, wanted: str, *, tied: bool) -> str:
    """The type of a tensor in a model whose matrices all are `wanted`, which is no mix."""
    return _whole_blocks(_plain(tensor, wanted, tied), tensor.shape[-1])


def _plain(tensor: Tensor, wanted: str, tied: bool) -> str:
    if _is_vector(tensor):
        return "f32"
    if tensor.name.endswith(INTEGER_TABLES):
        return INTEGERS
    head = "token_embd.weight" if tied else "output.weight"
    return _FINER.get(wanted, wanted) if tensor.name == head else wanted


def _mixed(model: ModelFile, mix: Mix) -> Iterable[tuple[str, str]]:
    facts, head = _facts(model), _head(model)
    names = sorted(model.tensors, key=lambda name: (_layer(name), name))
    n_values, i_values, i_down = sum(name.endswith(_VALUES) for name in names), 0, 0
    for name in names:
        tensor = model.tensors[name]
        if _is_vector(tensor) or tensor.n_rows == 1:
            yield name, "f32"
            continue
        if name.endswith(INTEGER_TABLES):
            yield name, INTEGERS
            continue
        if _KEPT.fullmatch(name) or not name.endswith("weight"):
            yield name, tensor.type
            continue
        type: str | None = None
        if name == head or (name in _EMBEDDINGS and head in _EMBEDDINGS):
            type = mix.head if tensor.shape[-1] % 256 == 0 else "q8_0"
        elif mix.stacked is not None and len(tensor.shape) > 2 and tensor.shape[0] > 1:
            type = mix.stacked
        elif name.endswith(_VALUES):
            type = mix.attn_v(i_values, n_values, facts)
            if facts.large and (type or mix.type) in ("q3_k", "q4_k"):
                type = "q5_k"
            type = "q8_0" if facts.n_experts == 8 else type
            i_values += 1
        elif name.endswith("attn_k.weight"):
            type = "q8_0" if facts.n_experts == 8 else None
        elif "ffn_down" in name:
            layer = i_down if facts.n_experts <= 1 else _layer(name)
            type = mix.ffn_down(layer, facts.n_layers, facts)
            i_down += 1
        elif name.endswith("attn_output.weight"):
            type = mix.attn_output_of_8 if facts.n_experts == 8 else mix.attn_output
        yield name, type or mix.type


def _facts(model: ModelFile) -> _Model:
    metadata = model.metadata
    architecture = metadata.text("general.architecture", "")
    n_layers = metadata.integer(f"{architecture}.block_count", 0)
    n_heads, n_kv_heads = (
        _first(metadata.get(f"{architecture}.attention.head_count{suffix}"))
        for suffix in ("", "_kv")
    )
    large = architecture == "qwen2" or (architecture == "llama" and n_heads != n_kv_heads)
    return _Model(
        n_layers,
        metadata.integer(f"{architecture}.expert_count", 0),
        n_heads // (n_kv_heads or n_heads or 1),
        large and n_layers == 80,
    )


def _first(value: object) -> int:
    """Of a number, or of numbers for each layer; 0 if there is none."""
    values = np.atleast_1d(np.asarray(0 if value is None else value))
    return int(values[0]) if values.size and values.dtype.kind in "iu" else 0


def _head(model: ModelFile) -> str:
    """The matrix that makes the logits."""
    return "output.weight" if "output.weight" in model.tensors else "token_embd.weight"


def _is_vector(tensor: Tensor) -> bool:
    return len(tensor.shape) < 2 or tensor.name.endswith(_EXACT)


def _layer(name: str) -> int:
    found = re.match(r"blk\.(\d+)\.", name)
    return int(found[1]) if found else -1


def _whole_blocks(type: str, k: int) -> str:
    """`type`, or one whose blocks rows of k values fill."""
    for found in (type, _OF_32.get(type, "f16")):
        if row_bytes(found, k) is not None:
            return found
    return "f16"
