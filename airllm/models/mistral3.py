"""Mistral 3 and Ministral 3: a Llama with YaRN, whose queries grow with their position."""

from dataclasses import replace

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.rope import Rotation, read_rotation

TEMPERATURE = "attention.temperature_scale"


def temperature(r: ConfigReader) -> float:
    """How queries grow with their position; 0: they do not."""
    found = r.number(TEMPERATURE, 0.0)
    if not 0.0 <= found < 1e3:
        raise r.fault(TEMPERATURE, found, "expected 0 to 1000")
    return found


def configure(r: ConfigReader) -> ModelConfig:
    c = r.config(rope_interleaved=True, attention_temperature=temperature(r))
    if c.attention_temperature and c.rope_dims != c.head_dim:
        raise r.fault("rope.dimension_count", c.rope_dims, f"expected {c.head_dim}, all of a head")
    return c


def rotations(r: ConfigReader, c: ModelConfig, layer: LayerConfig) -> dict[str, Rotation]:
    rope = read_rotation(r, c)
    if not c.attention_temperature:
        return {"rope": rope}
    period = r.integer("rope.scaling.original_context_length", low=1, high=2**24)
    return {
        "rope": rope,
        "rope_q": replace(rope, temperature=c.attention_temperature, period=period),
    }


def _values(config: HFReader) -> dict[str, object]:
    config.no_window()
    rope = config.get("rope_parameters")
    beta = rope.get("llama_4_scaling_beta", 0.0) if isinstance(rope, dict) else 0.0
    return {TEMPERATURE: beta} if beta else {}


FAMILY = Family(
    ("mistral3",),
    (HuggingFace("ministral3", "mistral3", _values, gguf_interleaved=True),),
    configure,
    rotations=rotations,
)
