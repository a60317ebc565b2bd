"""Tiny models of mixtures of experts with plain attention, as in hf_cases."""

import numpy as np
from hf_case import (
    CONTEXT,
    GRANITE,
    GRANITE_KEYS,
    LLAMA3_ROPE,
    SECTIONS,
    SHARED,
    SHARED_NAMES,
    VOCAB,
    YARN,
    Case,
)

_BIASED_NAMES = {
    **{f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}

_STEP_LAYERS = ["full_attention", "sliding_attention", "sliding_attention", "full_attention"]
_LLAMA3 = {
    **{"rope_type": "llama3", "factor": 2.0, "original_max_position_embeddings": 32},
    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
}
_LIMITS = [0.0, 0.0, 0.5, 0.3], [0.3, 0.0, 0.0, 0.4]
_STEP_KEYS = {
    **{"attention.head_count": np.array([4, 6, 6, 4], np.int32), "rope.freq_base": 5e6},
    **{"rope.freq_base_swa": 1e4, "attention.sliding_window": 20, "rope.dimension_count": 32},
    **{"attention.sliding_window_pattern": np.array([0, 1, 1, 0], bool)},
    **{"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5},
    **{"expert_shared_feed_forward_length": 64},
    **{"swiglu_clamp_exp": np.array(_LIMITS[0], np.float32)},
    **{"swiglu_clamp_shexp": np.array(_LIMITS[1], np.float32)},
}
# transformers has other names of most of these keys.
_STEP_PUBLISHED = {
    **{"model_type": "step3p5", "vocab_size": VOCAB, "hidden_size": 64, "intermediate_size": 96},
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_attention_groups": 2, "head_dim": 32},
    **{"max_seq_len": CONTEXT, "max_position_embeddings": CONTEXT, "rms_norm_eps": 1e-5},
    **{"moe_num_experts": 6, "moe_top_k": 2, "moe_intermediate_size": 32, "share_expert_dim": 64},
    **{"layer_types": _STEP_LAYERS, "moe_layers_enum": "1,2,3", "sliding_window": 20},
    "attention_other_setting": {
        **{"attention_type": "sliding_attention", "num_attention_heads": 6},
        **{"num_attention_groups": 2, "head_dim": 32},
    },
    **{"moe_router_scaling_factor": 1.5, "norm_expert_weight": True, "use_qk_norm": True},
    **{"moe_router_activation": "sigmoid", "use_moe_router_bias": True, "need_fp32_gate": True},
    **{"use_head_wise_attn_gate": True, "rope_theta": [5e6, 1e4, 1e4, 5e6], "use_moe": True},
    **{"partial_rotary_factors": [0.5, 1.0, 1.0, 0.5], "yarn_only_types": ["full_attention"]},
    **{"rope_scaling": _LLAMA3, "moe_every_n_layer": 1, "moe_layer_offset": 0, "sink": False},
    **{"swiglu_limits": _LIMITS[0], "swiglu_limits_shared": _LIMITS[1], "use_rope_layers": []},
}
_STEP_NAMES = _BIASED_NAMES | {"self_attn.g_proj": "attn_gate"}

_LAGUNA_ROPE = {
    "full_attention": {
        **{"rope_type": "yarn", "rope_theta": 5e5, "partial_rotary_factor": 0.5, "factor": 4.0},
        **{"original_max_position_embeddings": 32, "beta_fast": 64.0, "beta_slow": 1.0},
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0},
}
_MELLUM_ROPE = {  # one theta: llama.cpp does not read that of windows
    "full_attention": {
        **{"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0},
        "original_max_position_embeddings": 32,
    },
    "sliding_attention": {"rope_type": "default", "rope_theta": 5e5},
}
_COHERE = {
    **{"head_dim": 32, "num_experts": 6, "num_experts_per_tok": 2, "intermediate_size": 64},
    **{"prefix_dense_intermediate_size": 96, "sliding_window": 20, "logit_scale": 0.25},
    **{"mlp_layer_types": ["dense", "sparse", "sparse"], "tie_word_embeddings": True},
}
_COHERE_KEYS = {
    **{"attention.sliding_window": 20, "logit_scale": 0.25, "rope.dimension_count": 32},
    **{"rope.scaling.type": "none", "leading_dense_block_count": 1, "feed_forward_length": 96},
    **{"expert_feed_forward_length": 64, "expert_weights_norm": True},
}

_SWASH = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    **{"logits_scaling": 4.0, "sliding_window": 20},
}
_SWASH_KEYS = {
    **{"attention.scale": 0.3, "embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0},
    **{"attention.sliding_window": 20},
    "attention.sliding_window_pattern": np.array([0, 1, 1], bool),
}

_DBRX_NAMES = {
    "wte": "token_embd",
    "norm_f": "output_norm",
    "norm_attn_norm.norm_1": "attn_norm",
    "norm_attn_norm.attn.Wqkv": "attn_qkv",
    "norm_attn_norm.attn.out_proj": "attn_output",
    "norm_attn_norm.norm_2": "attn_output_norm",
    "ffn.router.layer": "ffn_gate_inp",
    "ffn.experts.mlp.w1": "ffn_gate_exps",
    "ffn.experts.mlp.v1": "ffn_up_exps",
    "ffn.experts.mlp.w2": "ffn_down_exps",
}

_LONG_ROPE = {
    **{"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 256},
    **{"short_factor": [1.0 + 0.1 * i for i in range(8)], "long_factor": [4.0] * 8},
    **{"short_mscale": 1.25, "long_mscale": 1.25},
}
_SIX_EXPERTS = {
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "head_dim": 32,
}
_FEWER_SECTIONS = SECTIONS | {"mrope_section": [3, 3, 2]}  # of half a head
_WHOLE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}
_GLM = {
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"n_shared_experts": 2, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5},
    **{"head_dim": 32, "first_k_dense_replace": 1, "num_nextn_predict_layers": 0},
}
_GLM_KEYS = {
    **{"expert_gating_func": 2, "expert_weights_scale": 1.5, "expert_weights_norm": True},
    **{"expert_shared_count": 2, "leading_dense_block_count": 1, "rope.dimension_count": 16},
}
_GLM_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    "mlp.shared_experts.gate_proj": "ffn_gate_shexp",
    "mlp.shared_experts.up_proj": "ffn_up_shexp",
    "mlp.shared_experts.down_proj": "ffn_down_shexp",
}
_LLAMA4 = {
    **{"num_local_experts": 6, "num_experts_per_tok": 1, "intermediate_size_mlp": 128},
    **{"head_dim": 32, "num_hidden_layers": 4},
}
_LLAMA4_KEYS = {"feed_forward_length": 128, "interleave_moe_layer_step": 1}
_LLAMA4_NAMES = {
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{
        f"feed_forward.shared_expert.{part}_proj": f"ffn_{part}_shexp"
        for part in ("gate", "up", "down")
    },
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.experts.down_proj": "ffn_down_exps",
}
_MINIMAX_M3 = (
    {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 32}
    | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
    | {"partial_rotary_factor": 0.5, "rotary_dim": 16, "dense_intermediate_size": 128}
    | {"shared_intermediate_size": 96, "mlp_layer_types": ["dense", "sparse", "sparse"]}
    | {"layer_types": ["full_attention"] + 2 * ["minimax_m3_sparse"]}
    | {"index_n_heads": 2, "index_head_dim": 32, "index_block_size": 16}
    | {"index_topk_blocks": 8}
)
_MINIMAX_M3_KEYS = (
    {"rope.dimension_count": 16, "expert_gating_func": 2, "expert_weights_norm": True}
    | {"expert_weights_scale": 2.0, "expert_shared_count": 1}
    | {"leading_dense_block_count": 1, "feed_forward_length": 128}
    | {"attention.indexer.head_count": 2, "attention.indexer.key_length": 32}
    | {"attention.indexer.top_k": 8, "attention.indexer.block_size": 16}
    | {"attention.indexer.local_blocks": 1}
)
_MINIMAX_M3_NAMES = {
    **{"mlp.gate": "ffn_gate_inp", "mlp.shared_experts.down_proj": "ffn_down_shexp"},
    "mlp.gate.e_score_correction_bias": "exp_probs_b.bias",
    **{
        f"self_attn.indexer.{name}": f"indexer.{name}"
        for name in ("q_proj", "k_proj", "q_norm", "k_norm")
    },
}

EXPERT_CASES = {
    "DBRX": Case(
        "Dbrx",
        "dbrx",
        {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": CONTEXT}
        | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 1.0, "rope_theta": 5e5}}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
        | {"ffn_config": {"moe_num_experts": 6, "moe_top_k": 2, "ffn_hidden_size": 96}},
        {"rope.freq_base": 5e5, "attention.layer_norm_epsilon": 1e-5, "attention.clamp_kqv": 1.0},
        names=_DBRX_NAMES,
        extra={"rope_parameters": None},  # transformers does not look at attn_config's theta
    ),
    "MiMo-V2-Flash": Case(
        "MiMoV2Flash",
        "mimo2",
        _EXPERTS
        | {"head_dim": 48, "v_head_dim": 24, "n_routed_experts": 6, "sliding_window": 20}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
        | {"num_key_value_heads": 2},
        {"rope.dimension_count": 16, "rope.freq_base": 5e6, "rope.freq_base_swa": 1e4}
        | {"attention.value_length": 24, "attention.value_scale": 0.707}
        | {"attention.sliding_window": 20, "attention.head_count_kv": np.array([2, 4, 4], "i4")}
        | {"attention.sliding_window_pattern": np.array([0, 1, 1], bool)}
        | {"expert_gating_func": 2, "expert_group_count": 1, "expert_group_used_count": 1},
        names=_BIASED_NAMES | {"self_attn.sinks": "attn_sinks"},
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc", "n_shared_experts": None}
        | {"layer_types": None, "mlp_layer_types": None, "rms_norm_eps": None}
        | {"layernorm_epsilon": 1e-5, "rope_parameters": None, "rope_theta": 5e6}
        | {"swa_rope_theta": 1e4, "partial_rotary_factor": 0.334}
        | {"hybrid_layer_pattern": [0, 1, 1], "moe_layer_freq": [0, 1, 1]}
        | {"add_swa_attention_sink_bias": True, "swa_num_key_value_heads": 4}
        | {"swa_num_attention_heads": 4, "swa_head_dim": 48, "swa_v_head_dim": 24},
    ),
    "Step-3.7-Flash": Case(
        "Step3p7",
        "step35",
        _EXPERTS
        | {"head_dim": 32, "n_routed_experts": 6, "share_expert_dim": 64, "num_hidden_layers": 4}
        | {"num_sliding_attention_heads": 6, "sliding_window": 20, "pad_token_id": 0}
        | {"layer_types": _STEP_LAYERS, "mlp_layer_types": ["dense"] + 3 * ["sparse"]}
        | {"rope_theta": [5e6, 1e4, 1e4, 5e6], "partial_rotary_factors": [0.5, 1.0, 1.0, 0.5]}
        | {"rope_scaling": _LLAMA3, "moe_router_scaling_factor": 1.5}
        | {"swiglu_limits": _LIMITS[0], "swiglu_limits_shared": _LIMITS[1]},
        _STEP_KEYS,
        names=_STEP_NAMES,
        extra={"text_config": _STEP_PUBLISHED, "projector_bias": None},
        sees=True,
    ),
    "Laguna": Case(
        "Laguna",
        "laguna",
        _EXPERTS
        | {"head_dim": 32, "num_experts": 6, "shared_expert_intermediate_size": 64}
        | {"num_attention_heads_per_layer": [4, 6, 6], "sliding_window": 20}
        | {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}
        | {"moe_routed_scaling_factor": 1.5, "rope_parameters": _LAGUNA_ROPE},
        {"attention.head_count": np.array([4, 6, 6], np.int32), "rope.freq_base": 5e5}
        | {"rope.freq_base_swa": 1e4, "attention.sliding_window": 20}
        | {"rope.dimension_count": 16, "rope.dimension_count_swa": 32}
        | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32, "rope.scaling.yarn_beta_fast": 64.0}
        | {"expert_gating_func": 2, "expert_weights_norm": True, "expert_weights_scale": 1.5}
        | {"expert_shared_feed_forward_length": 64, "leading_dense_block_count": 1},
        names=_BIASED_NAMES | {"self_attn.g_proj": "attn_gate"},
    ),
    "Laguna with gates of values": Case(
        "Laguna",
        "laguna",
        _EXPERTS
        | {"head_dim": 32, "num_experts": 6, "shared_expert_intermediate_size": 64}
        | {"gating": "per-element"},
        {"rope.freq_base": 5e5, "rope.dimension_count": 16}
        | {"expert_gating_func": 2, "expert_weights_norm": True}
        | {"expert_shared_feed_forward_length": 64, "leading_dense_block_count": 1},
        names=_BIASED_NAMES | {"self_attn.g_proj": "attn_gate"},
        extra={"sliding_window": None},
    ),
    "Command A+": Case(
        "Cohere2Moe",
        "cohere2moe",
        _COHERE
        | {"expert_selection_fn": "softmax", "num_shared_experts": 2}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        _COHERE_KEYS
        | {"attention.sliding_window_pattern": np.array([0, 1, 0], bool), "expert_gating_func": 1}
        | {"expert_shared_count": 2, "expert_shared_feed_forward_length": 128},
        names=_BIASED_NAMES,
    ),
    "North Mini Code": Case(
        "Cohere2Moe",
        "cohere2moe",
        _COHERE
        | {"expert_selection_fn": "sigmoid", "rms_norm_eps": 1e-6}
        | {"layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        _COHERE_KEYS
        | {"attention.sliding_window_pattern": np.array([0, 1, 0], bool), "expert_gating_func": 2}
        | {"attention.layer_norm_rms_epsilon": 1e-6},
    ),
    "Granite Swash": Case(
        "GraniteSWA",
        "granite_swa",
        _SWASH | {"layer_rope_theta": [0, 1e4, 1e4]},
        _SWASH_KEYS | {"attention.rope_pattern": np.array([0, 1, 1], bool)},
        names={"self_attn.sinks": "attn_sinks"},
        reordered=True,
        lost="which layers rotate",
    ),
    "Granite Swash with experts": Case(
        "GraniteMoeSWA",
        "granite_swa",
        _SWASH | {"num_local_experts": 6, "num_experts_per_tok": 2},
        _SWASH_KEYS,
        names={"self_attn.sinks": "attn_sinks", "block_sparse_moe.router": "ffn_gate_inp"},
        reordered=True,
    ),
    "Mellum 2": Case(
        "Mellum",
        "mellum",
        _EXPERTS
        | {"head_dim": 32, "num_experts": 6, "sliding_window": 20, "num_hidden_layers": 2}
        | {"layer_types": ["full_attention", "sliding_attention"], "num_experts_per_tok": 3}
        | {"moe_intermediate_size": 64}
        | {"rope_parameters": _MELLUM_ROPE},
        {"rope.freq_base": 5e5, "rope.freq_base_swa": 5e5, "attention.sliding_window": 20}
        | {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32}
        | {"attention.sliding_window_pattern": np.array([0, 1], bool)},
    ),
    "Mixtral": Case(
        "Mixtral",
        "llama",
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        names={"mlp.gate": "ffn_gate_inp"},
        reordered=True,
    ),
    "Qwen3-MoE": Case("Qwen3Moe", "qwen3moe", _SIX_EXPERTS | {"norm_topk_prob": True}),
    "Qwen3-MoE, shares as they are": Case(
        "Qwen3Moe",
        "qwen3moe",
        _SIX_EXPERTS | {"norm_topk_prob": False},
        {"expert_weights_norm": False},
        lost="that shares stay as they are",
    ),
    "Qwen3-VL-MoE": Case(
        "Qwen3VLMoe",
        "qwen3vlmoe",
        _SIX_EXPERTS | {"moe_intermediate_size": 128, "head_dim": 32, "rope_parameters": SECTIONS},
        {"expert_weights_norm": True},
        sees=True,
    ),
    "Qwen2-MoE": Case(
        "Qwen2Moe",
        "qwen2moe",
        SHARED,
        {"expert_shared_feed_forward_length": 64},
        names=SHARED_NAMES,
    ),
    "GLM-4.5": Case(
        "Glm4Moe",
        "glm4moe",
        _GLM | {"num_hidden_layers": 4},
        _GLM_KEYS | {"expert_group_count": 2, "expert_group_used_count": 1},
        names=_GLM_NAMES,
    ),
    "GLM-4.5 with normalised heads and biases": Case(
        "Glm4Moe",
        "glm4moe",
        _GLM | {"use_qk_norm": True, "attention_bias": True, "n_group": 1, "topk_group": 1},
        _GLM_KEYS,
        names=_GLM_NAMES,
    ),
    "GLM-4.5V": Case(
        "Glm4vMoe",
        "glm4moe",
        _GLM | {"attention_bias": True, "rope_parameters": _FEWER_SECTIONS},
        _GLM_KEYS | {"expert_group_count": 2, "expert_group_used_count": 1},
        names=_GLM_NAMES,
        sees=True,
    ),
    "Solar Open": Case(
        "SolarOpen",
        "glm4moe",
        _GLM | {"first_k_dense_replace": None, "rope_parameters": _WHOLE},
        _GLM_KEYS
        | {"expert_group_count": 2, "expert_group_used_count": 1}
        | {"rope.dimension_count": 32, "leading_dense_block_count": 0},
        names=_GLM_NAMES,
    ),
    "MiniMax-M2": Case(
        "MiniMaxM2",
        "minimax-m2",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "head_dim": 32}
        | {"rope_parameters": {"rope_type": "default", "rope_theta": 5e6}}
        | {"partial_rotary_factor": 0.5},
        {"rope.dimension_count": 16, "expert_gating_func": 2},
        names={
            "mlp.e_score_correction_bias": "exp_probs_b.bias",
            "mlp.gate": "ffn_gate_inp",
        },
        extra={"rotary_dim": 16, "use_qk_norm": True, "scoring_func": "sigmoid"},
    ),
    "MiniMax-M3": Case(
        "MiniMaxM3VL",
        "minimax-m3",
        _MINIMAX_M3,
        _MINIMAX_M3_KEYS,
        names=_MINIMAX_M3_NAMES,
        extra={"n_shared_experts": 1, "moe_layer_freq": [0, 1, 1], "scoring_func": "sigmoid"}
        | {
            "sparse_attention_config": {
                **{"sparse_num_index_heads": 2, "sparse_index_dim": 32},
                **{"sparse_topk_blocks": 8, "sparse_block_size": 16, "sparse_local_block": 1},
            }
        },
        sees=True,
    ),
    "MiniMax-M3 of few blocks": Case(
        "MiniMaxM3VL",
        "minimax-m3",
        _MINIMAX_M3 | {"index_block_size": 8, "index_topk_blocks": 4, "index_local_blocks": 2},
        _MINIMAX_M3_KEYS
        | {"attention.indexer.top_k": 4, "attention.indexer.block_size": 8}
        | {"attention.indexer.local_blocks": 2},
        names=_MINIMAX_M3_NAMES,
        extra={"n_shared_experts": 1, "moe_layer_freq": [0, 1, 1], "scoring_func": "sigmoid"}
        | {
            "sparse_attention_config": {
                **{"sparse_num_index_heads": 2, "sparse_index_dim": 32},
                **{"sparse_topk_blocks": 4, "sparse_block_size": 8, "sparse_local_block": 2},
            }
        },
        sees=True,
    ),
    # Every chunk ends within the prompt.
    "Llama 4 Scout, smaller chunks": Case(
        "Llama4",
        "llama4",
        _LLAMA4
        | {"attention_chunk_size": 20, "floor_scale": 16, "attn_scale": 0.5}
        | {"rope_parameters": LLAMA3_ROPE | {"high_freq_factor": 1.0}},
        _LLAMA4_KEYS
        | {"attention.sliding_window": 20, "attention.temperature_length": 16}
        | {"attention.temperature_scale": 0.5},
        names=_LLAMA4_NAMES,
        lost="the sizes of its chunks",
    ),
    "Llama 4 Scout, which sees pictures": Case(
        "Llama4", "llama4", _LLAMA4, _LLAMA4_KEYS, names=_LLAMA4_NAMES, sees=True
    ),
    "Llama 4 Maverick": Case(
        "Llama4",
        "llama4",
        _LLAMA4
        | {"num_local_experts": 128, "interleave_moe_layer_step": 2, "use_qk_norm": False}
        | {"intermediate_size": 32},
        _LLAMA4_KEYS | {"interleave_moe_layer_step": 2},
        names=_LLAMA4_NAMES,
    ),
    "Sarvam 30B": Case(
        "SarvamMoE",
        "bailingmoe2",
        _GLM
        | {
            "n_group": 1,
            "topk_group": 1,
            "n_shared_experts": 1,
            "head_dim": 16,
            "rope_parameters": _WHOLE,
        },
        _GLM_KEYS | {"expert_shared_count": 1},
        names=_GLM_NAMES
        | {"post_attention_layernorm": "ffn_norm", "self_attn.qkv_proj": "attn_qkv"},
        # As published, not as transformers writes it
        extra={"architectures": ["SarvamMoEForCausalLM"], "num_experts": 6}
        | {"num_shared_experts": 1, "n_routed_experts": None, "n_shared_experts": None}
        | {"score_function": "sigmoid", "moe_router_enable_expert_bias": True},
    ),
    "Granite 3 MoE": Case(
        "GraniteMoe",
        "granitemoe",
        GRANITE | {"num_local_experts": 6, "num_experts_per_tok": 2},
        GRANITE_KEYS,
        names={"block_sparse_moe.router": "ffn_gate_inp"},
        reordered=True,
    ),
    "Granite 3 MoE with a shared expert": Case(
        "GraniteMoeShared",
        "granitemoe",
        GRANITE
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        GRANITE_KEYS | {"expert_shared_feed_forward_length": 64},
        names={
            "block_sparse_moe.router": "ffn_gate_inp",
            "shared_mlp.output_linear": "ffn_down_shexp",
        },
        reordered=True,
    ),
    "gpt-oss": Case(
        "GptOss",
        "gpt-oss",
        {
            "num_hidden_layers": 4,
            "num_local_experts": 6,
            "num_experts_per_tok": 2,
            "head_dim": 32,
            "sliding_window": 20,
            "swiglu_limit": 7.0,
            "rope_parameters": YARN | {"truncate": True},
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names={
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.sinks": "attn_sinks",
            "mlp.router": "ffn_gate_inp",
        },
    ),
    "Phi-3.5-MoE": Case(
        "Phimoe",
        "phimoe",
        {"num_local_experts": 6, "num_experts_per_tok": 2, "rope_parameters": _LONG_ROPE}
        | {"attention_bias": True, "lm_head_bias": True, "max_position_embeddings": 256},
        {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 256},
        names={"mlp.router": "ffn_gate_inp"},
        extra={"architectures": ["PhiMoEForCausalLM"]},
        lost="the magnitude of its rotation",
    ),
    "OLMoE": Case(
        "Olmoe",
        "olmoe",
        {"num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
}
