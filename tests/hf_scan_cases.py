"""Tiny models whose layers keep a state of fixed size (scans, the delta rule, short convolutions),
as in hf_cases."""

import numpy as np
from hf_case import GRANITE, GRANITE_KEYS, SHARED, SHARED_NAMES, Case

_NAMES = {
    "in_proj": "ssm_in",
    "conv1d": "ssm_conv1d",
    "x_proj": "ssm_x",
    "dt_proj": "ssm_dt",
    "A_log": "ssm_a",
    "D": "ssm_d",
    "out_proj": "ssm_out",
}
_MAMBA_NAMES = {
    "embeddings": "token_embd",
    "norm_f": "output_norm",
    "norm": "attn_norm",
    **{f"mixer.{name}": slot for name, slot in _NAMES.items()},
}
_JAMBA_NAMES = {
    "final_layernorm": "output_norm",
    "pre_ff_layernorm": "ffn_norm",
    "feed_forward.router": "ffn_gate_inp",
    "feed_forward.experts.down_proj": "ffn_down_exps",
    **{f"feed_forward.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
    **{f"mamba.{name}": slot for name, slot in _NAMES.items()},
    **{f"mamba.{part}_layernorm": f"ssm_{part}_norm" for part in ("dt", "b", "c")},
}
_SSM = {
    **{"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 16},
    "ssm.time_step_rank": 32,
}
_NO_HEADS = {"attention.head_count": 0, "attention.head_count_kv": 0, "feed_forward_length": 0}
_MAMBA = {"intermediate_size": 128, "state_size": 16, "time_step_rank": 32}
# What config.json of a model without attention does not say.
_UNSAID = dict.fromkeys(["num_attention_heads", "num_key_value_heads", "max_position_embeddings"])
_JAMBA = {
    **{"attn_layer_period": 3, "attn_layer_offset": 1, "mamba_d_state": 16, "mamba_dt_rank": 32},
    **{"num_experts": 6, "num_experts_per_tok": 2},
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
    **SHARED_NAMES,
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

SCAN_CASES = {
    "Mamba": Case("Mamba", "mamba", _MAMBA, _SSM | _NO_HEADS, names=_MAMBA_NAMES, extra=_UNSAID),
    "Falcon-Mamba": Case(
        "FalconMamba",
        "mamba",
        _MAMBA | {"mixer_rms_eps": 1e-5, "num_hidden_layers": 2},
        _SSM | _NO_HEADS | {"ssm.dt_b_c_rms": True},
        names=_MAMBA_NAMES,
        extra=_UNSAID,
    ),
    "Mamba-2": Case(
        "Mamba2",
        "mamba2",
        {"num_heads": 2, "state_size": 64, "n_groups": 2, "num_hidden_layers": 2},
        {"ssm.conv_kernel": 4, "ssm.inner_size": 128, "ssm.state_size": 64, "ssm.group_count": 2}
        | {"ssm.time_step_rank": 2}
        | _NO_HEADS,
        names={
            **{name: slot for name, slot in _MAMBA_NAMES.items() if "_proj" not in name},
            **{"mixer.in_proj": "ssm_in", "mixer.out_proj": "ssm_out"},
            **{"mixer.dt_bias": "ssm_dt.bias", "mixer.norm": "ssm_norm"},
        },
        extra=_UNSAID | {"intermediate_size": None},
    ),
    "Jamba": Case(
        "Jamba",
        "jamba",
        _JAMBA,
        _SSM | {"attention.head_count_kv": np.array([0, 2, 0], np.int32)},
        names=_JAMBA_NAMES,
    ),
    "Jamba without experts": Case(
        "Jamba",
        "jamba",
        _JAMBA | {"num_experts": 1, "num_experts_per_tok": 1, "num_hidden_layers": 2},
        _SSM | {"attention.head_count_kv": np.array([0, 2], np.int32)},
        names=_JAMBA_NAMES,
    ),
    "Qwen3-Next": Case(
        "Qwen3Next",
        "qwen3next",
        _DELTA | SHARED | {"num_experts_per_tok": 4},
        _DELTA_KEYS | {"expert_shared_feed_forward_length": 64},
        names=_DELTA_NAMES | SHARED_NAMES,
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
        _DELTA | SHARED | {"rope_parameters": _QWEN35_ROPE, "num_experts_per_tok": 4},
        _DELTA_KEYS | {"expert_shared_feed_forward_length": 64},
        names=_DELTA_NAMES | SHARED_NAMES,
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
    "Granite 4": Case(
        "GraniteMoeHybrid",
        "granitehybrid",
        GRANITE | _GRANITE_4 | {"num_local_experts": 0, "shared_intermediate_size": 96},
        GRANITE_KEYS | _MAMBA2 | _GRANITE_4_KEYS,
        names=_GRANITE_4_NAMES | {"shared_mlp.output_linear": "ffn_down"},
        reordered=True,
        extra=_GRANITE_4_EXTRA,
    ),
    "Granite 4 with experts": Case(
        "GraniteMoeHybrid",
        "granitehybrid",
        GRANITE
        | _GRANITE_4
        | {"num_local_experts": 6, "num_experts_per_tok": 2, "shared_intermediate_size": 64},
        GRANITE_KEYS
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
        GRANITE
        | _GRANITE_4
        | {"num_local_experts": 0, "shared_intermediate_size": 96, "mamba_conv_bias": False}
        | {"position_embedding_type": "rope", "time_step_limit": [0.5, 0.8]},
        GRANITE_KEYS
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
}
