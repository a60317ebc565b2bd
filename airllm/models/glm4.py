"""GLM-4 of April 2025 (GLM-4-9B-0414, 32B, GLM-Z1) and the text of GLM-4.1V: norms before and
behind each half of a layer, one matrix for gate and up, and half of each head rotates."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES

NAMES = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}


def configure(r: ConfigReader) -> ModelConfig:
    r.leave_out_heads()
    # llama.cpp's files of models that see pictures have the rows of Q and K in another order.
    # Folders of theirs are converted without sections, which are the same for text, see qwen2.
    sections = "rope.dimension_sections"
    with_pictures = f"{r.architecture}.{sections}" in r.file.metadata
    r.ignore(sections)
    return r.config(biases=r.optional_biases(*BIASES), rope_interleaved=not with_pictures)


_HF = partial(
    HuggingFace, architecture="glm4", names=NAMES, rope_interleaved=True, gguf_interleaved=True
)

FAMILY = Family(
    ("glm4",),
    (
        _HF("glm4", defaults={"partial_rotary_factor": 0.5, "head_dim": 128}),
        _HF("glm4v_text", defaults={"partial_rotary_factor": 0.5}, pictures="glm4v"),
    ),
    configure,
    partial(blocks.layer, after=blocks.AFTER, feed_forward=blocks.fused_glu_mlp),
)
