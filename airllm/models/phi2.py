"""Phi-1, 1.5 and 2 (arXiv:2309.05463): attention and a network with GELU side by side behind one
LayerNorm, and biases everywhere. A part of each head rotates."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.models.starcoder2 import EPS, feed_forward

_FUSED = "attn_qkv"  # in place of the three, in files of older converters


def configure(r: ConfigReader) -> ModelConfig:
    biases = {"attn_norm", "output_norm", "attn_output", "ffn_up", "ffn_down", "output"}
    fused = r.optional_biases(_FUSED)
    return r.config(eps_key=EPS, layer_norms=True, biases=biases | (fused or frozenset(BIASES)))


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    return blocks.parallel_layer(
        c, activations, layer, fused=_FUSED in c.biases, feed_forward=feed_forward
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("qk_layernorm", None, False)
    return {}


FAMILY = Family(
    ("phi2",),
    (
        HuggingFace(
            "phi",
            "phi2",
            _values,
            {
                "lm_head": "output",  # of its bias
                "final_layernorm": "output_norm",
                "self_attn.dense": "attn_output",
                "mlp.fc1": "ffn_up",
                "mlp.fc2": "ffn_down",
            },
            activation="gelu_new",
            norm_eps=("layer_norm_eps", EPS),
            defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.5},
        ),
    ),
    configure,
    layer,
)
