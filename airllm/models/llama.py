"""Llama (arXiv:2302.13971, arXiv:2407.21783), and models of its shape: SmolLM2, TinyLlama,
InternLM, XVERSE, Mistral (arXiv:2310.06825), whose layers attend to a window, and Mixtral
(arXiv:2401.04088), which has experts.

The converter to GGUF reorders the rows of Q and K of this architecture, so that rope rotates
neighbouring dimensions. In Hugging Face's files it rotates j with j + head_dim / 2.
"""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import SPARSE_NAMES, HFReader, HuggingFace
from airllm.models.qwen2 import ALL_BIASES


def configure(r: ConfigReader) -> ModelConfig:
    has_experts = r.integer("expert_count", 0) > 0
    layers = [LayerConfig(window, has_experts=has_experts) for window in r.windows()]
    mixture = r.experts(shared_out=False) if has_experts else {}
    biases = r.optional_biases(*ALL_BIASES)
    return r.config(layers=layers, biases=biases, rope_interleaved=True, **mixture)


def _mixtral(config: HFReader) -> dict[str, object]:
    return {**config.experts(size="intermediate_size"), **config.sliding()}


def _internlm3(config: HFReader) -> dict[str, object]:
    config.ignore("bias")  # the tensors show biases
    return config.no_window()


FAMILY = Family(
    architectures=("internlm2", "llama", "xverse"),
    hugging_face=(
        HuggingFace("llama", "llama", HFReader.no_window, gguf_interleaved=True),
        HuggingFace(
            "internlm3",
            "llama",
            _internlm3,
            gguf_interleaved=True,
            defaults={"head_dim": 128},
        ),
        HuggingFace("mistral", "llama", HFReader.sliding, gguf_interleaved=True),
        HuggingFace("mixtral", "llama", _mixtral, SPARSE_NAMES, gguf_interleaved=True),
    ),
    configure=configure,
)
