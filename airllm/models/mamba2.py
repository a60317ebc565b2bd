"""Mamba-2 (arXiv:2405.21060): a layer's part that sees earlier tokens through a matrix for each
head, which each token changes. Several families have it beside attention."""

import math
from collections.abc import Mapping

import numpy as np

from airllm.formats.hf_config import Change, Names
from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models.blocks import linear
from airllm.models.config import LayerConfig, Mamba2, Mixer, ModelConfig
from airllm.models.config_reader import MAX_TAPS, ConfigReader
from airllm.models.hugging_face import HFReader

__all__ = [
    "CHANGED",
    "MAX_STATE",
    "MIXERS",
    "MIXER_NAMES",
    "convolved",
    "mamba2",
    "read_mamba2",
    "time_steps",
]

# GGUF has no keys for the limits of time steps, which hardly any model has.
_LIMITS = "ssm.time_step_min", "ssm.time_step_max"
_UNLIMITED = 3e38  # float32 has it
MAX_STATE = 2**12  # known models have 16 to 256

# Of tensors in folders, behind the name of the layer's part.
MIXER_NAMES: Names = {
    "in_proj": "ssm_in",
    "conv1d": "ssm_conv1d",
    "dt_bias": "ssm_dt.bias",
    "A_log": "ssm_a",
    "D": "ssm_d",
    "norm": "ssm_norm",
    "out_proj": "ssm_out",
}
# What layers see earlier tokens by, as config.json names it.
MIXERS: dict[str, Mixer] = {
    "mamba": "mamba2",
    "linear_attention": "mamba2",
    "attention": "attention",
    "full_attention": "attention",
}
CHANGED: Mapping[str, Change] = {"ssm_a": lambda logarithms: -np.exp(logarithms)}


def mamba2(g: GraphBuilder, c: ModelConfig, _: LayerConfig, h: Buffer) -> Buffer:
    """h: [n, hidden] -> [n, hidden]"""
    m = c.mamba2
    assert m is not None
    inner, width, bc = m.inner_size, m.conv_width, m.n_groups * m.state_size
    both = linear(g, c, h, "ssm_in", inner + width + m.n_heads)
    gate = g.take_columns(both, 0, inner)
    xbc = g.take_columns(both, inner, width)
    dt = g.take_columns(both, inner + width, m.n_heads)
    if m.factors != (1.0,) * 5:
        x, b_, c_ = (
            g.take_columns(xbc, at, n) for at, n in ((0, inner), (inner, bc), (inner + bc, bc))
        )
        parts = zip((gate, x, b_, c_, dt), m.factors, strict=True)
        gate, x, b_, c_, dt = (g.scale(part, factor, out=part) for part, factor in parts)
        xbc = g.join_heads(g.join_heads(x, b_, 1), c_, 1)
    xbc = convolved(g, xbc, m.taps, biased=m.conv_biased)
    y = g.ssm_scan(
        g.take_columns(xbc, 0, inner),
        dt,
        g.take_columns(xbc, inner, bc),
        g.take_columns(xbc, inner + bc, bc),
        (
            g.weight("ssm_a", m.n_heads),
            g.weight("ssm_d", m.n_heads),
            g.weight("ssm_dt.bias", m.n_heads),
        ),
        n_groups=m.n_groups,
        dt_limits=m.dt_limits,
    )  # [n, inner]
    y = g.swiglu(gate, y, out=y)
    if m.normed:
        y = g.group_norm(y, g.weight("ssm_norm", inner), m.n_groups, c.norm_eps, out=y)
    return linear(g, c, y, "ssm_out", c.hidden_size)


def convolved(g: GraphBuilder, x: Buffer, taps: int, *, biased: bool) -> Buffer:
    """silu of a convolution of each channel over a few tokens; overwrites x."""
    weight = g.weight("ssm_conv1d", x.width, taps)
    if not biased:
        return g.conv(x, weight, silu=True, out=x)
    x = g.conv(x, weight, out=x)
    x = g.bias(x, g.weight("ssm_conv1d.bias", x.width), out=x)
    return g.silu(x, out=x)


def read_mamba2(r: ConfigReader) -> Mamba2:
    """FormatError for sizes that do not fit together."""
    inner = r.integer("ssm.inner_size", low=1)
    n_heads = r.integer("ssm.time_step_rank", low=1, high=inner)
    if inner % n_heads:
        raise r.fault("ssm.time_step_rank", n_heads, f"expected a divisor of {inner}, inner_size")
    n_groups = r.integer("ssm.group_count", 1, low=1, high=n_heads)
    if n_heads % n_groups:
        raise r.fault("ssm.group_count", n_groups, f"expected a divisor of {n_heads} heads")
    low, high = (r.number(name, usual) for name, usual in zip(_LIMITS, (0.0, 0.0), strict=True))
    high = high or _UNLIMITED
    if not 0.0 <= low <= high <= _UNLIMITED:
        raise r.fault(_LIMITS[1], high, f"expected it above {low}, the least")
    return Mamba2(
        inner_size=inner,
        n_heads=n_heads,
        state_size=r.integer("ssm.state_size", low=1, high=MAX_STATE),
        n_groups=n_groups,
        taps=r.integer("ssm.conv_kernel", low=1, high=MAX_TAPS),
        conv_biased=any(name.endswith(".ssm_conv1d.bias") for name in r.file.tensors),
        dt_limits=(low, high),
    )


def time_steps(config: HFReader) -> dict[str, object]:
    """GGUF's keys, and ours, of the limits of time steps."""
    limits = config.get("time_step_limit")
    if limits is None:
        return {}
    if not isinstance(limits, list) or len(limits) != 2:
        raise config.fault("time_step_limit is no list of two numbers")
    least, most = (_number(config, limit) for limit in limits)
    found: dict[str, object] = {}
    if least:
        found[_LIMITS[0]] = least
    if most < _UNLIMITED:
        found[_LIMITS[1]] = most
    return found


def _number(config: HFReader, limit: object) -> float:
    """transformers writes infinity as {"__float__": "Infinity"}."""
    if isinstance(limit, dict):
        limit = math.inf if limit.get("__float__") == "Infinity" else None
    if not isinstance(limit, (int, float)) or not limit >= 0.0:
        raise config.fault(f"time_step_limit has {str(limit)[:40]}; expected numbers of 0 or more")
    return float(limit)
