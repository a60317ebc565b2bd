"""Maple (deepgrove): Qwen3-MoE whose experts' gate and up values are cut off at a limit. Layers
with a window rotate; the others see all positions and do not."""

import numpy as np

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.deepseek4 import expert_limit
from airllm.models.family import Family
from airllm.models.qwen3 import layer
from airllm.models.rope import Rotation, read_rotation


def configure(r: ConfigReader) -> ModelConfig:
    r.integer("attention.sliding_window", low=1)
    pattern = r.key("attention.sliding_window_pattern")
    if not isinstance(r.metadata.get(pattern), np.ndarray):  # which layers rotate hangs on it
        raise r.metadata.fault(f"{pattern} is no array; expected an entry for each layer")
    return r.config(
        layers=[
            LayerConfig(window, rotates=window > 0, has_experts=True) for window in r.windows()
        ],
        gate_limit=expert_limit(r),
        gate_alpha=1.0,
        up_shift=0.0,
        **r.experts(),
    )


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    """All layers that rotate have a window, whose theta may have a key of its own."""
    names = "rope.freq_base", "rope.freq_base_swa"
    r.ignore(*names)
    return {"rope": read_rotation(r, c, names[r.has(names[1])])} if layer.rotates else {}


FAMILY = Family(("maple",), (), configure, layer, rotations=rotations)
