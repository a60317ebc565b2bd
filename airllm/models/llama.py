"""Llama (arXiv:2302.13971, arXiv:2407.21783), and models of its shape: SmolLM2, TinyLlama, and
Mistral (arXiv:2310.06825), whose layers attend to a window.

The converter to GGUF reorders the rows of Q and K of this architecture, so that rope rotates
neighbouring dimensions. In Hugging Face's files it rotates j with j + head_dim / 2.
"""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(window) for window in r.windows()]
    return r.config(layers=layers, rope_interleaved=True)


FAMILY = Family(
    architectures=("llama",),
    hugging_face=(
        HuggingFace("llama", "llama", HFReader.no_window, gguf_interleaved=True),
        HuggingFace("mistral", "llama", HFReader.sliding, gguf_interleaved=True),
    ),
    configure=configure,
)
