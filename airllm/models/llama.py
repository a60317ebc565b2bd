"""Llama (arXiv:2302.13971, arXiv:2407.21783), and models of its shape: SmolLM2, TinyLlama, and
Mistral (arXiv:2310.06825), whose layers attend to a window.

The converter to GGUF reorders the rows of Q and K of this architecture, so that rope rotates
neighbouring dimensions. In Hugging Face's files it rotates j with j + head_dim / 2.
"""

from airllm.graph.builder import GraphBuilder
from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(window) for window in r.windows()]
    return r.config(layers=layers, rope_interleaved=True)


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    g = GraphBuilder("layer", activations=activations)
    x = g.external("residual", c.hidden_size)  # [n, hidden]
    h = blocks.norm(g, c, x, "attn_norm")
    x = g.add(x, blocks.attention(g, c, layer, h), out=x)
    h = blocks.norm(g, c, x, "ffn_norm")
    g.add(x, blocks.swiglu_mlp(g, c, h), out=x)
    return g.build()


def _no_window(config: HFReader) -> dict[str, object]:
    config.no_window("llama")
    return {}


FAMILY = Family(
    architectures=("llama",),
    hugging_face=(
        HuggingFace("llama", "llama", _no_window, gguf_interleaved=True),
        HuggingFace("mistral", "llama", HFReader.sliding, gguf_interleaved=True),
    ),
    configure=configure,
    layer=layer,
)
