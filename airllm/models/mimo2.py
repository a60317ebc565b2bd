"""MiMo-V2-Flash (arXiv:2601.02780): most layers have a window, more heads of keys, sinks, and a
theta of their own; values are narrower than keys. Experts come behind a dense layer, chosen by a
sigmoid with a bias."""

from collections.abc import Mapping

import numpy as np

from airllm.graph.graph import Activations, Graph
from airllm.models import blocks
from airllm.models.config import LayerConfig, ModelConfig
from airllm.models.config_reader import MAX_HEAD_DIM, ConfigReader
from airllm.models.family import Family
from airllm.models.hugging_face import EXPERT_NAMES, FULL, SLIDING, HFReader, HuggingFace
from airllm.models.own_heads import first_head, next_layer, rotations
from airllm.util.metadata import Metadata

PERIOD = 6  # the last layer of each, and the first of all, see all positions
NAMES = {
    **EXPERT_NAMES,
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "self_attn.attention_sink_bias": "attn_sinks",
}


def configure(r: ConfigReader) -> ModelConfig:
    """Files do not say which layers have experts, or sinks: their tensors show it."""
    windows, kv_heads = r.windows(), r.kv_heads(differ=True)  # of heads, too
    r.leave_out_heads()
    tensors = r.file.tensors
    head_dim = r.integer("attention.key_length", low=1, high=MAX_HEAD_DIM)
    layers = [
        LayerConfig(
            windows[index],
            has_experts=f"blk.{index}.ffn_gate_inp.weight" in tensors,
            n_kv_heads=kv_heads[index],
            has_sinks=f"blk.{index}.attn_sinks.weight" in tensors,
            fused_qkv=f"blk.{index}.attn_qkv.weight" in tensors,
        )
        for index in range(len(windows))
    ]
    return r.config(
        layers=layers[: r.n_layers],
        head_layer=first_head(r, layers),
        kv_heads=kv_heads,
        head_dim=head_dim,
        value_dim=r.integer("attention.value_length", head_dim, low=1, high=MAX_HEAD_DIM),
        value_scale=r.positive("attention.value_scale", 1.0),
        intermediate_size=r.feed_forward_length(),
        **r.experts(gating="sigmoid"),
    )


def layer(c: ModelConfig, activations: Activations, layer: LayerConfig) -> Graph:
    c = c.of(layer)
    return blocks.layer(c, activations, layer, fused=layer.fused_qkv, sinks=layer.has_sinks)


# ---- Hugging Face --------------------------------------------------------------------------------


def _defaults(config: Metadata) -> Mapping[str, object]:
    """Of the configuration class, and what published folders have by other names."""
    layers = range(config.integer("num_hidden_layers", 48, low=1, high=2**12))
    usual = [index > 0 and index % PERIOD != PERIOD - 1 for index in layers]
    local = config.get("hybrid_layer_pattern", usual)
    if not isinstance(local, list) or any(flag not in (0, 1) for flag in local):
        raise config.fault("hybrid_layer_pattern is no list of 0 and 1, one for each layer")
    return {
        "head_dim": 192,
        "v_head_dim": 128,
        "attention_value_scale": 0.707,
        "layer_types": [SLIDING if flag else FULL for flag in local],
        "num_key_value_heads": 4,
        "rms_norm_eps": config.get("layernorm_epsilon", 1e-5),
        "rope_local_base_freq": config.get("swa_rope_theta", 10000.0),
        "rope_theta": 5e6,
        "partial_rotary_factor": 0.334,
        "sliding_window": 129,
    }


def _values(config: HFReader) -> dict[str, object]:
    config.expect("scoring_func", None, "sigmoid")
    config.expect("topk_method", None, "noaux_tc")
    config.expect("norm_topk_prob", None, True)  # readers of GGUF files assume it
    config.expect("n_shared_experts", None, 0)
    config.expect("add_swa_attention_sink_bias", None, True)
    config.expect("add_full_attention_sink_bias", None, False)
    config.expect("hybrid_block_size", None)
    heads, value_dim = config.integer("num_attention_heads"), config.integer("v_head_dim", low=1)
    config.expect("swa_num_attention_heads", None, heads)
    config.expect("swa_head_dim", None, config.integer("head_dim"))
    config.expect("swa_v_head_dim", None, value_dim)
    # Other names of what _defaults has, and what is the window once more.
    config.ignore("hybrid_layer_pattern", "moe_layer_freq", "layernorm_epsilon", "swa_rope_theta")
    config.ignore("attention_chunk_size", "layer_types", "mlp_layer_types")
    if config.rotating_share(SLIDING) != config.rotating_share(FULL):
        raise config.fault("rope_parameters has another partial_rotary_factor for windows")
    kv_heads = config.integer("num_key_value_heads", low=1, high=heads)
    local = np.array([kind == SLIDING for kind in config.layer_kinds((FULL, SLIDING))], bool)
    values: dict[str, object] = {
        **config.experts(),
        **config.expert_groups(),
        "expert_gating_func": 2,
        "expert_weights_scale": config.number("routed_scaling_factor", 1.0),
        "attention.value_length": value_dim,
        "attention.value_scale": config.number("attention_value_scale"),
        "attention.sliding_window": config.integer("sliding_window"),
        "attention.sliding_window_pattern": local,
        "attention.head_count_kv": np.where(
            local, config.integer("swa_num_key_value_heads", 2 * kv_heads, low=1), kv_heads
        ).astype(np.int32),
    }
    if "sliding_window_size" in config:  # does not count the token itself
        values["attention.sliding_window"] = config.integer("sliding_window_size") + 1
    return values


FAMILY = Family(
    ("mimo2",),
    (HuggingFace("mimo_v2_flash", "mimo2", _values, NAMES, defaults=_defaults),),
    configure,
    layer,
    rotations=rotations,
    next_layer=next_layer,
    next_reads_normed=False,
)
