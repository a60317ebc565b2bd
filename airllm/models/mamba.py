"""Mamba (arXiv:2312.00752) and Falcon-Mamba (arXiv:2410.05355): all layers are a selective scan,
which has a decay for each channel and element of its state; Falcon-Mamba normalises what depends on
the token. Mamba-2 (arXiv:2405.21060) and Codestral Mamba: all layers are its scan."""

from dataclasses import replace
from functools import partial

import numpy as np

from airllm.formats.hf_config import Change, Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Buffer, Graph
from airllm.models import blocks, mamba2
from airllm.models.config import LayerConfig, Mamba, ModelConfig
from airllm.models.config_reader import MAX_TAPS, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.mamba2 import MAX_STATE, convolved, read_mamba2
from airllm.util.metadata import Metadata

__all__ = ["CHANGED", "MIXER_NAMES", "mamba", "read_mamba"]

# Of tensors in folders, behind the name of the layer's part.
MIXER_NAMES: Names = {
    "in_proj": "ssm_in",
    "conv1d": "ssm_conv1d",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "A_log": "ssm_a",
    "D": "ssm_d",
    "out_proj": "ssm_out",
}
CHANGED: dict[str, Change] = {"ssm_a": lambda logarithms: -np.exp(logarithms)}
_NORMED, _RMS = "ssm.dt_b_c_rms", "attention.layer_norm_rms_epsilon"
_OF_ATTENTION = (
    *("attention.key_length", "attention.value_length", "rope.dimension_count", "rope.freq_base"),
)
_EPS = "ssm.dt_b_c_epsilon"  # no key of GGUF, whose readers take the layers' epsilon


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    r.ignore_rope()
    # No layer has attention.
    none = partial(r.config, n_heads=1, kv_heads=(1,), head_dim=2)
    if r.architecture == "mamba2":
        m2 = read_mamba2(r)
        layers = [LayerConfig(rotates=False, mixer="mamba2")] * r.n_layers
        return none(layers=layers, mamba2=m2, intermediate_size=m2.inner_size)
    m = read_mamba(r)
    if r.flag(_NORMED, False):
        m = replace(m, norms="plain", norm_eps=r.positive(_EPS, r.positive(_RMS, 1e-5)))
    layers = [LayerConfig(rotates=False, mixer="mamba")] * r.n_layers
    return none(layers=layers, mamba=m, intermediate_size=m.inner_size)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    mixer = mamba2.mamba2 if layer.mixer == "mamba2" else mamba
    blocks.add(g, c, x, mixer(g, c, layer, blocks.norm(g, c, x, "attn_norm")))
    return g.build()


def mamba(g: GraphBuilder, c: ModelConfig, _: LayerConfig, h: Buffer) -> Buffer:
    """h: [n, hidden] -> [n, hidden]"""
    m = c.mamba
    assert m is not None
    inner, n = m.inner_size, m.state_size
    both = blocks.linear(g, c, h, "ssm_in", 2 * inner)
    gate = g.take_columns(both, inner, inner)  # [n, inner]
    x = convolved(g, g.take_columns(both, 0, inner), m.taps, biased=m.conv_biased)  # [n, inner]
    of_token = g.linear(x, g.weight("ssm_x", m.rank + 2 * n, inner))
    parts = ("dt", 0, m.rank), ("b", m.rank, n), ("c", m.rank + n, n)
    dt, b, c_ = (_normed(g, m, g.take_columns(of_token, at, k), name) for name, at, k in parts)
    steps = g.linear(dt, g.weight("ssm_dt", inner, m.rank))  # [n, inner]
    steps = g.softplus(g.bias(steps, g.weight("ssm_dt.bias", inner), out=steps), out=steps)
    y = g.selective_scan(x, steps, b, c_, g.weight("ssm_a", inner, n))  # [n, inner]
    y = g.add(y, g.scale(x, weight=g.weight("ssm_d", inner), out=x), out=y)
    return blocks.linear(g, c, g.swiglu(gate, y, out=y), "ssm_out", c.hidden_size)


def _normed(g: GraphBuilder, m: Mamba, x: Buffer, name: str) -> Buffer:
    if m.norms == "plain":
        return g.head_norm(x, None, 1, m.norm_eps, out=x)
    if m.norms == "weighted":
        return g.rms_norm(x, g.weight(f"ssm_{name}_norm", x.width), m.norm_eps, out=x)
    return x


def read_mamba(r: ConfigReader) -> Mamba:
    """Without norms."""
    return Mamba(
        inner_size=r.integer("ssm.inner_size", low=1),
        state_size=r.integer("ssm.state_size", low=1, high=MAX_STATE),
        rank=r.integer("ssm.time_step_rank", low=1),
        taps=r.integer("ssm.conv_kernel", low=1, high=MAX_TAPS),
        conv_biased=any(name.endswith(".ssm_conv1d.bias") for name in r.file.tensors),
        norms="",
        norm_eps=1e-5,
    )


# ---- Hugging Face --------------------------------------------------------------------------------


def _names(of_mixer: Names) -> Names:
    return {
        "embeddings": "token_embd",
        "norm_f": "output_norm",
        "norm": "attn_norm",
        **{f"mixer.{name}": slot for name, slot in of_mixer.items()},
    }


# Of attention, which folders do not have, for the keys that all other files have.
_WITHOUT = {
    **{"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0},
    **dict.fromkeys(_OF_ATTENTION),
}


def rank_of(config: HFReader, key: str) -> int:
    """Of the time steps; "auto": a sixteenth of hidden_size."""
    if config.get(key, "auto") == "auto":
        return -(-config.integer("hidden_size") // 16)
    return config.integer(key)


def _values(config: HFReader) -> dict[str, object]:
    inner = _inner_size(config)
    normed = config.get("model_type") == "falcon_mamba"
    return {
        "ssm.conv_kernel": config.integer("conv_kernel", 4),
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("state_size", 16),
        "ssm.time_step_rank": rank_of(config, "time_step_rank"),
        _NORMED: normed,
        **({_EPS: config.number("mixer_rms_eps", 1e-6)} if normed else {}),
        **_WITHOUT,
    }


def _values_of_2(config: HFReader) -> dict[str, object]:
    inner, n_heads = _inner_size(config), config.integer("num_heads", 128, low=1)
    config.ignore("time_step_rank", "chunk_size", "residual_in_fp32")
    if n_heads * config.integer("head_dim", 64) != inner:
        raise config.fault(f"num_heads times head_dim is not {inner}, expand times hidden_size")
    return {
        "ssm.conv_kernel": config.integer("conv_kernel", 4),
        "ssm.inner_size": inner,
        "ssm.state_size": config.integer("state_size", 128),
        "ssm.time_step_rank": n_heads,
        "ssm.group_count": config.integer("n_groups", 8),
        **mamba2.time_steps(config),
        **_WITHOUT,
    }


def _inner_size(config: HFReader) -> int:
    """Of the scan. Also accepts keys of training and of other implementations."""
    config.expect("use_bias", None, False)
    config.ignore("use_conv_bias", "layer_types")  # the tensors show a bias
    config.ignore("time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme")
    config.ignore("time_step_floor", "rescale_prenorm_residual", "fused_add_norm", "rms_norm")
    inner = config.integer("expand", 2) * config.integer("hidden_size")
    if config.get("intermediate_size") not in (0, inner):
        raise config.fault(f"intermediate_size is not {inner}, expand times hidden_size")
    return inner


def _defaults(config: Metadata) -> dict[str, object]:
    """What all other families have; a sequence may be of any length."""
    return {
        **{"vocab_size": 50280, "hidden_size": 768, "num_hidden_layers": 32},
        **{"num_attention_heads": 1, "max_position_embeddings": 2**20, "intermediate_size": 0},
        "layer_norm_epsilon": 1e-5,
    }


_HF = partial(
    HuggingFace,
    defaults=_defaults,
    changed=CHANGED,
    norm_eps=("layer_norm_epsilon", _RMS),
)

FAMILY = Family(
    ("mamba", "mamba2"),
    (
        *(
            _HF(model_type, "mamba", _values, _names(MIXER_NAMES), tied=True)
            for model_type in ("mamba", "falcon_mamba")
        ),
        _HF("mamba2", "mamba2", _values_of_2, _names(mamba2.MIXER_NAMES)),
    ),
    configure,
    layer,
)
