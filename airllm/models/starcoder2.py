"""StarCoder2 (arXiv:2402.19173): LayerNorm, biases everywhere, and a network with GELU, without a
gate."""

from functools import partial

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Buffer
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.qwen2 import BIASES

EPS = "attention.layer_norm_epsilon"


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*BIASES, "attn_output", "ffn_up", "ffn_down")
    return r.config(
        layers=[LayerConfig(window) for window in r.windows()],
        eps_key=EPS,
        layer_norms=True,
        biases=biases | {"attn_norm", "ffn_norm", "output_norm"},
    )


def feed_forward(g: GraphBuilder, c: ModelConfig, layer: LayerConfig, h: Buffer) -> Buffer:
    return blocks.mlp(g, c, h, "gelu")


def _values(config: HFReader) -> dict[str, object]:
    config.expect("norm_type", None, "layer_norm")
    config.expect("mlp_type", None, "default")
    config.ignore("use_bias")  # the tensors show biases
    return config.sliding()


FAMILY = Family(
    ("starcoder2",),
    (
        HuggingFace(
            "starcoder2",
            "starcoder2",
            _values,
            {"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
            activation="gelu_pytorch_tanh",
            tied=True,
            norm_eps=("norm_epsilon", EPS),
            defaults={"norm_epsilon": 1e-5},
        ),
    ),
    configure,
    partial(blocks.layer, feed_forward=feed_forward),
)
