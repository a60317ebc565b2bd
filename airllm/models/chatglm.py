"""ChatGLM3, GLM-4-9B of June 2024 (arXiv:2406.12793) and GLM-Edge: a Llama with one matrix for gate
and up, biases on Q, K and V, and half of each head rotates. Files may have one matrix for Q, K and
V."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES

_FUSED = "attn_qkv"


def configure(r: ConfigReader) -> ModelConfig:
    return r.config(biases=r.optional_biases(*BIASES, _FUSED), rope_interleaved=True)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.layer(
        c, activations, layer, fused=_FUSED in c.biases, feed_forward=blocks.fused_glu_mlp
    )


FAMILY = Family(
    ("chatglm",),
    (
        HuggingFace(
            "glm",
            "chatglm",
            names={"mlp.gate_up_proj": "ffn_up"},
            rope_interleaved=True,
            gguf_interleaved=True,
            defaults={"partial_rotary_factor": 0.5, "head_dim": 128},
        ),
    ),
    configure,
    layer,
)
