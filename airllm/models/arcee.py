"""AFM (Arcee): a Llama whose feed-forward network has squared ReLU (arXiv:2109.08668), and no
gate."""

from functools import partial

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HuggingFace
from airllm.models.qwen2 import BIASES


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*BIASES, "attn_output", "ffn_up", "ffn_down")
    return r.config(biases=biases, rope_interleaved=True)


def feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return blocks.mlp(g, c, h, "relu_squared")


FAMILY = Family(
    ("arcee",),
    (HuggingFace("arcee", "arcee", activation="relu2", gguf_interleaved=True),),
    configure,
    partial(blocks.layer, feed_forward=feed_forward),
)
