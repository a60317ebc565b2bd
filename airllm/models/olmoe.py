"""OLMoE (arXiv:2409.02060): a mixture of experts whose Q and K are normalised over all heads."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, HFReader, HuggingFace


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(has_experts=True)] * r.n_layers
    return r.config(layers=layers, **r.experts(shared_out=False, normalized=False))


def _values(config: HFReader) -> dict[str, object]:
    norm = config.flag("norm_topk_prob", False)
    return {**config.experts(size="intermediate_size"), "expert_weights_norm": norm}


FAMILY = Family(
    ("olmoe",),
    (HuggingFace("olmoe", "olmoe", _values, EXPERT_NAMES),),
    configure,
    partial(blocks.layer, normed="rows"),
)
