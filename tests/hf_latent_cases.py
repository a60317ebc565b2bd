"""Tiny models with latent attention, and of the kinds made of it, as in hf_cases."""

from typing import Any

import numpy as np
from hf_case import CONTEXT, YARN, Case

_DEEPSEEK_YARN = {
    **{"type": "deepseek_yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    **{"mscale": 1.0, "mscale_all_dim": 1.0},
}
_LATENT = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": None, "v_head_dim": 24},
    **{"qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "n_routed_experts": 6},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2},
    **{"first_k_dense_replace": 2},
}
_DENSE = (
    *("n_routed_experts", "num_experts_per_tok", "moe_intermediate_size", "n_shared_experts"),
    "first_k_dense_replace",
)
_LATENT_KEYS = {
    **{"attention.head_count_kv": 1, "attention.kv_lora_rank": 32, "attention.key_length": 40},
    **{"attention.value_length": 32, "attention.key_length_mla": 40},
    **{"attention.value_length_mla": 24, "rope.dimension_count": 8, "expert_shared_count": 2},
    **{"leading_dense_block_count": 2},
}
_LATENT_NAMES = {
    **{f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
}
_KIMI_LINEAR = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 32, "v_head_dim": 24, "qk_nope_head_dim": 32},
    **{"qk_rope_head_dim": 8, "num_local_experts": 6, "num_experts_per_tok": 4},
    **{"moe_intermediate_size": 32, "n_shared_experts": 2, "linear_head_dim": 32},
    **{"linear_num_heads": 4, "rms_norm_eps": 1e-6, "pad_token_id": 0},
    "layer_types": ["linear_attention", "full_attention", "linear_attention"],
}
_KIMI_LINEAR_KEYS = {
    **{"attention.head_count_kv": np.array([0, 1, 0], np.int32), "attention.kv_lora_rank": 32},
    **{"attention.key_length": 40, "attention.key_length_mla": 40, "rope.dimension_count": 8},
    **{"attention.value_length_mla": 24, "kda.head_dim": 32, "ssm.conv_kernel": 4},
    **{"expert_gating_func": 2, "expert_shared_count": 2, "leading_dense_block_count": 1},
}
_KIMI_LINEAR_NAMES = _LATENT_NAMES | {
    "self_attn.forget_gate.f_a_proj": "ssm_f_a",
    "self_attn.forget_gate.f_b_proj": "ssm_f_b",
    "self_attn.forget_gate.A_log": "ssm_a",
    "self_attn.forget_gate.dt_bias": "ssm_dt.bias",
    "self_attn.b_proj": "ssm_beta",
    "self_attn.g_a_proj": "ssm_g_a",
    "self_attn.g_b_proj": "ssm_g_b",
    "self_attn.o_norm": "ssm_norm",
}
# As its authors wrote it, not as transformers does
_KIMI_LINEAR_EXTRA: dict[str, Any] = {
    **dict.fromkeys(["layer_types", "mlp_layer_types"]),
    **dict.fromkeys(["linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"]),
    **{"head_dim": 16, "rope_theta": 10000.0, "mla_use_nope": True, "moe_layer_freq": 1},
    **{"moe_router_activation_func": "sigmoid", "use_grouped_topk": True},
    "linear_attn_config": {
        **{"kda_layers": [1, 3], "full_attn_layers": [2], "head_dim": 32},
        **{"num_heads": 4, "short_conv_kernel_size": 4},
    },
}
_LONG_LATENTS = {
    **{"rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0, 1.2, 1.4, 1.6]},
    **{"long_factor": [1.0, 2.0, 4.0, 8.0], "original_max_position_embeddings": 256},
}
_HY4_SECTIONS = {"mrope_section": [2, 1, 1]}
_LING3_NAMES = _LATENT_NAMES | {
    "self_attn.forget_gate.f_proj": "ssm_f_a",
    "self_attn.forget_gate.A_log": "ssm_a",
    "self_attn.forget_gate.dt_bias": "ssm_dt.bias",
    "self_attn.b_proj": "ssm_beta",
    "self_attn.g_proj": "ssm_g_a",
    "self_attn.gate_proj": "attn_gate",
    "self_attn.o_norm": "ssm_norm",
}
# As its authors write it.
_LING3_EXTRA: dict[str, Any] = {
    **dict.fromkeys(["layer_types", "mlp_layer_types", "rope_parameters", "model_max_length"]),
    **dict.fromkeys(["linear_head_dim", "linear_num_heads", "linear_conv_kernel_dim"]),
    **dict.fromkeys(["moe_renormalize", "num_expert_group", "num_experts_per_token"]),
    **{"architectures": ["BailingMoeV3ForCausalLM"], "max_position_embeddings": CONTEXT},
    **{"head_dim": 32, "n_group": 2, "num_experts_per_tok": 2, "norm_topk_prob": True},
    **{"no_kda_lora": True, "score_function": "sigmoid", "use_rmsnorm": True},
    **{"gated_attention_proj_granularity_type": "head_wise"},
    "moe_shared_expert_intermediate_size": 32,
}
# llama.cpp rotates the keys of an index by matrices of 64 or more.
_INDEX = {"index_n_heads": 16, "index_head_dim": 64, "index_topk": 20}
_INDEX_KEYS = {
    **{"attention.indexer.head_count": 16, "attention.indexer.key_length": 64},
    "attention.indexer.top_k": 20,
}
_INDEX_NAMES = {
    **_LATENT_NAMES,
    "self_attn.indexer.wq_b": "indexer.attn_q_b",
    "self_attn.indexer.wk": "indexer.attn_k",
    "self_attn.indexer.k_norm": "indexer.k_norm",
    "self_attn.indexer.weights_proj": "indexer.proj",
}
_MSCALE = {"mscale": 0.707, "mscale_all_dim": 0.707}
_YARN_KEYS = {
    **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
    "rope.scaling.original_context_length": 32,
}

LATENT_CASES = {
    "DeepSeek-V2-Lite": Case(
        "DeepseekV2",
        "deepseek2",
        _LATENT | {"rope_parameters": YARN | _MSCALE},
        _LATENT_KEYS | _YARN_KEYS | {"rope.scaling.yarn_log_multiplier": 0.0707},
        names=_LATENT_NAMES,
        extra={"scoring_func": "softmax", "moe_layer_freq": 1},
    ),
    "DeepSeek-V2": Case(
        "DeepseekV2",
        "deepseek2",
        _LATENT
        | {"q_lora_rank": 32, "routed_scaling_factor": 2.0, "topk_method": "group_limited_greedy"}
        | {"n_group": 3, "topk_group": 2},
        _LATENT_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.0}
        | {"expert_group_count": 3, "expert_group_used_count": 2},
        names=_LATENT_NAMES,
    ),
    "DeepSeek-V3": Case(
        "DeepseekV3",
        "deepseek2",
        _LATENT
        | {"q_lora_rank": 32, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        _LATENT_KEYS
        | _YARN_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"expert_group_count": 3, "expert_group_used_count": 2, "expert_gating_func": 2}
        | {"rope.scaling.yarn_log_multiplier": 0.1},
        names=_LATENT_NAMES,
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ),
    "DeepSeek-V3.2": Case(
        "DeepseekV32",
        "deepseek32",
        _LATENT
        | _INDEX
        | {"q_lora_rank": 32, "n_group": 3, "topk_group": 2, "routed_scaling_factor": 2.5}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        _LATENT_KEYS
        | _INDEX_KEYS
        | _YARN_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"expert_group_count": 3, "expert_group_used_count": 2, "expert_gating_func": 2}
        | {"rope.scaling.yarn_log_multiplier": 0.1},
        names=_INDEX_NAMES,
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1},
    ),
    "DeepSeek-V4": Case(
        "DeepseekV4",
        "deepseek4",
        {
            **{"num_hidden_layers": 5, "num_key_value_heads": 1, "head_dim": 64},
            **{"moe_intermediate_size": 32, "n_routed_experts": 6, "num_experts_per_tok": 2},
            **{"q_lora_rank": 32, "o_groups": 2, "o_lora_rank": 32, "sliding_window": 20},
            **{"index_n_heads": 16, "index_head_dim": 64, "index_topk": 6},
            **{"partial_rotary_factor": 0.125, "swiglu_limit": 1.5, "hc_sinkhorn_iters": 7},
            "compress_rates": {
                "compressed_sparse_attention": 4,
                "heavily_compressed_attention": 16,
            },
            "layer_types": [
                "sliding_attention",
                *["compressed_sparse_attention", "heavily_compressed_attention"] * 2,
            ],
            "mlp_layer_types": ["hash_moe"] * 2 + ["moe"] * 3,
            "rope_parameters": {key: YARN[key] for key in YARN if key != "rope_theta"},
        },
        {
            **{"attention.q_lora_rank": 32, "rope.dimension_count": 8},
            **{"attention.compress_ratios": np.array([0, 4, 16, 4, 16], np.int32)},
            **{"attention.compress_rope_freq_base": 160000.0, "hash_layer_count": 2},
            **{"attention.output_group_count": 2, "attention.output_lora_rank": 32},
            **{"attention.sliding_window": 20, "attention.indexer.head_count": 16},
            **{"attention.indexer.key_length": 64, "attention.indexer.top_k": 6},
            **{"hyper_connection.count": 4, "hyper_connection.sinkhorn_iterations": 7},
            **{"hyper_connection.epsilon": 1e-6, "rope.freq_base": 10000.0},
            **{"swiglu_clamp_exp": np.full(5, 1.5, np.float32), "expert_gating_func": 4},
            **{"swiglu_clamp_shexp": np.full(5, 1.5, np.float32), "expert_shared_count": 1},
            **{"expert_weights_norm": True, "expert_weights_scale": 1.5},
        }
        | _YARN_KEYS,
        names={
            **{f"hc_head.hc_{part}": f"output_hc_{part}" for part in ("fn", "base", "scale")},
            **{
                f"{half}_hc.{part}": f"hc_{half}_{part}"
                for half in ("attn", "ffn")
                for part in ("fn", "base", "scale")
            },
            **{"self_attn.sinks": "attn_sinks", "self_attn.kv_proj": "attn_kv"},
            **{"self_attn.q_a_proj": "attn_q_a", "self_attn.q_a_norm": "attn_q_a_norm"},
            **{"self_attn.q_b_proj": "attn_q_b", "self_attn.kv_norm": "attn_kv_a_norm"},
            **{"self_attn.o_a_proj": "attn_output_a", "self_attn.o_b_proj": "attn_output_b"},
            **{
                f"self_attn.compressor{before}.{own}": f"{slot}_compressor_{it}"
                for before, slot in (("", "attn"), (".indexer", "indexer"))
                for own, it in (
                    *(("kv_proj", "kv"), ("gate_proj", "gate"), ("kv_norm", "norm")),
                    ("position_bias", "ape.weight."),
                )
            },
            "self_attn.compressor.indexer.q_b_proj": "indexer.attn_q_b",
            "self_attn.compressor.indexer.scorer.weights_proj": "indexer.proj",
            "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
            "mlp.gate.tid2eid": "ffn_gate_tid2eid",
            **{
                f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp"
                for part in ("gate", "up", "down")
            },
        },
        extra={"topk_method": "noaux_tc", "expert_dtype": "fp4"},
    ),
    "GLM-5": Case(
        "GlmMoeDsa",
        "glm-dsa",
        _LATENT
        | _INDEX
        | {"q_lora_rank": 32, "routed_scaling_factor": 2.5, "rms_norm_eps": 1e-6}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        _LATENT_KEYS
        | _INDEX_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"expert_gating_func": 2},
        names=_INDEX_NAMES,
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1}
        | {"indexer_rope_interleave": True},
    ),
    "GLM-5.2": Case(
        "GlmMoeDsa",
        "glm-dsa",
        _LATENT
        | _INDEX
        | {"q_lora_rank": 32, "routed_scaling_factor": 2.5}
        | {"indexer_types": ["full", "full", "shared"], "rms_norm_eps": 1e-6}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        _LATENT_KEYS
        | _INDEX_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {
            "expert_gating_func": 2,
            "attention.indexer.types": np.array([True, True, False]),
        },
        names=_INDEX_NAMES,
    ),
    "Kimi K2": Case(
        "DeepseekV3",
        "deepseek2",
        _LATENT
        | {"q_lora_rank": 32, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.0}
        | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        _LATENT_KEYS
        | _YARN_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 2.0, "expert_weights_norm": True}
        | {"expert_gating_func": 2, "rope.scaling.yarn_log_multiplier": 0.1},
        names=_LATENT_NAMES,
        extra={"model_type": "kimi_k2", "scoring_func": "sigmoid"},
    ),
    "GLM-4.7 Flash": Case(
        "Glm4MoeLite",
        "deepseek2",
        _LATENT
        | {"q_lora_rank": 32, "routed_scaling_factor": 1.8, "rms_norm_eps": 1e-6}
        | {"mlp_layer_types": ["dense", "dense", "sparse"]}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}},
        _LATENT_KEYS
        | {"attention.q_lora_rank": 32, "expert_weights_scale": 1.8, "expert_weights_norm": True},
        names=_LATENT_NAMES,
        extra={"topk_method": "noaux_tc"},
    ),
    "Sarvam 105B": Case(
        "SarvamMLA",
        "deepseek2",
        _LATENT | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
        _LATENT_KEYS
        | _YARN_KEYS
        | {"expert_weights_scale": 2.5, "expert_weights_norm": True, "expert_gating_func": 2}
        | {"rope.scaling.yarn_log_multiplier": 0.1},
        names=_LATENT_NAMES,
        extra={"head_dim": 40, "q_head_dim": 40, "rope_parameters": None, "rope_theta": 10000.0}
        | {"rope_scaling": _DEEPSEEK_YARN},
        lost="YaRN by its older name",
    ),
    "Youtu-LLM": Case(
        "Youtu",
        "deepseek2",
        {key: value for key, value in _LATENT.items() if key not in _DENSE}
        | {"q_lora_rank": 32, "tie_word_embeddings": True},
        _LATENT_KEYS
        | {"attention.q_lora_rank": 32, "expert_shared_count": 0, "leading_dense_block_count": 3},
        names=_LATENT_NAMES,
    ),
    "Kimi Linear": Case(
        "KimiLinear",
        "kimi-linear",
        _KIMI_LINEAR,
        _KIMI_LINEAR_KEYS | {"expert_weights_scale": 2.446},
        names=_KIMI_LINEAR_NAMES,
        extra=_KIMI_LINEAR_EXTRA | {"first_k_dense_replace": 1},
        renamed=(("layers.0.block_sparse_moe.", "layers.0.mlp."),),
    ),
    "Kimi Linear, shares as they are": Case(
        "KimiLinear",
        "kimi-linear",
        _KIMI_LINEAR | {"norm_topk_prob": False, "mlp_layer_types": ["sparse"] * 3},
        _KIMI_LINEAR_KEYS
        | {"expert_weights_scale": 2.446, "expert_weights_norm": False}
        | {"leading_dense_block_count": 0},
        names=_KIMI_LINEAR_NAMES,
        extra=_KIMI_LINEAR_EXTRA | {"first_k_dense_replace": 0},
        lost="that shares stay as they are",
    ),
    "Ling 3": Case(
        "BailingHybrid",
        "bailingmoe3",
        _KIMI_LINEAR
        | {"num_local_experts": 8, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1}
        | {"num_hidden_layers": 4, "layer_types": None, "layer_group_size": 2, "head_dim": 32}
        | {"first_k_dense_replace": 1, "kda_lower_bound": -2.0, "num_mtp_layers": 0}
        | {"n_shared_experts": 1, "routed_scaling_factor": 2.5},
        {"attention.head_count_kv": np.array([0, 1, 0, 1], np.int32), "rope.freq_base": 6e6}
        | {"attention.kv_lora_rank": 32, "attention.key_length": 40, "ssm.conv_kernel": 4}
        | {"attention.key_length_mla": 40, "attention.value_length_mla": 24, "kda.head_dim": 32}
        | {"kda.safe_gate": True, "kda.gate_lower_bound": -2.0, "rope.dimension_count": 8}
        | {"expert_group_count": 2, "expert_group_used_count": 1, "expert_gating_func": 2}
        | {"expert_shared_count": 1, "expert_shared_feed_forward_length": 32}
        | {"expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"leading_dense_block_count": 1},
        names=_LING3_NAMES,
        extra=_LING3_EXTRA,
    ),
    "GLM-5.3 Flash": Case(
        "Glm5Next",
        "glm5-next",
        _LATENT
        | _INDEX
        | {"q_lora_rank": 32, "qk_rope_head_dim": 0, "index_kpool": 4, "n_shared_experts": 1}
        | {"num_hidden_layers": 4, "mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]}
        | {"layer_types": ["linear_attention", *2 * ["indexed_attention"], "linear_attention"]}
        | {"indexer_types": ["full", "full", "shared", "full"], "first_k_dense_replace": 1}
        | {"linear_head_dim": 32, "linear_num_heads": 4, "linear_lower_bound": -2.0}
        | {"hc_sinkhorn_iters": 7, "swiglu_limit": 0.5, "pad_token_id": 0, "rms_norm_eps": 1e-6},
        {"attention.head_count_kv": np.array([0, 1, 1, 0], np.int32), "rope.dimension_count": 0}
        | {"attention.kv_lora_rank": 32, "attention.q_lora_rank": 32, "attention.key_length": 32}
        | {"attention.value_length": 32, "attention.key_length_mla": 32}
        | {"attention.value_length_mla": 24, "kda.head_dim": 32, "kda.gate_lower_bound": -2.0}
        | {"ssm.conv_kernel": 4, "expert_shared_count": 1, "leading_dense_block_count": 1}
        | {"expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"swiglu_clamp_exp": np.full(4, 0.5, np.float32), "hyper_connection.count": 4}
        | {"swiglu_clamp_shexp": np.full(4, 0.5, np.float32)}
        | {"hyper_connection.epsilon": 1e-6, "hyper_connection.sinkhorn_iterations": 7}
        | _INDEX_KEYS
        | {"attention.indexer.kpool": 4, "attention.indexer.kpool_select_tail": True}
        | {"attention.indexer.types": np.array([1, 1, 0, 1], bool)},
        names=_INDEX_NAMES
        | _KIMI_LINEAR_NAMES
        | {
            f"self_attn.indexer.index_kpool_compress_{part}": f"indexer_compressor_{part}"
            for part in ("ape", "gate")
        }
        | {
            f"{half}_hc.{part}": f"hc_{half}_{part}"
            for half in ("attn", "ffn")
            for part in ("fn", "base", "scale")
        },
        extra={
            "mla_use_nope": True,  # what the converter wants
            "linear_attn_config": {
                **{"num_heads": 4, "head_dim": 32, "short_conv_kernel_size": 4},
                "gate_lower_bound": -2.0,
            },
        },
        sees=True,
    ),
    "Hy4": Case(
        "HYV4VL",
        "hy_v4",
        _LATENT
        | _INDEX
        | {"q_lora_rank": 32, "first_k_dense_replace": 1}
        | {"mlp_layer_types": ["dense", "sparse", "sparse"], "hc_magnitude": 1.5, "hc_eps": 1e-3}
        | {"swiglu_limit": 0.5, "pad_token_id": 0, "rms_norm_eps": 1e-5}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, **_HY4_SECTIONS}},
        _LATENT_KEYS
        | {"attention.q_lora_rank": 32, "leading_dense_block_count": 1, "expert_gating_func": 2}
        | {"expert_weights_scale": 2.827, "expert_weights_norm": True}
        | {"swiglu_clamp_exp": np.full(3, 0.5, np.float32), "hyper_connection.count": 4}
        | {"hyper_connection.epsilon": 1e-3, "hyper_connection.magnitude": 1.5}
        | _INDEX_KEYS
        | {"attention.indexer.types": np.array([1, 1, 0], bool)},
        names=_INDEX_NAMES
        | {"self_attn.gate_proj": "attn_gate", "self_attn.sinks": "attn_sinks"}
        | {f"hc_head.hc_{part}": f"output_hc_{part}" for part in ("fn", "base", "scale")}
        | {
            f"{half}_hc.{part}": f"hc_{half}_{part}"
            for half in ("attn", "ffn")
            for part in ("fn", "base", "scale")
        },
        extra={"architectures": ["HYV4ForCausalLM"]},
        renamed=(
            *(
                (f"hc_pre.hc_{part}_layer.hc_", f"hc_{part}_layer.hc_pre.hc_")
                for part in ("attn", "mlp")
            ),
            ("hc_head.hc_pre.hc_", "hc_head.hc_"),
            ("mlp.linear_gate", "mlp.gate_proj"),
            ("shared_experts.linear_gate", "shared_experts.gate_proj"),
        ),
        sees=True,
    ),
    "MiniCPM3": Case(
        "MiniCPM3",
        "minicpm3",
        {"num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "qk_nope_head_dim": 32}
        | {"max_position_embeddings": 256}  # llama.cpp takes a context of 256 and more
        | {"qk_rope_head_dim": 8, "v_head_dim": 16, "rope_parameters": _LONG_LATENTS},
        {"attention.head_count_kv": 4, "attention.kv_lora_rank": 32, "attention.q_lora_rank": 32}
        | {"attention.key_length": 40, "attention.value_length": 16, "rope.dimension_count": 8}
        | {"embedding_scale": 12.0, "residual_scale": 1.4 * 3**-0.5, "logit_scale": 0.25}
        | {"rope.scaling.original_context_length": 256, "rope.scaling.type": "longrope"},
        names=_LATENT_NAMES | {"self_attn.kv_b_proj": "attn_kv_b"},
        extra={"head_dim": None, "v_head_dim": None},
    ),
}
