"""StableLM and StableLM 2 (arXiv:2402.17834), StableCode, and Orion: a Llama with LayerNorm, and
biases. A quarter of each head of StableLM rotates."""

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace
from airllm.models.qwen2 import BIASES
from airllm.models.starcoder2 import EPS


def configure(r: ConfigReader) -> ModelConfig:
    biases = r.optional_biases(*BIASES, "ffn_norm") | {"attn_norm", "output_norm"}
    return r.config(eps_key=EPS, layer_norms=True, biases=biases)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    """Files without the second norm have both halves of a layer side by side."""
    make = blocks.layer if "ffn_norm" in c.biases else blocks.parallel_layer
    return make(c, activations, layer)


def _values(config: HFReader) -> dict[str, object]:
    config.expect("qk_layernorm", None, False)
    config.ignore("use_qkv_bias", "use_parallel_residual")  # the tensors show them
    return {}


FAMILY = Family(
    ("orion", "stablelm"),
    (
        HuggingFace(
            "stablelm",
            "stablelm",
            _values,
            norm_eps=("layer_norm_eps", EPS),
            defaults={"layer_norm_eps": 1e-5, "partial_rotary_factor": 0.25},
        ),
    ),
    configure,
    layer,
)
