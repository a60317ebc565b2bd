"""The tiny models that are compared with Hugging Face `transformers`.

Each has its settings there, and what its GGUF file says."""

import math
from typing import Any

import numpy as np
from hf_case import CONTEXT, VOCAB, Case
from hf_expert_cases import EXPERT_CASES
from hf_plain_cases import PLAIN_CASES
from hf_scan_cases import SCAN_CASES

_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "head_dim": 32}
_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
_YARN = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_DEEPSEEK_YARN = {
    **{"type": "deepseek_yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    **{"mscale": 1.0, "mscale_all_dim": 1.0},
}
_SECTIONS = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [6, 5, 5]}
_FEWER_SECTIONS = _SECTIONS | {"mrope_section": [3, 3, 2]}  # of half a head
_WHOLE = {"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 1.0}
_LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "original_max_position_embeddings": 32,
    "short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5],
    "long_factor": [1.0, 1.5, 2.0, 3.0, 5.0, 8.0],
}
AFTER = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
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
_GRANITE = {
    **{"attention_multiplier": 0.3, "embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "logits_scaling": 4.0,
}
_GRANITE_KEYS = {
    **{"attention.scale": 0.3, "embedding_scale": 2.0, "residual_scale": 0.5, "logit_scale": 4.0}
}
_GEMMA4 = {
    **{"head_dim": 32, "global_head_dim": 64, "sliding_window": 20},
    **{"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 0},
    "final_logit_softcapping": 1.5,
}
_GEMMA4_KEYS = {
    **{"attention.key_length": 64, "attention.value_length": 64, "attention.sliding_window": 20},
    **{"attention.key_length_swa": 32, "attention.value_length_swa": 32},
    **{"rope.freq_base": 1e6, "rope.freq_base_swa": 1e4, "final_logit_softcapping": 1.5},
}
_LOCAL = ["sliding_attention", "sliding_attention", "full_attention"]
# The keys and values of layers 2 and 4 are those of layers 5 to 8, too.
_SHARING = {
    **{"num_hidden_layers": 9, "layer_types": 3 * _LOCAL, "num_kv_shared_layers": 4},
    **{"hidden_size_per_layer_input": 32, "use_double_wide_mlp": True},
}
_SHARING_KEYS = {
    "attention.sliding_window_pattern": np.array(3 * [True, True, False]),
    "attention.shared_kv_layers": 4,
    "feed_forward_length": np.array(5 * [96] + 4 * [192], np.int32),
    "embedding_length_per_layer_input": 32,
}
_KEYS_ARE_VALUES = {"attention_k_eq_v": True, "num_global_key_value_heads": 1}
_GEMMA4_NAMES = {
    "layer_scalar": "layer_output_scale",
    "embed_tokens_per_layer": "per_layer_token_embd",
    "per_layer_model_projection": "per_layer_model_proj",
    "per_layer_projection_norm": "per_layer_proj_norm",
    "per_layer_input_gate": "inp_gate",
    "per_layer_projection": "proj",
    "post_per_layer_input_norm": "post_norm",
    "router.proj": "ffn_gate_inp",
    "router.scale": "ffn_gate_inp.scale",
    "router.per_expert_scale": "ffn_down_exps.scale",
    "experts.down_proj": "ffn_down_exps",
    "post_feedforward_layernorm_1": "post_ffw_norm_1",
    "pre_feedforward_layernorm_2": "pre_ffw_norm_2",
    "post_feedforward_layernorm_2": "post_ffw_norm_2",
}
_GRANITE_4 = {
    **{"num_hidden_layers": 2, "layer_types": ["linear_attention", "full_attention"]},
    **{"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2, "mamba_d_state": 16},
}
_GRANITE_4_EXTRA = {"layer_types": ["mamba", "attention"]}  # as real files say it
_GRANITE_4_KEYS = {
    **{"attention.head_count_kv": np.array([0, 2], np.int32)},
    **{"rope.scaling.finetuned": False, "ssm.inner_size": 128},
}
_MAMBA2 = {
    **{"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2},
    "ssm.time_step_rank": 8,
}
_MAMBA2_NAMES = {
    **{"in_proj": "ssm_in", "conv1d": "ssm_conv1d", "dt_bias": "ssm_dt.bias", "A_log": "ssm_a"},
    **{"D": "ssm_d", "norm": "ssm_norm", "out_proj": "ssm_out"},
}
_GRANITE_4_NAMES = {f"mamba.{name}": slot for name, slot in _MAMBA2_NAMES.items()} | {
    "block_sparse_moe.router": "ffn_gate_inp"
}
_FALCON_H1 = {
    **{"num_hidden_layers": 2, "head_dim": 32, "mamba_n_heads": 8, "mamba_d_ssm": 96},
    **{"mamba_n_groups": 2, "mamba_d_state": 16, "mamba_d_head": 12},
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e11},
}
_FALCON_H1_KEYS = {"ssm.inner_size": 96}
_FALCON_H1_NAMES = {f"mamba.{name}": slot for name, slot in _MAMBA2_NAMES.items()} | {
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{"pre_ff_layernorm": "ffn_norm.", "final_layernorm": "output_norm"},
}
_NEMOTRON = {
    **{"mamba_num_heads": 8, "mamba_head_dim": 8, "n_groups": 2, "ssm_state_size": 16},
    "head_dim": 32,
}
_NEMOTRON_EXPERTS = {
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"moe_shared_expert_intermediate_size": 64, "routed_scaling_factor": 1.5},
    **{"layers_block_type": ["mamba", "moe", "attention", "moe"]},
}
_NEMOTRON_KEYS = {
    **{"ssm.inner_size": 64, "feed_forward_length": np.array([0, 32, 0, 32], np.int32)},
    **{"attention.head_count_kv": np.array([0, 0, 2, 0], np.int32)},
    **{"expert_shared_feed_forward_length": 64, "expert_weights_scale": 1.5},
}
_NEMOTRON_NAMES = {f"mixer.{name}": slot for name, slot in _MAMBA2_NAMES.items()} | {
    **{"embeddings": "token_embd", "norm_f": "output_norm", "norm": "attn_norm"},
    **{"mixer.q_proj": "attn_q", "mixer.k_proj": "attn_k", "mixer.v_proj": "attn_v"},
    **{"mixer.o_proj": "attn_output", "mixer.up_proj": "ffn_up", "mixer.down_proj": "ffn_down"},
    **{"mixer.gate": "ffn_gate_inp", "mixer.gate.e_score_correction_bias": "exp_probs_b.bias"},
    **{"mixer.experts.up_proj": "ffn_up_exps", "mixer.experts.down_proj": "ffn_down_exps"},
    **{"mixer.shared_experts.up_proj": "ffn_up_shexp"},
    **{"mixer.shared_experts.down_proj": "ffn_down_shexp"},
    **{"mixer.fc1_latent_proj": "ffn_latent_down", "mixer.fc2_latent_proj": "ffn_latent_up"},
}
_SHORT_CONV = {"attention.head_count_kv": np.array([0, 2, 0], np.int32)} | {"shortconv.l_cache": 3}
_LFM2_NAMES = {
    **{"operator_norm": "attn_norm", "ffn_norm": "ffn_norm", "embedding_norm": "token_embd_norm"},
    **{"self_attn.out_proj": "attn_output", "self_attn.q_layernorm": "attn_q_norm"},
    **{"self_attn.k_layernorm": "attn_k_norm", "conv.in_proj": "shortconv.in_proj"},
    **{"conv.conv": "shortconv.conv", "conv.out_proj": "shortconv.out_proj"},
    **{"feed_forward.w1": "ffn_gate", "feed_forward.w3": "ffn_up", "feed_forward.w2": "ffn_down"},
    **{"feed_forward.gate": "ffn_gate_inp", "feed_forward.expert_bias": "exp_probs_b.bias"},
    "feed_forward.experts.down_proj": "ffn_down_exps",
}
_DELTA = {
    **{"full_attention_interval": 2, "head_dim": 32, "linear_conv_kernel_dim": 4},
    **{"linear_key_head_dim": 16, "linear_value_head_dim": 16},
    **{"linear_num_key_heads": 2, "linear_num_value_heads": 6},
}
_DELTA_KEYS = {
    **{"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2, "ssm.inner_size": 96},
    **{"ssm.time_step_rank": 6, "full_attention_interval": 2, "rope.dimension_count": 8},
}
_DELTA_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_ba": "ssm_ba",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
}
_QWEN35_ROPE = {
    **{"rope_type": "default", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
    **{"mrope_section": [2, 1, 1], "mrope_interleaved": True},
}
_SHARED_NAMES = {
    "mlp.shared_expert.gate_proj": "ffn_gate_shexp",
    "mlp.shared_expert.up_proj": "ffn_up_shexp",
    "mlp.shared_expert.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
_SHARED = {
    **{"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    "shared_expert_intermediate_size": 64,
}
# The keys and values of layers 2 and 3 are those of layers 4 and 5, too.
_GEMMA3N = {
    **{"head_dim": 32, "sliding_window": 20, "num_hidden_layers": 6, "num_kv_shared_layers": 2},
    **{"layer_types": ["sliding_attention", "full_attention"] * 3, "laurel_rank": 32},
    **{"vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 32},
    **{"intermediate_size": [96, 128, 96, 96, 96, 96], "altup_num_inputs": 4},
    **{"activation_sparsity_pattern": [0.9, 0.7, 0.0, 0.0, 0.95, 0.0]},
    "final_logit_softcapping": 1.5,
}
_GEMMA3N_KEYS = {
    **{"attention.sliding_window": 20, "rope.freq_base": 1e6, "rope.freq_base_swa": 1e4},
    **{"attention.sliding_window_pattern": np.array([True, False] * 3)},
    **{"attention.shared_kv_layers": 2, "embedding_length_per_layer_input": 32},
    **{"feed_forward_length": np.array([96, 128, 96, 96, 96, 96], np.int32)},
    **{"altup.active_idx": 0, "altup.num_inputs": 4, "final_logit_softcapping": 1.5},
    "activation_sparsity_scale": np.array(
        [1.2815515, 0.5244005, -np.inf, -np.inf, 1.6448536, -np.inf], np.float32
    ),
}
_GEMMA3N_NAMES = _GEMMA4_NAMES | {
    "altup.correct_output_scale": "altup_correct_scale",
    "altup.correction_coefs": "altup_correct_coef",
    "altup.prediction_coefs": "altup_predict_coef",
    "altup.modality_router": "altup_router",
    "altup.router_norm": "altup_router_norm",
    "laurel.linear_left": "laurel_l",
    "laurel.linear_right": "laurel_r",
    "laurel.post_laurel_norm": "laurel_post_norm",
}
# What llama.cpp takes for granted: two sizes, that nearly all gates of the first ten layers are cut
# off, and that the first twenty layers have keys of their own.
_GEMMA3N_USUAL = {
    **{"num_hidden_layers": 3, "layer_types": _LOCAL, "num_kv_shared_layers": 0},
    **{"intermediate_size": 512, "activation_sparsity_pattern": 3 * [0.95]},
    **{"hidden_size_per_layer_input": 256, "laurel_rank": 64, "final_logit_softcapping": 30.0},
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
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}
# Those that transformers computes of the seed and 160 tokens.
_MULTIPLIERS = 25912437101140037, 21043097849633001, 55314113489879299
_QWEN4_EXP = (
    {key: value for key, value in _DELTA.items() if key != "full_attention_interval"}
    | {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    | {"shared_expert_intermediate_size": 64, "output_gate_type": "sigmoid"}
    | {"layer_types": ["linear_attention", "indexed_attention", "linear_attention"]}
    | {"hc_count": 3, "hc_lowrank": 32, "rope_parameters": _QWEN35_ROPE}
    | {"indexer_n_heads": 3, "indexer_kv_heads": 1, "indexer_head_dim": 16}
    | {"indexer_budget": 16, "indexer_compress_ratio": 4}
    | {"ple_layer_ids": [3], "ple_embed_dim": 64, "ngram_size": 3, "heads_per_ngram": 1}
    | {"ngram_vocab_size_base": 50, "make_ngram_vocab_size_divisible_by": 16}
    | {"split_ngram_parts": 5, "eos_token_id": 139, "bos_token_id": 1}
)
_QWEN4_EXP_KEYS = (
    {key: value for key, value in _DELTA_KEYS.items() if key != "full_attention_interval"}
    | {"attention.recurrent_layers": np.array([True, False, True])}
    | {"expert_shared_feed_forward_length": 64, "expert_weights_norm": True}
    | {"hyper_connection.count": 3, "hyper_connection.low_rank": 32}
    | {"attention.indexer.head_count": 3, "attention.indexer.key_length": 16}
    | {"attention.indexer.top_k": 16, "attention.compress_ratios": np.array([0, 4, 0], np.int32)}
    | {"ple.layers": np.array([2], np.int32), "ple.ngram_size": 3, "ple.heads_per_ngram": 1}
    | {"ple.conv_kernel": 4, "ple.eos_token_id": 139, "embedding_length_per_layer_input": 32}
    | {"ple.layer_multipliers": np.array(_MULTIPLIERS, np.uint64)}
    | {"ple.head_vocab_sizes": np.array([53, 59], np.uint64)}
    | {"ple.head_offsets": np.array([0, 53], np.uint64)}
)
_QWEN4_EXP_NAMES = {
    **_DELTA_NAMES,
    **_SHARED_NAMES,
    **{
        f"{stem}_hyper_connection.{part}": f"hc_{name}_{slot}"
        for stem, name in (("attn", "attn"), ("mlp", "ffn"))
        for part, slot in (
            *(("hc_norm", "norm"), ("input_mix_weight_down", "down")),
            *(("input_mix_weight_up", "up"), ("block_inject_weight", "inject")),
        )
    },
    "hyper_connection_mixer.hc_norm": "output_hc_norm",
    "hyper_connection_mixer.input_mix_weight_down": "output_hc_down",
    "hyper_connection_mixer.input_mix_weight_up": "output_hc_up",
    "self_attn.indexer.q_layernorm": "indexer.q_norm",
    "self_attn.indexer.k_layernorm": "indexer.k_norm",
    **{f"ple.{part}_proj": f"ple_{part}" for part in ("key", "value")},
    **{f"ple.norm_{part}": f"ple_norm_{part}" for part in ("key", "query", "conv")},
    "ple.conv1d": "ple_conv1d",
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

CASES = {
    "Llama 2": Case("Llama", "llama", reordered=True),
    "Llama 3.1": Case("Llama", "llama", {"rope_parameters": _LLAMA3_ROPE}, reordered=True),
    "SmolLM2": Case(
        "Llama", "llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}, reordered=True
    ),
    "Llama, longer by linear scaling": Case(
        "Llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}},
        {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0},
        reordered=True,
    ),
    "Llama, longer by YaRN": Case(
        "Llama",
        "llama",
        {"rope_parameters": _YARN},
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        reordered=True,
    ),
    "Mistral": Case(
        "Mistral",
        "llama",
        {"sliding_window": 20},
        {"attention.sliding_window": 20},
        reordered=True,
        lost="the window",
    ),
    "Mixtral": Case(
        "Mixtral",
        "llama",
        {"num_local_experts": 6, "num_experts_per_tok": 2},
        names={"mlp.gate": "ffn_gate_inp"},
        reordered=True,
    ),
    "Qwen2": Case("Qwen2", "qwen2"),
    "Qwen3": Case("Qwen3", "qwen3", {"head_dim": 32, "tie_word_embeddings": True}),
    "Qwen3-MoE": Case("Qwen3Moe", "qwen3moe", _EXPERTS | {"norm_topk_prob": True}),
    "Qwen3-MoE, shares as they are": Case(
        "Qwen3Moe",
        "qwen3moe",
        _EXPERTS | {"norm_topk_prob": False},
        {"expert_weights_norm": False},
        lost="that shares stay as they are",
    ),
    "Ministral 3": Case(
        "Ministral3",
        "mistral3",
        {
            "head_dim": 32,
            "rope_parameters": _YARN
            | {"mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1},
        },
        {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32, "rope.scaling.yarn_log_multiplier": 1.0}
        | {"attention.temperature_scale": 0.1},
        reordered=True,
    ),
    "Qwen2-VL": Case(
        "Qwen2VL",
        "qwen2vl",
        {"rope_parameters": _SECTIONS | {"mrope_section": [2, 3, 3]}},
        sees=True,
    ),
    "Qwen3-VL": Case(
        "Qwen3VL", "qwen3vl", {"head_dim": 32, "rope_parameters": _SECTIONS}, sees=True
    ),
    "Qwen3-VL-MoE": Case(
        "Qwen3VLMoe",
        "qwen3vlmoe",
        _EXPERTS | {"moe_intermediate_size": 128, "head_dim": 32, "rope_parameters": _SECTIONS},
        {"expert_weights_norm": True},
        sees=True,
    ),
    "Qwen2-MoE": Case(
        "Qwen2Moe",
        "qwen2moe",
        _SHARED,
        {"expert_shared_feed_forward_length": 64},
        names=_SHARED_NAMES,
    ),
    "Qwen3-Next": Case(
        "Qwen3Next",
        "qwen3next",
        _DELTA | _SHARED | {"num_experts_per_tok": 4},
        _DELTA_KEYS | {"expert_shared_feed_forward_length": 64},
        names=_DELTA_NAMES | _SHARED_NAMES,
    ),
    "Qwen3.5": Case(
        "Qwen3_5",
        "qwen35",
        _DELTA | {"rope_parameters": _QWEN35_ROPE},
        _DELTA_KEYS,
        names=_DELTA_NAMES,
        sees=True,
        extra={"mtp_num_hidden_layers": 1, "attn_output_gate": True},
    ),
    "Qwen3.5, full attention elsewhere": Case(
        "Qwen3_5",
        "qwen35",
        _DELTA
        | {"rope_parameters": _QWEN35_ROPE, "tie_word_embeddings": True}
        | {"layer_types": ["full_attention", "linear_attention", "linear_attention"]},
        _DELTA_KEYS | {"attention.recurrent_layers": np.array([False, True, True])},
        names=_DELTA_NAMES,
    ),
    "Qwen3.5-MoE": Case(
        "Qwen3_5Moe",
        "qwen35moe",
        _DELTA | _SHARED | {"rope_parameters": _QWEN35_ROPE, "num_experts_per_tok": 4},
        _DELTA_KEYS | {"expert_shared_feed_forward_length": 64},
        names=_DELTA_NAMES | _SHARED_NAMES,
    ),
    "Qwen3.8-Flash-Next": Case(
        "Qwen4Exp",
        "qwen4exp",
        _QWEN4_EXP,
        _QWEN4_EXP_KEYS,
        names=_QWEN4_EXP_NAMES,
        # As published folders say it.
        extra={"layer_types": ["linear_attention", "full_attention", "linear_attention"]}
        | {"number_of_conv_states": None},
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
    "DeepSeek-V2-Lite": Case(
        "DeepseekV2",
        "deepseek2",
        _LATENT | {"rope_parameters": _YARN | _MSCALE},
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
        | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
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
        | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
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
            "rope_parameters": {key: _YARN[key] for key in _YARN if key != "rope_theta"},
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
    # Every chunk ends within the prompt.
    "Llama 4 Scout, smaller chunks": Case(
        "Llama4",
        "llama4",
        _LLAMA4
        | {"attention_chunk_size": 20, "floor_scale": 16, "attn_scale": 0.5}
        | {"rope_parameters": _LLAMA3_ROPE | {"high_freq_factor": 1.0}},
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
    "Kimi K2": Case(
        "DeepseekV3",
        "deepseek2",
        _LATENT
        | {"q_lora_rank": 32, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.0}
        | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
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
        _LATENT | {"rope_parameters": _YARN | {"mscale": 1.0, "mscale_all_dim": 1.0}},
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
        {"attention.head_count_kv": 1, "attention.kv_lora_rank": 32, "attention.q_lora_rank": 32}
        | {"attention.key_length": 40, "attention.value_length": 32, "rope.dimension_count": 8}
        | {"attention.key_length_mla": 40, "attention.value_length_mla": 16}
        | {"embedding_scale": 12.0, "residual_scale": 1.4 * 3**-0.5, "logit_scale": 0.25}
        | {"rope.scaling.original_context_length": 256, "rope.scaling.type": "longrope"},
        names=_LATENT_NAMES,
        extra={"head_dim": None, "v_head_dim": None},
    ),
    "Granite 3": Case(
        "Granite",
        "granite",
        _GRANITE,
        _GRANITE_KEYS,
        reordered=True,
    ),
    "Granite 3 MoE": Case(
        "GraniteMoe",
        "granitemoe",
        _GRANITE | {"num_local_experts": 6, "num_experts_per_tok": 2},
        _GRANITE_KEYS,
        names={"block_sparse_moe.router": "ffn_gate_inp"},
        reordered=True,
    ),
    "Granite 3 MoE with a shared expert": Case(
        "GraniteMoeShared",
        "granitemoe",
        _GRANITE
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        _GRANITE_KEYS | {"expert_shared_feed_forward_length": 64},
        names={
            "block_sparse_moe.router": "ffn_gate_inp",
            "shared_mlp.output_linear": "ffn_down_shexp",
        },
        reordered=True,
    ),
    "Granite 4": Case(
        "GraniteMoeHybrid",
        "granitehybrid",
        _GRANITE | _GRANITE_4 | {"num_local_experts": 0, "shared_intermediate_size": 96},
        _GRANITE_KEYS | _MAMBA2 | _GRANITE_4_KEYS,
        names=_GRANITE_4_NAMES | {"shared_mlp.output_linear": "ffn_down"},
        reordered=True,
        extra=_GRANITE_4_EXTRA,
    ),
    "Granite 4 with experts": Case(
        "GraniteMoeHybrid",
        "granitehybrid",
        _GRANITE
        | _GRANITE_4
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        _GRANITE_KEYS
        | _MAMBA2
        | _GRANITE_4_KEYS
        | {"expert_shared_feed_forward_length": 64, "expert_feed_forward_length": 96},
        names=_GRANITE_4_NAMES | {"shared_mlp.output_linear": "ffn_down_shexp"},
        reordered=True,
        extra=_GRANITE_4_EXTRA,
    ),
    "Granite 4 with rotation and limited time steps": Case(
        "GraniteMoeHybrid",
        "granitehybrid",
        _GRANITE
        | _GRANITE_4
        | {"num_local_experts": 0, "shared_intermediate_size": 96, "mamba_conv_bias": False}
        | {"position_embedding_type": "rope", "time_step_limit": [0.5, 0.8]},
        _GRANITE_KEYS
        | _MAMBA2
        | _GRANITE_4_KEYS
        | {"rope.scaling.finetuned": True, "ssm.time_step_min": 0.5, "ssm.time_step_max": 0.8},
        names=_GRANITE_4_NAMES | {"shared_mlp.output_linear": "ffn_down"},
        reordered=True,
        extra=_GRANITE_4_EXTRA,
        lost="the rotation and the limits",
    ),
    "Falcon-H1": Case(
        "FalconH1",
        "falcon-h1",
        _FALCON_H1
        | {"embedding_multiplier": 5.7, "lm_head_multiplier": 0.4, "key_multiplier": 0.6}
        | {"attention_in_multiplier": 0.9, "attention_out_multiplier": 1.2}
        | {"ssm_in_multiplier": 1.25, "ssm_out_multiplier": 0.7, "mlp_multipliers": [0.9, 0.8]}
        | {"ssm_multipliers": [0.7, 1.4, 1.2, 0.8, 0.9]},
        _FALCON_H1_KEYS | _MAMBA2,
        names=_FALCON_H1_NAMES,
        extra={"mamba_use_mlp": True, "attn_layer_indices": None, "mlp_expansion_factor": 8},
    ),
    "Falcon-H1 with a norm": Case(
        "FalconH1",
        "falcon-h1",
        _FALCON_H1
        | {"mamba_rms_norm": True, "mamba_norm_before_gate": False}
        | {"ssm_multipliers": [1.0, 1.0, 1.0, 1.0, 0.5]},
        _FALCON_H1_KEYS | _MAMBA2,
        names=_FALCON_H1_NAMES,
    ),
    "Nemotron-H": Case(
        "NemotronH",
        "nemotron_h",
        _NEMOTRON | {"layers_block_type": ["mamba", "mlp", "attention", "mamba"]},
        _MAMBA2
        | {"ssm.inner_size": 64, "feed_forward_length": np.array([0, 96, 0, 0], np.int32)}
        | {"attention.head_count_kv": np.array([0, 0, 2, 0], np.int32)},
        names=_NEMOTRON_NAMES,
        extra={"hybrid_override_pattern": "M-*M", "layers_block_type": None}
        | {"num_hidden_layers": 4}
        | dict.fromkeys(["num_experts_per_tok", "n_routed_experts", "n_group", "topk_group"]),
    ),
    "Nemotron 3": Case(
        "NemotronH",
        "nemotron_h_moe",
        _NEMOTRON | _NEMOTRON_EXPERTS | {"n_group": 2, "topk_group": 1},
        _MAMBA2 | _NEMOTRON_KEYS | {"expert_group_count": 2, "expert_group_used_count": 1},
        names=_NEMOTRON_NAMES,
    ),
    "Nemotron 3 with narrower experts": Case(
        "NemotronH",
        "nemotron_h_moe",
        _NEMOTRON | _NEMOTRON_EXPERTS | {"moe_latent_size": 32},
        _MAMBA2 | _NEMOTRON_KEYS | {"moe_latent_size": 32},
        names=_NEMOTRON_NAMES,
    ),
    "LFM2": Case(
        "Lfm2",
        "lfm2",
        {"full_attn_idxs": [1], "block_multiple_of": 16, "tie_word_embeddings": True},
        _SHORT_CONV | {"feed_forward_length": 64},
        names=_LFM2_NAMES,
    ),
    "LFM2 MoE": Case(
        "Lfm2Moe",
        "lfm2moe",
        {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
        | {"num_dense_layers": 1, "routed_scaling_factor": 1.5}
        | {"layer_types": ["conv", "full_attention", "conv"], "tie_word_embeddings": True},
        _SHORT_CONV
        | {"leading_dense_block_count": 1, "expert_gating_func": 2, "expert_weights_scale": 1.5},
        names=_LFM2_NAMES,
        lost="the scale of the shares",
    ),
    "Command R": Case(
        "Cohere",
        "command-r",
        {"logit_scale": 0.25, "tie_word_embeddings": True},
        {"logit_scale": 0.25, "rope.scaling.type": "none"},
    ),
    "Command R7B": Case(
        "Cohere2",
        "cohere2",
        {"logit_scale": 0.25, "sliding_window": 20, "num_hidden_layers": 5}
        | {"tie_word_embeddings": True},
        {"logit_scale": 0.25, "rope.scaling.type": "none", "attention.sliding_window": 20},
        extra={"rotary_pct": 1.0, "position_embedding_type": "rope_gptj"},
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
            "rope_parameters": _YARN | {"truncate": True},
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names={
            "post_attention_layernorm": "post_attention_norm",
            "self_attn.sinks": "attn_sinks",
            "mlp.router": "ffn_gate_inp",
        },
    ),
    "OLMo 2": Case("Olmo2", "olmo2", names=AFTER),
    "OLMo 3": Case(
        "Olmo3",
        "olmo2",
        {
            "num_hidden_layers": 5,
            "sliding_window": 20,
            "rope_parameters": {
                "full_attention": _YARN,
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"attention.sliding_window": 20, "rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}
        | {"rope.scaling.original_context_length": 32},
        names=AFTER,
    ),
    "OLMoE": Case(
        "Olmoe",
        "olmoe",
        {"num_experts": 6, "num_experts_per_tok": 2, "num_key_value_heads": 4},
    ),
    "Phi-3": Case(
        "Phi3",
        "phi3",
        {"sliding_window": 20, "pad_token_id": 0},
        {"attention.sliding_window": 20},
        names=_FUSED,
    ),
    "Phi-4 mini, longer by LongRoPE": Case(
        "Phi3",
        "phi3",
        {"rope_parameters": _LONG, "original_max_position_embeddings": 32, "pad_token_id": 0},
        {"rope.dimension_count": 12, "rope.scaling.original_context_length": 32}
        | {"rope.scaling.attn_factor": (1 + math.log(4) / math.log(32)) ** 0.5},
        names=_FUSED,
    ),
    "Seed-OSS": Case(
        "SeedOss",
        "seed_oss",
        {"head_dim": 32, "attention_out_bias": False},
        names={"post_attention_layernorm": "post_attention_norm"},
    ),
    "SmolLM3": Case(
        "SmolLM3",
        "smollm3",
        {"num_hidden_layers": 5, "tie_word_embeddings": True, "pad_token_id": 0},
        reordered=True,
    ),
    "Gemma 2": Case(
        "Gemma2",
        "gemma2",
        {
            "num_hidden_layers": 4,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 20,
            "attn_logit_softcapping": 2.0,  # low enough to bend these models' scores and logits
            "final_logit_softcapping": 1.5,
        },
        {"attention.sliding_window": 20}
        | {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.5},
    ),
    "Gemma 3": Case(
        "Gemma3",
        "gemma3",
        {
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "sliding_window": 20,
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            },
        },
        {"attention.sliding_window": 20, "rope.freq_base": 1e6}
        | {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0},
    ),
    "Gemma 3n": Case("Gemma3n", "gemma3n", _GEMMA3N, _GEMMA3N_KEYS, _GEMMA3N_NAMES),
    "Gemma 3n without shared keys": Case(
        "Gemma3n",
        "gemma3n",
        _GEMMA3N | _GEMMA3N_USUAL,
        _GEMMA3N_KEYS
        | {"attention.sliding_window_pattern": np.array([True, True, False])}
        | {"attention.shared_kv_layers": 0, "feed_forward_length": 512}
        | {"final_logit_softcapping": 30.0, "embedding_length_per_layer_input": 256}
        | {"activation_sparsity_scale": np.full(3, 1.6448536, np.float32)},
        _GEMMA3N_NAMES,
    ),
    "Gemma 4 E2B": Case(
        "Gemma4", "gemma4", _GEMMA4 | _SHARING, _GEMMA4_KEYS | _SHARING_KEYS, _GEMMA4_NAMES
    ),
    "Gemma 4 E2B, which sees pictures": Case(
        "Gemma4",
        "gemma4",
        _GEMMA4 | _SHARING,
        _GEMMA4_KEYS | _SHARING_KEYS,
        _GEMMA4_NAMES,
        sees=True,
    ),
    "Gemma 4 12B": Case(
        "Gemma4Unified",
        "gemma4",
        {key: value for key, value in _GEMMA4.items() if "per_layer" not in key}
        | _KEYS_ARE_VALUES
        | {"layer_types": _LOCAL, "moe_intermediate_size": None},
        _GEMMA4_KEYS
        | {"attention.head_count_kv": np.array([2, 2, 1], np.int32)}
        | {"attention.sliding_window_pattern": np.array([True, True, False])},
        _GEMMA4_NAMES,
        sees=True,
    ),
    "Gemma 4 31B": Case(
        "Gemma4",
        "gemma4",
        _GEMMA4
        | _KEYS_ARE_VALUES
        | {"num_hidden_layers": 5, "layer_types": [*_LOCAL, *_LOCAL[1:]]},
        _GEMMA4_KEYS
        | {"attention.head_count_kv": np.array([2, 2, 1, 2, 1], np.int32)}
        | {"attention.sliding_window_pattern": np.array([True, True, False, True, False])},
        _GEMMA4_NAMES,
        # As its authors wrote it, not as transformers does
        extra={"per_layer_config": None, "global_head_dim": 64, "num_global_key_value_heads": 1},
    ),
    "Gemma 4 26B-A4B": Case(
        "Gemma4",
        "gemma4",
        _GEMMA4
        | _KEYS_ARE_VALUES
        | {"enable_moe_block": True, "num_experts": 6, "top_k_experts": 2}
        | {"moe_intermediate_size": 32, "num_hidden_layers": 2, "layer_types": _LOCAL[1:]},
        _GEMMA4_KEYS
        | {"attention.head_count_kv": np.array([2, 1], np.int32)}
        | {"attention.sliding_window_pattern": np.array([True, False])},
        _GEMMA4_NAMES,
    ),
    **EXPERT_CASES,
    **PLAIN_CASES,
    **SCAN_CASES,
}
