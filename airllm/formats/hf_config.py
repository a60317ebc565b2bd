"""Translates Hugging Face's config.json to the metadata of a GGUF file of the same model.

Names and defaults are those of the configuration classes of `transformers`. A setting that would
change the arithmetic in an unknown way is refused by name: the model would run and be wrong.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from airllm.util.metadata import Metadata

__all__ = ["HFConfig", "translate"]

# Keys with these parts change the arithmetic.
_ARITHMETIC = re.compile(
    "scal|multipl|softcap|capping|rope|rotary|window|expert|moe|norm|_act|layer_types|sparse"
    "|bidirectional|quantization|alibi|qk_|logit|bias"
)
_KNOWN = frozenset(
    [
        *("hidden_act", "hidden_activation", "rms_norm_eps", "initializer_range"),
        *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq"),
        *("sliding_window", "use_sliding_window", "max_window_layers", "layer_types"),
        *("sliding_window_pattern", "_sliding_window_pattern"),
        *("attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar"),
        *("num_experts", "num_local_experts", "num_experts_per_tok", "moe_intermediate_size"),
        *("norm_topk_prob", "decoder_sparse_step"),
        # The tensors of a layer show whether it has biases or experts.
        *("attention_bias", "mlp_bias", "mlp_only_layers"),
        # Settings of training, and settings without effect.
        *("router_aux_loss_coef", "output_router_logits", "rope_interleaved", "pretraining_tp"),
        "num_logits_to_keep",
    ]
)

_CAPS = ("attn_logit_softcapping", "final_logit_softcapping")


@dataclass(frozen=True)
class _Family:
    """What is particular to a model_type, and the defaults of its configuration class."""

    arch: str  # GGUF's name
    activation: str = "silu"
    tied: bool = False
    default: Mapping[str, object] = field(default_factory=dict)

    @property
    def gemma(self) -> bool:
        return self.arch.startswith("gemma")


_GEMMA = {"head_dim": 256, "query_pre_attn_scalar": 256, "sliding_window": 4096}
_FAMILIES = {
    "llama": _Family("llama"),
    "mistral": _Family("llama"),
    "qwen2": _Family("qwen2"),
    "qwen3": _Family("qwen3", default={"head_dim": 128}),
    "qwen3_moe": _Family("qwen3moe", default={"norm_topk_prob": False}),
    "gemma2": _Family(
        "gemma2",
        "gelu_pytorch_tanh",
        tied=True,
        default=_GEMMA | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3_text": _Family(
        "gemma3",
        "gelu_pytorch_tanh",
        tied=True,
        # Files of the larger models have only the keys that differ from the class's defaults.
        default=_GEMMA
        | {"num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 131072}
        | {"rope_theta": 1e6, "rope_local_base_freq": 10000.0, "rms_norm_eps": 1e-6}
        | {"sliding_window_pattern": 6, "vocab_size": 262208},
    ),
}


@dataclass(frozen=True)
class HFConfig:
    """metadata: GGUF's keys and values. gemma: the weights of norms are stored without the 1 that
    GGUF files add. tied: the output matrix is the embedding. rope_factors: float32 [head_dim / 2],
    the divisors of the frequencies in Llama 3's scaling; None without that scaling."""

    metadata: dict[str, object]
    gemma: bool
    tied: bool
    rope_factors: NDArray[np.float32] | None


def translate(config: Metadata) -> HFConfig:
    """FormatError names a key that is missing or has a value that is not implemented."""
    kind = config.text("model_type")
    inner = config.get("text_config")
    if kind == "gemma3" and isinstance(inner, dict):  # the vision tower is left out
        kind, config = "gemma3_text", Metadata(config.source, inner)
    family = _FAMILIES.get(kind)
    if family is None:
        raise config.fault(
            f"model_type {kind[:80]!r} is not supported; supported: {', '.join(sorted(_FAMILIES))}"
        )
    _refuse_unknown(config, family)
    config = _with_defaults(config, family)
    arch, hidden_size = family.arch, config.integer("hidden_size", low=1)
    n_heads = config.integer("num_attention_heads", low=1)
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    head_dim = config.integer("head_dim", hidden_size // n_heads, low=1)
    values: dict[str, object] = {
        "block_count": n_layers,
        "context_length": config.integer("max_position_embeddings"),
        "embedding_length": hidden_size,
        "feed_forward_length": config.integer("intermediate_size"),
        "attention.head_count": n_heads,
        "attention.head_count_kv": config.integer("num_key_value_heads", n_heads),
        "attention.key_length": head_dim,
        "attention.value_length": head_dim,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps"),
        "rope.dimension_count": head_dim,
        "vocab_size": config.integer("vocab_size"),
    }
    values |= _windows(config, kind, n_layers)
    values |= _experts(config) if arch == "qwen3moe" else {}
    values |= _gemma_scales(config) if family.gemma else {}
    rope, factors = _rope(config, kind, head_dim)
    values |= rope
    metadata = {f"{arch}.{key}": value for key, value in values.items()}
    return HFConfig(
        {"general.architecture": arch, **metadata},
        family.gemma,
        config.flag("tie_word_embeddings", family.tied),
        factors,
    )


def _with_defaults(config: Metadata, family: _Family) -> Metadata:
    """Fills in defaults. null means the default, but for caps it means no cap."""
    said = {key: 0.0 if key in _CAPS and value is None else value for key, value in config.items()}
    said = {key: value for key, value in said.items() if value is not None}
    return Metadata(config.source, {**family.default, **said})


def _refuse_unknown(config: Metadata, family: _Family) -> None:
    quantization = config.get("quantization_config")
    if quantization:
        method = quantization.get("quant_method") if isinstance(quantization, dict) else None
        raise config.fault(
            f"the weights are quantised (quantization_config: {method}); only F32, F16 and BF16 "
            "folders are supported"
        )
    for key, value in config.items():
        if value and key not in _KNOWN and _ARITHMETIC.search(key):
            raise config.fault(f"{key[:80]} asks for something that {family.arch} models do not do")
    for key in ("hidden_act", "hidden_activation"):
        if config.get(key) not in (None, family.activation):
            raise config.fault(f"{key} is {config[key]!r}; expected {family.activation!r}")


def _windows(config: Metadata, kind: str, n_layers: int) -> dict[str, object]:
    """Which layers have a window, and its width. transformers has several ways to say so."""
    types = config.texts("layer_types") if "layer_types" in config else None
    if kind not in ("mistral", "gemma2", "gemma3_text"):
        if config.get("use_sliding_window") or (types is not None and set(types) != {_FULL}):
            raise config.fault(
                f"asks for layers with a window, which {kind} models here do not have"
            )
        return {}
    if "sliding_window" not in config:
        return {}
    window: dict[str, object] = {"attention.sliding_window": config.integer("sliding_window")}
    if kind == "mistral":
        return window
    if types is not None:
        if len(types) != n_layers or set(types) - {_FULL, "sliding_attention"}:
            raise config.fault(
                f"layer_types does not say of each of {n_layers} layers whether it has a window"
            )
        local = np.array([each != _FULL for each in types], bool)
    else:
        period = 2 if kind == "gemma2" else _period(config)
        local = np.arange(n_layers) % period != period - 1
    usual = 2 if kind == "gemma2" else 6  # the pattern that readers of GGUF assume
    if (local == (np.arange(n_layers) % usual != usual - 1)).all():
        return window
    return {**window, "attention.sliding_window_pattern": local}


_FULL = "full_attention"


def _period(config: Metadata) -> int:
    older = "sliding_window_pattern"
    return config.integer(f"_{older}" if f"_{older}" in config else older, low=1)


def _experts(config: Metadata) -> dict[str, object]:
    key = "num_experts" if "num_experts" in config else "num_local_experts"
    return {
        "expert_count": config.integer(key),
        "expert_used_count": config.integer("num_experts_per_tok"),
        "expert_feed_forward_length": config.integer("moe_intermediate_size"),
        "expert_weights_norm": config.flag("norm_topk_prob"),
    }


def _gemma_scales(config: Metadata) -> dict[str, object]:
    scalar = config.number("query_pre_attn_scalar")
    if scalar <= 0:
        raise config.fault(f"query_pre_attn_scalar is {scalar}; expected it above 0")
    values: dict[str, object] = {"attention.scale": scalar**-0.5}
    return values | {key: config.number(key) for key in _CAPS if key in config}


def _rope(
    config: Metadata, kind: str, head_dim: int
) -> tuple[dict[str, object], NDArray[np.float32] | None]:
    """GGUF's keys of rope, and Llama 3's factors. Older files have rope_theta and rope_scaling.
    Newer files have rope_parameters, one for each kind of layer if the kinds differ."""
    parameters = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or not isinstance(scaling, dict):
        raise config.fault("rope_parameters or rope_scaling is no object")
    local_theta = config.get("rope_local_base_freq")
    if "full_attention" in parameters:
        local = parameters.get("sliding_attention") or {}
        parameters = parameters["full_attention"]
        if not isinstance(local, dict) or not isinstance(parameters, dict):
            raise config.fault("rope_parameters is no object for each kind of layer")
        if local.get("rope_type", "default") != "default":
            raise config.fault("rope_parameters scales layers with a window")
        local_theta = local.get("rope_theta", local_theta)
    merged = Metadata(
        config.source, {"rope_theta": config.get("rope_theta", 10000.0)} | scaling | parameters
    )
    if merged.get("partial_rotary_factor", config.get("partial_rotary_factor")) not in (None, 1.0):
        raise config.fault("partial_rotary_factor: heads that rotate in part are not supported")
    values: dict[str, object] = {"rope.freq_base": merged.number("rope_theta")}
    if kind == "gemma3_text":
        values["rope.freq_base_swa"] = Metadata(
            config.source, {"rope_local_base_freq": local_theta}
        ).number("rope_local_base_freq")
    rope_type = merged.get("rope_type", merged.get("type", "default"))
    if rope_type == "linear":
        values |= {"rope.scaling.type": "linear", "rope.scaling.factor": merged.number("factor")}
    elif rope_type == "llama3":
        return values, _llama3_factors(merged, head_dim)
    elif rope_type != "default":
        raise config.fault(
            f"RoPE scaling {str(rope_type)[:40]!r} is not supported; supported: linear, llama3"
        )
    return values, None


def _llama3_factors(rope: Metadata, head_dim: int) -> NDArray[np.float32]:
    """The divisor of each frequency in Llama 3's scaling: 1 for short waves, `factor` for waves
    longer than the original context, and a smooth transition between them."""
    theta, factor = rope.number("rope_theta"), rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    context = rope.integer("original_max_position_embeddings", low=1)
    if theta <= 1.0 or factor < 1.0 or not 0.0 < low < high:
        raise rope.fault("the llama3 RoPE scaling's theta, factor or limits make no sense")
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    waves = context * frequencies / (2 * math.pi)  # in the original context
    share = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)
