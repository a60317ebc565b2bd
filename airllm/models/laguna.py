"""Laguna (poolside): heads, or their values, have a gate; layers may differ in their number of
heads, and three of four may have a window and a theta of their own. Experts come behind a few dense
layers, chosen by a sigmoid with a bias, beside one that all tokens use."""

import numpy as np

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import (
    EXPERT_NAMES,
    FULL,
    SHARED_EXPERT_NAMES,
    SLIDING,
    HFReader,
    HuggingFace,
)
from airllm.models.own_heads import (
    attend_gated,
    read_head_dim,
    read_heads,
    rotations,
    windowed_rope_dims,
    windows_behind_first,
)
from airllm.util.metadata import Metadata

PERIOD = 4
_GATE = "blk.0.attn_gate.weight"
NAMES = {
    **EXPERT_NAMES,
    **SHARED_EXPERT_NAMES,
    **{f"mlp.shared_expert.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    "mlp.experts.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "self_attn.g_proj": "attn_gate",
}


def configure(r: ConfigReader) -> ModelConfig:
    """The gate's tensor shows whether it has a number for each head or for each value."""
    heads, head_dim = read_heads(r), read_head_dim(r)
    windows = windows_behind_first(r, PERIOD)
    dense = r.integer("leading_dense_block_count", 0, high=r.n_layers)
    rope_dims = windowed_rope_dims(r, r.integer("rope.dimension_count", head_dim), head_dim)
    mixture = r.experts(gating="sigmoid", normalized=False)
    shared = r.integer("expert_shared_count", 1, high=2**8) * mixture["expert_size"]
    gate = r.file.tensors.get(_GATE)
    return r.config(
        layers=[
            LayerConfig(
                window,
                has_experts=index >= dense,
                n_heads=n_heads,
                n_kv_heads=n_kv_heads,
                rope_dims=rope_dims if window else 0,
            )
            for index, window, (n_heads, n_kv_heads) in zip(
                range(r.n_layers), windows, heads, strict=True
            )
        ],
        head_dim=head_dim,
        n_heads=max(n_heads for n_heads, _ in heads),
        kv_heads=[n_kv_heads for _, n_kv_heads in heads],
        biases=r.optional_biases("attn_q", "attn_k", "attn_v", "attn_output"),
        gate_of_values=gate is not None and gate.shape[0] == heads[0][0] * head_dim,
        intermediate_size=r.feed_forward_length(),
        shared_expert_size=r.integer("expert_shared_feed_forward_length", shared),
        **mixture,
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    attend = attend_gated("softplus")
    return blocks.layer(c.of(layer), activations, layer, normed="heads", attend=attend)


# ---- Hugging Face --------------------------------------------------------------------------------


def _values(config: HFReader) -> dict[str, object]:
    config.expect("moe_apply_router_weight_on_input", None, False)
    config.expect("moe_router_logit_softcapping", None, 0)  # files of GGUF have no key for it
    config.ignore("gating", "gating_types", "mlp_layer_types", "layer_types", "sliding_window")
    n_layers, head_dim = config.integer("num_hidden_layers"), config.integer("head_dim", low=1)
    heads = config.of_layers("num_attention_heads_per_layer", n_layers)
    values: dict[str, object] = {
        **config.experts(),
        "attention.head_count": heads,
        "expert_gating_func": 2,
        "expert_weights_norm": True,
        "expert_weights_scale": config.number("moe_routed_scaling_factor", 1.0),
        "expert_shared_feed_forward_length": config.integer("shared_expert_intermediate_size"),
        "leading_dense_block_count": config.first_layers("dense", "sparse", n_layers),
    }
    local = config.local_layers(np.zeros(n_layers, bool))
    if local.any():
        share = config.rotating_share(SLIDING)
        values |= {
            "attention.sliding_window": config.integer("sliding_window"),
            "attention.sliding_window_pattern": local,
            "rope.dimension_count_swa": int(head_dim * (1.0 if share is None else share)),
        }
    return values


def _defaults(config: Metadata) -> dict[str, object]:
    n_layers = config.integer("num_hidden_layers", 40, low=1, high=2**12)
    found: dict[str, object] = {
        **{"vocab_size": 100352, "hidden_size": 2048, "intermediate_size": 8192},
        **{"num_hidden_layers": n_layers, "num_attention_heads": 48, "num_key_value_heads": 8},
        **{"head_dim": 128, "rms_norm_eps": 1e-6, "max_position_embeddings": 131072},
        **{"sliding_window": 512, "num_experts": 256, "num_experts_per_tok": 8},
        **{"moe_intermediate_size": 512, "shared_expert_intermediate_size": 512},
        "num_attention_heads_per_layer": config.get("num_attention_heads", 48),
        "layer_types": [FULL] * n_layers,
        "mlp_layer_types": ["dense"] + ["sparse"] * (n_layers - 1),
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5},
            SLIDING: {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
        },
    }
    return found


FAMILY = Family(
    ("laguna",),
    (HuggingFace("laguna", "laguna", _values, NAMES, defaults=_defaults),),
    configure,
    layer,
    rotations=rotations,
)
