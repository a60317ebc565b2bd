"""Qwen3's mixtures of experts (arXiv:2505.09388): a router chooses, for each token, a few of many
small feed-forward networks."""

from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace
from airllm.models.qwen3 import layer


def configure(r: ConfigReader) -> ModelConfig:
    r.ignore("rope.dimension_sections")
    layers = [LayerConfig(has_experts=True)] * r.n_layers
    return r.config(layers=layers, **r.experts())


def _values(config: HFReader) -> dict[str, object]:
    config.no_window()
    config.ignore("decoder_sparse_step", "mlp_only_layers")  # the tensors show dense layers
    norm = config.flag("norm_topk_prob")
    return {**config.experts(), "expert_weights_norm": norm}


FAMILY = Family(
    ("qwen3moe", "qwen3vlmoe"),
    (
        HuggingFace(
            "qwen3_moe",
            "qwen3moe",
            _values,
            EXPERT_NAMES,
            defaults={"norm_topk_prob": False},
        ),
    ),
    configure,
    layer,
)
