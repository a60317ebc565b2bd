"""Granite with windows in three of four layers, and sinks (Granite Swash), dense and with experts.
A file may say of each layer whether it rotates."""

from collections.abc import Sequence
from functools import partial

import numpy as np

from airllm.formats.hf_config import Names
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.granite import constants, multipliers
from airllm.models.hugging_face import FULL, SLIDING, HFReader, HuggingFace
from airllm.models.own_heads import windows_behind_first
from airllm.models.qwen2 import ALL_BIASES
from airllm.util.metadata import Metadata

PERIOD = 4  # the first layer of each sees all positions
_ROTATES, _SHARED = "attention.rope_pattern", "expert_shared_feed_forward_length"
_NAMES: Names = {
    "self_attn.sinks": "attn_sinks",
    "block_sparse_moe.router": "ffn_gate_inp",
    "block_sparse_moe.experts.gate_up_proj": ("ffn_gate_exps", "ffn_up_exps"),
    "block_sparse_moe.experts.down_proj": "ffn_down_exps",
    "block_sparse_moe.router.layer": "ffn_gate_inp",
    "block_sparse_moe.input_linear": ("ffn_gate_exps", "ffn_up_exps"),
    "block_sparse_moe.output_linear": "ffn_down_exps",
}


def configure(r: ConfigReader) -> ModelConfig:
    r.require_true("rope.scaling.finetuned")
    if r.integer(_SHARED, 0):  # whose two matrices are one in files of this architecture
        raise r.fault(_SHARED, r.integer(_SHARED, 0), "expected 0")
    has_experts = r.integer("expert_count", 0) > 0
    if not has_experts:
        r.ignore("expert_used_count")
    rotates = r.flags(_ROTATES, r.n_layers) or [True] * r.n_layers
    windows = windows_behind_first(r, PERIOD)
    return r.config(
        layers=[
            LayerConfig(window, rotates=turns, has_experts=has_experts)
            for window, turns in zip(windows, rotates, strict=True)
        ],
        biases=r.optional_biases(*ALL_BIASES),
        rope_interleaved=True,
        **constants(r),
        **(r.experts(shared_out=False) if has_experts else {}),
    )


def _values(config: HFReader) -> dict[str, object]:
    """A layer's theta is that of the model, or 0 if the layer does not rotate."""
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    config.expect("shared_intermediate_size", None, 0)
    local = config.local_layers(np.zeros(n_layers, bool))
    values = {
        **multipliers(config),
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": local,
    }
    if config.integer("num_local_experts", 0):
        values |= config.experts(size="intermediate_size")
    config.ignore("num_experts_per_tok")
    thetas = config.get("layer_rope_theta")
    if thetas is None:
        return values
    fault = config.fault(f"layer_rope_theta is no list of {n_layers} numbers, alike beside 0")
    if not isinstance(thetas, list) or {type(theta) for theta in thetas} - {int, float}:
        raise fault
    found = sorted({theta for theta in thetas if theta})
    if len(thetas) != n_layers or len(found) > 1:
        raise fault
    if found:
        values["rope.freq_base"] = Metadata(config.source, {"layer_rope_theta": found[0]}).number(
            "layer_rope_theta"
        )
    if 0 in thetas:
        values[_ROTATES] = np.array([bool(theta) for theta in thetas], bool)
    return values


def _defaults(config: Metadata) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", 24, low=1, high=2**12)
    kinds: Sequence[str] = [FULL if index % PERIOD == 0 else SLIDING for index in range(n_layers)]
    return {"layer_types": kinds, "sliding_window": 128, "rms_norm_eps": 1e-5}


def _folders(model_type: str, *, tied: bool) -> HuggingFace:
    return HuggingFace(
        model_type,
        "granite_swa",
        _values,
        _NAMES,
        tied=tied,
        defaults=_defaults,
        gguf_interleaved=True,
    )


FAMILY = Family(
    ("granite_swa",),
    (_folders("granite_swa", tied=True), _folders("granitemoe_swa", tied=False)),
    configure,
    partial(blocks.layer, sinks=True),
)
