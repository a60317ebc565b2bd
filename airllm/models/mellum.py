"""Mellum 2 (JetBrains): Qwen3-MoE with a window, and a theta of their own, in three of four
layers."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, FULL, SLIDING, HFReader, HuggingFace
from airllm.models.own_heads import rotations
from airllm.util.metadata import Metadata

PERIOD = 4


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(window, has_experts=True) for window in r.windows(period=PERIOD)]
    return r.config(layers=layers, **r.experts())


def _values(config: HFReader) -> dict[str, object]:
    config.expect("norm_topk_prob", None, True)  # readers of GGUF files assume it
    n_layers = config.integer("num_hidden_layers", low=1, high=2**12)
    config.expect("mlp_layer_types", None, ["sparse"] * n_layers)
    config.expect("use_sliding_window", None, True)
    config.ignore("num_mtp_layers", "mtp_layer_types", "mtp_mlp_layer_types")  # left out
    if config.rotating_share(FULL) not in (None, 1.0):
        raise config.fault("rope_parameters rotates a part of each head")
    return {**config.experts(), **config.sliding(PERIOD)}


def _defaults(config: Metadata) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", 28, low=1, high=2**12)
    return {
        **{"vocab_size": 98304, "hidden_size": 2304, "intermediate_size": 7168, "head_dim": 128},
        **{"num_hidden_layers": n_layers, "num_attention_heads": 32, "num_key_value_heads": 4},
        **{"sliding_window": 1024, "moe_intermediate_size": 896},
        **{"max_position_embeddings": 131072, "rms_norm_eps": 1e-6, "num_experts_per_tok": 8},
        "layer_types": [FULL] * n_layers,
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 5e5},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4},
        },
    }


FAMILY = Family(
    ("mellum",),
    (HuggingFace("mellum", "mellum", _values, EXPERT_NAMES, defaults=_defaults),),
    configure,
    partial(blocks.layer, normed="heads"),
    rotations=rotations,
)
