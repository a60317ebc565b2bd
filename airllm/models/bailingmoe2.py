"""Ling and Ring 2 (arXiv:2510.22115), and Sarvam 30B: one matrix for Q, K and V, whose heads are
normalised; experts behind a few dense layers, chosen by a sigmoid with groups and biases, beside
one or more that all tokens use. Half of each head rotates, in Sarvam the whole."""

from functools import partial

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
from airllm.util.metadata import Metadata

NAMES = {
    **EXPERT_NAMES,
    "word_embeddings": "token_embd",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "attention.query_layernorm": "attn_q_norm",
    "attention.key_layernorm": "attn_k_norm",
    "mlp.gate.expert_bias": "exp_probs_b.bias",
    **SHARED_EXPERT_NAMES,
}


def configure(r: ConfigReader) -> ModelConfig:
    r.leave_out_heads()
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    mixture = r.experts(gating="sigmoid", normalized=False)
    of_one = r.integer("expert_shared_feed_forward_length", mixture["expert_size"])
    return r.config(
        layers=[LayerConfig(has_experts=index >= dense) for index in range(r.n_layers)],
        biases=r.optional_biases("attn_qkv", "attn_output"),
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_count", 0) * of_one,
        **mixture,
    )


def _values(config: HFReader) -> dict[str, object]:
    """Older models, Ling 1 and Ling-Coder, have the same model_type."""
    config.expect("use_qk_norm", True)
    config.expect("score_function", "sigmoid")
    config.expect("moe_router_enable_expert_bias", None, True)
    config.expect("use_rmsnorm", None, True)
    config.expect("using_split_qkv_in_self_attention", None, False)
    config.expect("rotary_dim", None)
    config.ignore("use_bias", "use_qkv_bias", "max_window_layers")  # the tensors show biases
    config.ignore("moe_router_topk_scaling_factor", "router_dtype", "norm_head", "norm_softmax")
    return {
        **config.experts(),
        "expert_gating_func": 2,
        "expert_weights_norm": config.flag("norm_topk_prob", True),
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        **config.expert_groups(),
        "expert_shared_count": config.integer("num_shared_experts", 0),
        "expert_shared_feed_forward_length": config.integer(
            "moe_shared_expert_intermediate_size", config.integer("moe_intermediate_size")
        ),
        "leading_dense_block_count": config.dense_layers(0),
    }


def _sarvam(config: HFReader) -> dict[str, object]:
    config.ignore("n_shared_experts")  # see _defaults_of_sarvam
    return _values(config)


def _defaults_of_sarvam(config: Metadata) -> dict[str, object]:
    """transformers has another name of the number of shared experts than published folders."""
    return {
        **{"use_qk_norm": True, "score_function": "sigmoid", "routed_scaling_factor": 2.5},
        **{"head_dim": 64, "rope_theta": 8e6, "first_k_dense_replace": 1},
        "num_shared_experts": config.get("n_shared_experts") or 1,
    }


FAMILY = Family(
    ("bailingmoe2",),
    (
        HuggingFace(
            "bailing_moe",
            "bailingmoe2",
            _values,
            NAMES,
            defaults={"partial_rotary_factor": 0.5},
        ),
        HuggingFace("sarvam_moe", "bailingmoe2", _sarvam, NAMES, defaults=_defaults_of_sarvam),
    ),
    configure,
    partial(blocks.layer, normed="heads", fused=True),
)
