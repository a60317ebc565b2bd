"""Falcon-H1 (arXiv:2507.22448): attention and Mamba-2 side by side in each layer, and a constant
for what most matrices give. GGUF files have the constants in the matrices; a folder has them in
its configuration."""

import math
from dataclasses import replace

import numpy as np

from airllm.formats.hf_config import Names
from airllm.formats.multiplied import FACTOR
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks
from airllm.models.config import Factors, LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba2 import CHANGED, MIXER_NAMES, mamba2, read_mamba2, time_steps
from airllm.util.metadata import Metadata

_FFN_NORM = "ffn_norm."  # without ".weight" in files of this architecture
_BEFORE = ("attn_norm", _FFN_NORM)


def configure(r: ConfigReader) -> ModelConfig:
    def factor(slot: str) -> float:
        return r.positive(f"{FACTOR}{slot}", 1.0)

    normed = any(name.endswith(".ssm_norm.weight") for name in r.file.tensors)
    c = r.config(
        layers=[LayerConfig(mixer="attention and mamba2")] * r.n_layers,
        mamba2=replace(read_mamba2(r), normed=normed, factors=_factors_of_parts(r)),
        embedding_scale=factor("token_embd"),
        logit_scale=factor("output"),
        factors=Factors(
            attn_output=factor("attn_v") * factor("attn_output"),  # values are linear
            ssm_out=factor("ssm_out"),
            ffn_gate=factor("ffn_gate"),
            ffn_down=factor("ffn_down"),
        ),
    )
    return replace(c, attention_scale=c.attention_scale * factor("attn_q") * factor("attn_k"))


def _factors_of_parts(r: ConfigReader) -> tuple[float, ...]:
    name = f"{FACTOR}ssm_in"
    r.ignore(name)
    found = r.metadata.get(r.key(name))
    if found is None:
        return (1.0,) * 5
    if not isinstance(found, np.ndarray) or found.dtype != np.float32 or found.shape != (5,):
        raise r.metadata.fault(f"{r.key(name)} is no array of 5 numbers")
    if not ((found > 0.0) & np.isfinite(found)).all():
        raise r.metadata.fault(f"{r.key(name)} has a number that is not above 0")
    return tuple(found.tolist())


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(
        c, activations, layer, mixer=_both, before=_BEFORE, feed_forward=_feed_forward
    )


def _scaled(g: GraphBuilder, x: Buffer, factor: float) -> Buffer:
    return x if factor == 1.0 else g.scale(x, factor, out=x)


def _both(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    attended = _scaled(g, blocks.attention(g, c, layer, h), c.factors.attn_output)
    scanned = _scaled(g, mamba2(g, c, layer, h), c.factors.ssm_out)
    return g.add(attended, scanned, out=attended)


def _feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    gate = blocks.linear(g, c, h, "ffn_gate", c.intermediate_size)
    up = blocks.linear(g, c, h, "ffn_up", c.intermediate_size)
    act = g.swiglu(_scaled(g, gate, c.factors.ffn_gate), up)
    return _scaled(g, blocks.linear(g, c, act, "ffn_down", c.hidden_size), c.factors.ffn_down)


# ---- Hugging Face --------------------------------------------------------------------------------

_NAMES: Names = {
    "final_layernorm": "output_norm",
    "pre_ff_layernorm": _FFN_NORM,
    "feed_forward.gate_proj": "ffn_gate",
    "feed_forward.up_proj": "ffn_up",
    "feed_forward.down_proj": "ffn_down",
    **{f"mamba.{name}": slot for name, slot in MIXER_NAMES.items()},
}


def _values(config: HFReader) -> dict[str, object]:
    for key in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias"):
        config.expect(key, None, False)
    config.expect("mamba_use_mlp", None, True)
    config.expect("attn_layer_indices", None)
    config.ignore("mamba_conv_bias", "mamba_chunk_size")  # the tensors show a bias
    if config.flag("mamba_rms_norm", False):
        config.expect("mamba_norm_before_gate", False)
    config.ignore("mamba_norm_before_gate")
    hidden, n_heads = config.integer("hidden_size"), config.integer("mamba_n_heads", 128, low=1)
    inner = config.integer("mamba_expand", 2) * hidden
    inner = config.integer("mamba_d_ssm", inner, low=1)
    if config.get("mamba_d_head") not in (None, "auto", inner // n_heads) or inner % n_heads:
        raise config.fault(f"mamba_d_head times mamba_n_heads, {n_heads}, is not {inner}")
    return {
        **time_steps(config),
        **_factors(config),
        "ssm.conv_kernel": config.integer("mamba_d_conv", 4),
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("mamba_d_state", 256),
        "ssm.group_count": config.integer("mamba_n_groups", 1),
        "ssm.time_step_rank": n_heads,
    }


def _factors(config: HFReader) -> dict[str, object]:
    """Of the matrix of each slot, where it is not 1."""

    def one(name: str) -> float:
        return _above_0(config, name, config.number(name, 1.0))

    def several(name: str, n: int) -> list[float]:
        found = config.get(name, [1.0] * n)
        if not isinstance(found, list) or len(found) != n:
            raise config.fault(f"{name} is no list of {n} numbers")
        return [_above_0(config, name, each) for each in found]

    of_input, of_ssm_input = one("attention_in_multiplier"), one("ssm_in_multiplier")
    gate, down = several("mlp_multipliers", 2)
    parts = [of_ssm_input * each for each in several("ssm_multipliers", 5)]
    found = {
        "token_embd": one("embedding_multiplier"),
        "output": one("lm_head_multiplier"),
        "attn_q": of_input,
        "attn_k": of_input * one("key_multiplier"),
        "attn_v": of_input,
        "attn_output": one("attention_out_multiplier"),
        "ssm_out": one("ssm_out_multiplier"),
        "ffn_gate": gate,
        "ffn_down": down,
    }
    factors: dict[str, object] = {
        f"{FACTOR}{slot}": factor for slot, factor in found.items() if factor != 1.0
    }
    if parts != [1.0] * 5:
        factors[f"{FACTOR}ssm_in"] = np.array(parts, np.float32)
    return factors


def _above_0(config: HFReader, name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0.0 < value < math.inf:
        raise config.fault(f"{name} has {str(value)[:40]}; expected a number above 0")
    return float(value)


def _defaults(config: Metadata) -> dict[str, object]:
    """null, unlike no such key, asks for mamba_expand times hidden_size."""
    return {} if "mamba_d_ssm" in config else {"mamba_d_ssm": 1024}


FAMILY = Family(
    ("falcon-h1",),
    (HuggingFace("falcon_h1", "falcon-h1", _values, _NAMES, changed=CHANGED, defaults=_defaults),),
    configure,
    layer,
)
