"""What models share whose layers differ in their heads, and whose heads have a gate."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, MAX_HEADS, ConfigReader
from airllm.models.rope import Rotation, windowed_rotations

__all__ = [
    "attend_gated",
    "first_head",
    "next_layer",
    "read_head_dim",
    "read_heads",
    "rotations",
    "windowed_rope_dims",
    "windows_behind_first",
]


def read_heads(r: ConfigReader) -> tuple[tuple[int, int], ...]:
    """The heads, and those of keys and values, of each layer."""
    name, of_keys = "attention.head_count", "attention.head_count_kv"
    heads = r.of_layers(name, low=1, high=MAX_HEADS)
    kv_heads = r.of_layers(of_keys, low=1, high=MAX_HEADS)
    for n_heads, n_kv_heads in zip(heads, kv_heads, strict=True):
        if n_heads % n_kv_heads:
            raise r.fault(of_keys, n_kv_heads, f"expected a divisor of {r.key(name)}, {n_heads}")
    return tuple(zip(heads, kv_heads, strict=True))


def read_head_dim(r: ConfigReader) -> int:
    """The dimensions of a head, of keys and of values."""
    head_dim = r.integer("attention.key_length", low=4, high=MAX_HEAD_DIM)
    value_dim = r.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        raise r.fault("attention.value_length", value_dim, f"expected {head_dim}, the keys' length")
    return head_dim


def windows_behind_first(r: ConfigReader, period: int) -> tuple[int, ...]:
    """The window of each layer. Where the file has no array that says it, the first of each period
    sees all positions, not the last as with others."""
    windows, key = r.windows(), r.key("attention.sliding_window_pattern")
    pattern = r.metadata.get(key)
    if isinstance(pattern, np.ndarray):
        return windows
    every = r.integer("attention.sliding_window_pattern", period) or period
    window = r.integer("attention.sliding_window", 0)
    return tuple(window if index % every else 0 for index in range(r.n_layers))


def windowed_rope_dims(r: ConfigReader, default: int, head_dim: int) -> int:
    """The dimensions of a head that rotate in layers with a window."""
    name = "rope.dimension_count_swa"
    rope_dims = r.integer(name, default, low=2, high=head_dim)
    if rope_dims % 2:
        raise r.fault(name, rope_dims, "expected it even")
    return rope_dims


def first_head(r: ConfigReader, layers: Sequence[LayerConfig]) -> LayerConfig:
    """The layer of the first next-token head. layers: of the file, also of heads."""
    return layers[r.left_out.start] if r.left_out else LayerConfig()


def next_layer(c: ModelConfig) -> LayerConfig:
    return c.head_layer


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """Layers with a window have the theta of others unless the file says otherwise."""
    if not layer.rotates:
        return {}
    return windowed_rotations(r, c, layer, r.number("rope.freq_base", 10000.0))


def attend_gated(activation: Literal["sigmoid", "softplus"]) -> blocks.Attend:
    """Attention whose heads, or values, are multiplied by the activation of a gate."""

    def attend(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, q: Buffer, h: Buffer) -> Buffer:
        a = blocks.attend_to_all(g, c, layer, q)  # [n, q_width]
        width = c.q_width if c.gate_of_values else c.n_heads
        gate = g.linear(h, g.weight("attn_gate", width, c.hidden_size))  # [n, width]
        gate = (g.sigmoid if activation == "sigmoid" else g.softplus)(gate, out=gate)
        return (g.multiply if c.gate_of_values else g.scale_rows)(a, gate, out=a)

    return attend
