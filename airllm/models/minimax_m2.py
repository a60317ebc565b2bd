"""MiniMax M2: experts chosen by a sigmoid with a bias; Q and K normalised over all heads; half of
each head rotates."""

from functools import partial

from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import SPARSE_NAMES, HFReader, HuggingFace

NAMES = {**SPARSE_NAMES, "block_sparse_moe.e_score_correction_bias": "exp_probs_b.bias"}


def configure(r: ConfigReader) -> ModelConfig:
    layers = [LayerConfig(has_experts=True)] * r.n_layers
    return r.config(layers=layers, **r.experts(gating="sigmoid"))


def _values(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sigmoid")
    config.expect("use_qk_norm", None, True)
    config.expect("qk_norm_type", None, "per_layer")
    config.expect("use_routing_bias", None, True)
    values = {**config.experts(size="intermediate_size"), "expert_gating_func": 2}
    if "rotary_dim" in config:
        values["rope.dimension_count"] = config.integer("rotary_dim")
    return values


FAMILY = Family(
    ("minimax-m2",),
    (HuggingFace("minimax_m2", "minimax-m2", _values, NAMES, defaults={"head_dim": 128}),),
    configure,
    partial(blocks.layer, normed="rows"),
)
