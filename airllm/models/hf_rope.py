"""The rotation that config.json describes, as GGUF's keys and tensors.

Older files have rope_theta and rope_scaling. Newer files have rope_parameters, one for each kind of
layer if the kinds differ.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from airllm.models.config_reader import MAX_HEAD_DIM
from airllm.models.rope import STOPS, YARN_TRUNCATES
from airllm.util.metadata import Metadata

__all__ = ["YARN", "HFRope", "position_sections", "translate_rope"]

YARN = ("yarn", "deepseek_yarn")  # names of the same


@dataclass
class HFRope:
    """values: GGUF's keys, without the architecture. own: keys of this package. tensors: as in
    HFConfig."""

    values: dict[str, object] = field(default_factory=dict)
    own: dict[str, object] = field(default_factory=dict)
    tensors: dict[str, NDArray[np.float32]] = field(default_factory=dict)


def translate_rope(config: Metadata, head_dim: int) -> HFRope:
    """FormatError for a scaling that is not implemented, by its name."""
    parameters = _object(config, "rope_parameters")
    scaling = _object(config, "rope_scaling")
    local_theta = config.get("rope_local_base_freq")
    if "full_attention" in parameters:
        local, full = parameters.get("sliding_attention") or {}, parameters["full_attention"]
        if not isinstance(local, dict) or not isinstance(full, dict):
            raise config.fault("rope_parameters is no object for each kind of layer")
        parameters = full
        if local.get("rope_type", "default") != "default":
            raise config.fault("rope_parameters scales layers with a window")
        local_theta = local.get("rope_theta", local_theta)
    if "compress" in parameters:  # DeepSeek V4, where only layers with groups of positions scale
        main, groups = parameters.get("main"), parameters["compress"]
        if not isinstance(main, dict) or not isinstance(groups, dict):
            raise config.fault("rope_parameters is no object for each kind of layer")
        if main.get("rope_type", "default") != "default":
            raise config.fault("rope_parameters scales layers without groups")
        parameters = groups | {"rope_theta": main.get("rope_theta", 10000.0)}
    share = config.get("partial_rotary_factor", 1.0)
    rope = Metadata(
        config.source,
        {"rope_theta": config.get("rope_theta", 10000.0), "partial_rotary_factor": share}
        | scaling
        | parameters,
    )
    share = rope.number("partial_rotary_factor")
    if not 0.0 < share <= 1.0:
        raise rope.fault(f"partial_rotary_factor is {share}; expected it above 0, at most 1")
    found = HFRope()
    found.values = {
        "rope.freq_base": rope.number("rope_theta"),
        "rope.dimension_count": int(head_dim * share),
    }
    if local_theta is not None:
        key = "rope_local_base_freq"
        found.values["rope.freq_base_swa"] = Metadata(config.source, {key: local_theta}).number(key)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "linear":
        found.values |= {
            "rope.scaling.type": "linear",
            "rope.scaling.factor": rope.number("factor"),
        }
    elif kind == "llama3":
        factors = _ones(rope, head_dim)  # as GGUF files have them: 1 for other pairs
        factors[: int(head_dim * share) // 2] = _llama3_factors(rope, int(head_dim * share))
        found.tensors["rope_freqs.weight"] = factors
    elif kind == "proportional":
        found.values["rope.dimension_count"] = head_dim
        found.tensors["rope_freqs.weight"] = _proportional_factors(rope, head_dim, share)
    elif kind in ("dynamic", "xdrope") and rope.get("alpha") is not None:
        found.values["rope.freq_base"] = _larger_base(rope, head_dim)
    elif kind == "dynamic" and "original_max_position_embeddings" not in rope:
        pass  # the base grows behind the context length, to which a context is held
    elif kind in YARN:
        _yarn(rope, found)
    elif kind in ("longrope", "su"):
        _longrope(rope, config, found)
    elif kind not in ("default", "mrope"):  # which for text is the same, see qwen2
        raise config.fault(
            f"RoPE scaling {str(kind)[:40]!r} is not supported; supported: linear, llama3, "
            "proportional, yarn, longrope"
        )
    return found


def position_sections(config: Metadata, default: Sequence[int] | None = None) -> dict[str, object]:
    """GGUF's key of how many pairs of a head follow each of a token's three positions (M-RoPE). The
    positions are equal for text, so nothing here reads it; llama.cpp opens no file without it."""
    found = _object(config, "rope_scaling") | _object(config, "rope_parameters")
    sections = found.get("mrope_section", found.get("xdrope_section", default))
    if sections is None:
        return {}
    if (
        not isinstance(sections, Sequence)
        or not 1 <= len(sections) <= 4
        or not all(type(each) is int and 0 <= each <= MAX_HEAD_DIM for each in sections)
    ):
        raise config.fault(
            f"mrope_section is no list of up to 4 numbers of pairs, each at most {MAX_HEAD_DIM}"
        )
    padded = [*sections, 0, 0, 0][:4]
    return {"rope.dimension_sections": np.array(padded, np.int32)}


def _object(config: Metadata, key: str) -> dict[str, object]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise config.fault(f"{key} is no object")
    return value


def _ones(rope: Metadata, head_dim: int) -> NDArray[np.float32]:
    """1 for each pair of a head."""
    if head_dim % 2 or not 2 <= head_dim <= MAX_HEAD_DIM:
        raise rope.fault(
            f"heads have {head_dim} dimensions; expected an even number up to {MAX_HEAD_DIM}"
        )
    return np.ones(head_dim // 2, np.float32)


def _llama3_factors(rope: Metadata, head_dim: int) -> NDArray[np.float32]:
    """The divisor of each frequency in Llama 3's scaling: 1 for short waves, `factor` for waves
    longer than the original context, and a smooth transition between them."""
    theta, factor = rope.number("rope_theta"), rope.number("factor")
    low, high = rope.number("low_freq_factor"), rope.number("high_freq_factor")
    context = rope.integer("original_max_position_embeddings", low=1)
    if theta <= 1.0 or not 1.0 <= factor <= 1e6 or not 0.0 < low <= high:
        raise rope.fault("the llama3 RoPE scaling's theta, factor or limits make no sense")
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    waves = context * frequencies / (2 * math.pi)  # in the original context
    if low == high:  # Llama 4
        share = (waves >= low).astype(np.float64)
    else:
        share = np.clip((waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - share) / factor + share)).astype(np.float32)


def _proportional_factors(rope: Metadata, head_dim: int, share: float) -> NDArray[np.float32]:
    """1 for the share of a head's pairs that rotate, with the frequencies that they have if all
    rotate, and as GGUF files have it a factor that stops the others."""
    n_rotating, factor = int(share * head_dim // 2), rope.number("factor", 1.0)
    if not 1e-6 <= factor <= 1e6:
        raise rope.fault(f"the proportional RoPE scaling's factor is {factor}; expected up to 1e6")
    factors = STOPS * _ones(rope, head_dim)
    factors[:n_rotating] = factor
    return factors


def _larger_base(rope: Metadata, head_dim: int) -> float:
    """Of NTK-aware scaling by a constant (Hunyuan), which folders call dynamic."""
    theta, alpha = rope.number("rope_theta"), rope.number("alpha")
    if not 1.0 <= alpha <= 1e6 or not 1.0 <= theta <= 1e12 or head_dim < 4:
        raise rope.fault(f"the RoPE scaling's alpha is {alpha}; expected 1 to 1000000")
    return float(theta * alpha ** (head_dim / (head_dim - 2)))


def _yarn(rope: Metadata, found: HFRope) -> None:
    """Readers of GGUF multiply rotated values by 1 + 0.1 ln(factor), and by attn_factor."""
    factor = rope.number("factor")
    if not 1.0 <= factor <= 1e6:
        raise rope.fault(f"the yarn RoPE scaling's factor is {factor}; expected 1 to 1000000")
    grown = 0.1 * math.log(factor)
    usual = magnitude = 1.0 + grown
    if rope.get("attention_factor") is not None:
        magnitude = rope.number("attention_factor")
    elif rope.get("mscale") and rope.get("mscale_all_dim"):
        above, below = (1.0 + rope.number(key) * grown for key in ("mscale", "mscale_all_dim"))
        magnitude = above / below if below else 0.0
    found.values |= {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": rope.integer(
            "original_max_position_embeddings", low=1
        ),
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0),
    }
    if magnitude != usual:
        found.values["rope.scaling.attn_factor"] = magnitude / usual
    if not rope.flag("truncate", True):
        found.own[YARN_TRUNCATES] = False


def _longrope(rope: Metadata, config: Metadata, found: HFRope) -> None:
    """Two sets of divisors of the frequencies: for contexts up to the original, and beyond."""
    key = "original_max_position_embeddings"
    original = rope.integer(key, low=2) if key in rope else config.integer(key, low=2)
    growth = config.integer("max_position_embeddings", low=1) / original
    growth = rope.number("factor", growth)
    usual = math.sqrt(1.0 + math.log(growth) / math.log(original)) if growth > 1.0 else 1.0
    magnitude = rope.number("attention_factor", usual)
    if "long_mscale" in rope:  # Phi-3.5-MoE says it of both kinds of contexts
        magnitude = rope.number("long_mscale")
        if (short := rope.number("short_mscale")) != magnitude:
            raise rope.fault(f"short_mscale is {short}; expected {magnitude}, as long_mscale")
    found.values |= {
        "rope.scaling.type": "longrope",
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": magnitude,
    }
    for name in ("short", "long"):
        factors = rope.get(f"{name}_factor")
        if not isinstance(factors, list) or not all(
            isinstance(each, (int, float)) and math.isfinite(each) for each in factors
        ):
            raise rope.fault(f"the longrope RoPE scaling's {name}_factor is no list of numbers")
        found.tensors[f"rope_factors_{name}.weight"] = np.array(factors, np.float32)
