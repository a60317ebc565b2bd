"""Translates Hugging Face's config.json to the metadata of a GGUF file of the same model.

Names and defaults are those of the configuration classes of `transformers`. A setting that would
change the arithmetic in an unknown way is refused by name: the model would run and be wrong.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from airllm.formats.hf_config import (
    MOST_HEADS,
    ROPE_INTERLEAVED,
    Change,
    Heads,
    HFConfig,
    Names,
)
from airllm.formats.hf_quantization import read_quantization
from airllm.models.config import Mixer
from airllm.models.hf_rope import translate_rope
from airllm.util.metadata import Metadata

__all__ = [
    "EXPERT_NAMES",
    "NAMES",
    "SHARED_EXPERT_NAMES",
    "SPARSE_NAMES",
    "HFReader",
    "HuggingFace",
    "Values",
]

# Keys with these parts change the arithmetic.
_ARITHMETIC = re.compile(
    "scal|multipl|softcap|capping|rope|rotary|window|expert|moe|norm|_act|layer_types|sparse"
    "|bidirectional|quantization|alibi|qk_|clip|logit|bias|top_k|topk|n_group"
    "|conv|mamba|ssm|time_step|block_|pattern|latent|index_|indexer"
)
_HARMLESS = frozenset(
    [
        # The tensors of a layer show whether it has biases.
        *("attention_bias", "mlp_bias", "qkv_bias"),
        # Settings of training, and settings without effect.
        *("initializer_range", "router_aux_loss_coef", "output_router_logits", "pretraining_tp"),
        *("rope_interleaved", "num_logits_to_keep", "router_jitter_noise"),
    ]
)
FULL, SLIDING = "full_attention", "sliding_attention"  # of layer_types

NAMES: Names = {
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
}
EXPERT_NAMES: Names = {
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.*.gate_proj": "ffn_gate_exps",
    "mlp.experts.*.up_proj": "ffn_up_exps",
    "mlp.experts.*.down_proj": "ffn_down_exps",
    # All experts in one tensor: newer versions of transformers may write these.
    "mlp.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "mlp.experts.down_proj": "ffn_down_exps",
}
# Of an expert that all tokens use.
SHARED_EXPERT_NAMES: Names = {
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
SPARSE_NAMES: Names = {  # of Mixtral and its like
    "block_sparse_moe.gate": "ffn_gate_inp",
    "block_sparse_moe.experts.*.w1": "ffn_gate_exps",
    "block_sparse_moe.experts.*.w3": "ffn_up_exps",
    "block_sparse_moe.experts.*.w2": "ffn_down_exps",
}


class HFReader(Metadata):
    """A config.json that remembers which of its keys were read."""

    def __init__(self, source: str, values: Mapping[str, object]) -> None:
        super().__init__(source, values)
        self.read: set[str] = set(_HARMLESS)

    def ignore(self, *keys: str) -> None:
        """Accept keys whose values make no difference here."""
        self.read |= set(keys)

    def __getitem__(self, key: str) -> object:
        self.read.add(key)
        return super().__getitem__(key)

    def _get(self, key: str, default: object) -> object:
        self.read.add(key)
        return super()._get(key, default)

    def unread(self) -> list[str]:
        """The keys that have a value other than 0, false or none, and that were not read."""
        return [key for key, value in self._values.items() if value and key not in self.read]

    def expect(self, key: str, *allowed: object) -> None:
        """Refuse a key whose value is not implemented. None among `allowed`: it may be missing."""
        value = self.get(key)
        self.read.add(key)
        if value not in allowed:
            wanted = " or ".join(repr(each) for each in allowed if each is not None)
            raise self.fault(f"{key} is {str(value)[:80]!r}; expected {wanted}")

    def sliding(self, period: int = 0, said: int = 0) -> dict[str, object]:
        """GGUF's keys of the window and of the layers that have it, as layer_types says.

        period: of so many layers the last sees all positions, as readers of GGUF assume; 0: all
        layers have the window. said: the period of this folder, if layer_types does not say.
        """
        if self.get("sliding_window") is None:
            return {}
        n_layers = self.integer("num_hidden_layers", low=1, high=2**12)
        window: dict[str, object] = {"attention.sliding_window": self.integer("sliding_window")}
        usual, local = (
            np.array([not every or i % every != every - 1 for i in range(n_layers)], bool)
            for every in (period, said or period)
        )
        local = self.local_layers(local)
        if (local == usual).all():
            return window
        return {**window, "attention.sliding_window_pattern": local}

    def local_layers(self, default: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """bool [n_layers]: whether layer_types says that it has a window. default: likewise."""
        usual = [SLIDING if local else FULL for local in default.tolist()]
        kinds = self.layer_kinds((FULL, SLIDING), usual)
        return np.array([each == SLIDING for each in kinds], bool)

    def layer_kinds(
        self, allowed: Sequence[str], default: Sequence[str] | None = None, *, heads: bool = False
    ) -> list[str]:
        """What layer_types says of each layer. default: where there is no layer_types; None: it is
        required. heads: it may say something of next-token heads behind the layers, too."""
        if default is not None and self.get("layer_types") is None:
            return list(default)
        n_layers = self.integer("num_hidden_layers", low=1, high=2**12)
        kinds = self.texts("layer_types")
        right = len(kinds) >= n_layers if heads else len(kinds) == n_layers
        if not right or set(kinds) - set(allowed):
            raise self.fault(
                f"layer_types does not say of each of {n_layers} layers which of "
                f"{', '.join(allowed)} it is"
            )
        return kinds[:n_layers]

    def rotating_share(self, kind: str) -> float | None:
        """The share of a head that rotates in layers of that kind, if rope_parameters says it."""
        parameters = self.get("rope_parameters")
        own = parameters.get(kind) if isinstance(parameters, dict) else None
        if not isinstance(own, dict) or "partial_rotary_factor" not in own:
            return None
        return Metadata(self.source, own).number("partial_rotary_factor")

    def of_layers(self, key: str, n_layers: int) -> int | NDArray[np.int32]:
        """One number for all layers, or a list of one for each."""
        value = self.get(key)
        if not isinstance(value, list):
            return self.integer(key)
        if len(value) != n_layers or not all(
            type(each) is int and 0 <= each < 2**31 for each in value
        ):
            raise self.fault(f"{key} is no list of {n_layers} integers, one for each layer")
        return np.array(value, np.int32)

    def mixers(self, names: Mapping[str, Mixer]) -> list[Mixer]:
        """How each layer sees earlier tokens. names: of the mixers in layer_types."""
        return [names[each] for each in self.layer_kinds(list(names))]

    def heads_of(self, mixers: Sequence[Mixer]) -> dict[str, object]:
        """GGUF's key of KV heads, which says which layers have attention."""
        heads = self.integer("num_key_value_heads", self.integer("num_attention_heads"), low=1)
        found = np.array([heads * (mixer == "attention") for mixer in mixers], np.int32)
        return {"attention.head_count_kv": found}

    def dense_layers(self, default: int) -> int:
        """How many layers without experts come first. FormatError if others have none."""
        n_layers = self.integer("num_hidden_layers", low=1, high=2**12)
        said = self.integer("first_k_dense_replace", default, high=n_layers)
        if "mlp_layer_types" not in self:
            return said
        return self.first_layers("dense", "sparse", n_layers)

    def first_layers(self, first: str, rest: str, n_layers: int) -> int:
        """How many layers of mlp_layer_types are `first`. FormatError unless all behind them are
        `rest`."""
        kinds = self.texts("mlp_layer_types")
        count = kinds.index(rest) if rest in kinds else len(kinds)
        if kinds != [first] * count + [rest] * (n_layers - count):
            raise self.fault(
                f"mlp_layer_types is no list of {n_layers} {first}, then {rest} layers"
            )
        return count

    def no_window(self) -> dict[str, object]:
        """No keys; layers with a window are refused."""
        self.ignore("sliding_window", "max_window_layers", "use_sliding_window", "layer_types")
        types = self.texts("layer_types") if "layer_types" in self else [FULL]
        if self.get("use_sliding_window") or set(types) - {FULL}:
            kind = self.get("model_type", "these")
            raise self.fault(f"asks for layers with a window, which {kind} models here do not have")
        return {}

    def experts(self, *, size: str = "moe_intermediate_size") -> dict[str, object]:
        """GGUF's keys of a mixture. size: the key of an expert's intermediate size."""
        names = ("num_experts", "num_local_experts", "n_routed_experts")
        key = next((name for name in names if name in self), names[0])
        return {
            "expert_count": self.integer(key),
            "expert_used_count": self.integer("num_experts_per_tok"),
            "expert_feed_forward_length": self.integer(size),
        }

    def expert_groups(self) -> dict[str, object]:
        """GGUF's keys of the groups from which a router takes experts; one group: from all."""
        return {
            "expert_group_count": self.integer("n_group", 1),
            "expert_group_used_count": self.integer("topk_group", 1),
        }


def _narrow(value: object) -> object:
    """llama.cpp reads arrays of 32-bit integers, and no wider ones."""
    if isinstance(value, np.ndarray) and value.dtype == np.int64:
        narrow = value.astype(np.int32)
        return narrow if (narrow == value).all() else value
    return value


# GGUF's keys, without the architecture, and their values.
Values = Callable[[HFReader], dict[str, object]]


def _nothing(config: HFReader) -> dict[str, object]:
    return {}


@dataclass(frozen=True)
class HuggingFace:
    """Folders of one model_type.

    model_type: of config.json. pictures: the model_type of models that see pictures, whose
    text_config is such a folder's configuration.
    architecture: GGUF's, which may depend on config.json.
    values: GGUF's keys (without the architecture) that only this family has, from config.json; None
    for a key that it has not.
    names: of tensors, beyond NAMES; see HFConfig. They may depend on config.json.
    changed, columns: see HFConfig.
    activation: the only one that is implemented, perhaps by several names.
    tied, defaults: of the configuration class, which may make defaults of other keys.
    own: keys of this package, whose values folders of this family have.
    numbers: names of tensors of one number in a layer's part, and GGUF's whole key of such numbers.
    constants: of GGUF's keys, the names of tensors in a layer's part, int64, that say the same.
    rope_interleaved: whether rope's pairs are neighbours. gguf_interleaved: likewise in the
    family's GGUF files, whose converter may reorder the rows of Q and K.
    full_head_dim: the width of a head in layers without a window, if others differ from it.
    norm_eps: the key of the norms' epsilon, and GGUF's name of it.
    heads, of_heads: of next-token heads, see HFConfig.
    made: tensors that GGUF files have in place of numbers of config.json.
    """

    model_type: str
    architecture: str | Callable[[HFReader], str]
    values: Values = _nothing
    names: Names | Callable[[HFReader], Names] = field(default_factory=dict)
    changed: Mapping[str, Change] = field(default_factory=dict)
    columns: frozenset[str] = frozenset()
    activation: str | tuple[str, ...] = "silu"
    tied: bool = False
    defaults: Mapping[str, object] | Callable[[Metadata], Mapping[str, object]] = field(
        default_factory=dict
    )
    own: Mapping[str, object] = field(default_factory=dict)
    pictures: str = ""
    plus_one: bool = False
    constants: Mapping[str, str] = field(default_factory=dict)
    numbers: Mapping[str, str] = field(default_factory=dict)
    rope_interleaved: bool = False
    gguf_interleaved: bool = False
    full_head_dim: Callable[[HFReader], int] | None = None
    norm_eps: tuple[str, str] = ("rms_norm_eps", "attention.layer_norm_rms_epsilon")
    heads: Heads = ""
    of_heads: Mapping[str, object] = field(default_factory=dict)
    made: Callable[[HFReader], Mapping[str, NDArray[np.float32]]] = lambda config: {}

    def translate(self, config: Metadata) -> HFConfig:
        """FormatError names a key that is missing or has a value that is not implemented."""
        r = HFReader(config.source, self._with_defaults(config))
        quantization = read_quantization(r)
        allowed = (self.activation,) if isinstance(self.activation, str) else self.activation
        for key in ("hidden_act", "hidden_activation"):
            r.expect(key, None, *allowed)
        hidden_size, n_heads = (
            r.integer("hidden_size", low=1),
            r.integer("num_attention_heads", low=1),
        )
        n_layers = r.integer("num_hidden_layers", low=1, high=2**12)
        least = 1 if self.full_head_dim is None else 0  # full_head_dim adds to 0
        head_dim = r.integer("head_dim", hidden_size // n_heads, low=least)
        if self.full_head_dim is not None:
            head_dim = self.full_head_dim(r)
        eps, gguf_eps = self.norm_eps
        values: dict[str, object] = {
            "block_count": n_layers,
            "context_length": r.integer("max_position_embeddings"),
            "embedding_length": hidden_size,
            "feed_forward_length": r.of_layers("intermediate_size", n_layers),
            "attention.head_count": n_heads,
            "attention.head_count_kv": r.integer("num_key_value_heads", n_heads),
            "attention.key_length": head_dim,
            "attention.value_length": head_dim,
            gguf_eps: r.number(eps),
            "vocab_size": r.integer("vocab_size"),
        }
        rope = translate_rope(r, head_dim)
        values |= rope.values | self.values(r)
        values = {key: _narrow(value) for key, value in values.items() if value is not None}
        tensors = {**rope.tensors, **self.made(r)}
        self._refuse_unknown(r)
        architecture = (
            self.architecture if isinstance(self.architecture, str) else self.architecture(r)
        )
        metadata: dict[str, object] = {"general.architecture": architecture}
        metadata |= {f"{architecture}.{key}": value for key, value in values.items()}
        metadata |= {**rope.own, **self.own}
        if self.rope_interleaved != self.gguf_interleaved:
            metadata[ROPE_INTERLEAVED] = self.rope_interleaved
        tied = r.flag("tie_word_embeddings", self.tied)
        own = self.names(r) if callable(self.names) else self.names
        n_heads = MOST_HEADS  # not every config.json says how many heads are named "mtp."
        if self.heads != "mtp":
            n_heads = r.integer("num_nextn_predict_layers", 0, high=MOST_HEADS)
        further = range(n_layers, n_layers + n_heads)
        names = {**NAMES, **own}
        constants = {
            name: np.asarray(values[key], np.int64)
            for key, name in self.constants.items()
            if key in values
        }
        made = (tied, tensors, quantization, self.changed, self.columns, constants, self.numbers)
        return HFConfig(
            metadata, names, further, self.heads, self.plus_one, *made, of_heads=self.of_heads
        )

    def _with_defaults(self, config: Metadata) -> dict[str, object]:
        """null means the default, but for a cap it means no cap."""
        said = {
            key: 0.0 if key.endswith("capping") and value is None else value
            for key, value in config.items()
        }
        defaults = self.defaults(config) if callable(self.defaults) else self.defaults
        return {**defaults, **{key: value for key, value in said.items() if value is not None}}

    def _refuse_unknown(self, r: HFReader) -> None:
        for key in r.unread():
            if _ARITHMETIC.search(key):
                raise r.fault(
                    f"{key[:80]} asks for something that {self.model_type} models do not do"
                )
