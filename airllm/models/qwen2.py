"""Qwen2 and Qwen2.5 (arXiv:2407.10671, arXiv:2412.15115): a Llama with biases on Q, K and V.
openPangu Embedded has one behind attention, too, and PaddleOCR-VL's language model has none."""

from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hf_rope import position_sections
from airllm.models.hugging_face import HFReader, HuggingFace

BIASES = frozenset(["attn_q", "attn_k", "attn_v"])
ALL_BIASES = BIASES | {"attn_output", "ffn_gate", "ffn_up", "ffn_down"}


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")
    if r.architecture in ("paddleocr", "pangu-embedded"):
        return r.config(biases=r.optional_biases(*ALL_BIASES, "output"))
    return r.config(biases=BIASES)


def values_of_3_positions(config: HFReader) -> dict[str, object]:
    return {**config.no_window(), **position_sections(config)}


# The language model of Qwen2-VL is the same. Its rotation has three positions for each token
# (M-RoPE, arXiv:2409.12191), which are equal for text.
FAMILY = Family(
    ("paddleocr", "pangu-embedded", "qwen2", "qwen2vl"),
    (
        HuggingFace("qwen2", "qwen2", HFReader.no_window),
        HuggingFace("qwen2_vl_text", "qwen2vl", values_of_3_positions, pictures="qwen2_vl"),
        HuggingFace("qwen2_5_vl_text", "qwen2vl", values_of_3_positions, pictures="qwen2_5_vl"),
    ),
    configure,
)
