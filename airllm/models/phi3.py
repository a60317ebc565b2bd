"""Phi-3 and Phi-4 (arXiv:2404.14219, arXiv:2412.08905): a Llama with one matrix for Q, K and V, one
for gate and up, and LongRoPE."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(layers=[LayerConfig(window) for window in r.windows()])


def _values(config: HFReader) -> dict[str, object]:
    config.ignore("original_max_position_embeddings")
    return config.sliding()


FAMILY = Family(
    ("phi3",),
    (
        HuggingFace(
            "phi3",
            "phi3",
            _values,
            {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"},
            defaults={"original_max_position_embeddings": 4096},
        ),
    ),
    configure,
    partial(blocks.layer, fused=True, feed_forward=blocks.fused_glu_mlp),
)
