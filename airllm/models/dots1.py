"""dots.llm1 (arXiv:2506.05767): normalised heads of Q and K; experts behind a few dense layers,
chosen by a sigmoid with a bias, and two that all tokens use."""

from functools import partial

from airllm.graph.vocabulary import Gating
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    SHARED_EXPERT_NAMES,
    HFReader,
    HuggingFace,
)
from airllm.models.qwen2 import BIASES

NAMES = {
    **EXPERT_NAMES,
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(
    r: ConfigReader, *, gating: Gating = "sigmoid", rope_interleaved: bool = False
) -> ModelConfig:
    """gating: where the file does not say."""
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating=gating, normalized=False)
    return r.config(
        layers=[LayerConfig(has_experts=index >= dense) for index in range(r.n_layers)],
        biases=r.optional_biases(*BIASES, "attn_output"),
        rope_interleaved=rope_interleaved,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", 0) * mixture["expert_size"],
        **mixture,
    )


def _values(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sigmoid")
    config.expect("topk_method", None, "noaux_tc")
    config.expect("moe_layer_freq", None, 1)
    return {
        **config.no_window(),
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", False),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        **config.expert_groups(),
        "expert_shared_count": config.integer("n_shared_experts", 0),
        "leading_dense_block_count": config.dense_layers(0),
    }


FAMILY = Family(
    ("dots1",),
    (HuggingFace("dots1", "dots1", _values, NAMES),),
    configure,
    partial(blocks.layer, normed="heads"),
)
