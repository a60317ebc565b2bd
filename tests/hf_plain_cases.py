"""Tiny models of the families that are plain variants of others, as in hf_cases."""

from typing import Any

import numpy as np
from hf_case import CONTEXT, Case

_SHARED_NAMES = {
    f"mlp.shared_experts.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")
}
_BIASED_NAMES = _SHARED_NAMES | {"mlp.gate.e_score_correction_bias": "exp_probs_b.bias"}
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_LLAMA3_ROPE = {
    **{"rope_type": "llama3", "rope_theta": 1e6, "factor": 16.0, "low_freq_factor": 1.0},
    **{"high_freq_factor": 4.0, "original_max_position_embeddings": 32},
}
_WINDOW = {"num_hidden_layers": 5, "sliding_window": 20, "sliding_window_pattern": 4}
_WINDOW_KEYS: dict[str, Any] = {
    "attention.sliding_window": 20,
    "attention.sliding_window_pattern": np.array([1, 1, 1, 0, 1], bool),
}
_NTK = {"rope_type": "dynamic", "rope_theta": 1e4, "alpha": 50.0, "factor": 1.0}
_HUNYUAN_NAMES = {
    "self_attn.query_layernorm": "attn_q_norm",
    "self_attn.key_layernorm": "attn_k_norm",
}
_AFMOE_NAMES = _SHARED_NAMES | {
    "post_attention_layernorm": "post_attention_norm",
    "pre_mlp_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "self_attn.gate_proj": "attn_gate",
    "mlp.router.gate": "ffn_gate_inp",
    "mlp.expert_bias": "exp_probs_b.bias",
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32, "head_dim": 32}

_YARN = {
    **{"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "mscale": 1.0},
    **{"original_max_position_embeddings": 32, "mscale_all_dim": 1.0},
}
_LATENT = {
    **{"num_key_value_heads": 4, "kv_lora_rank": 32, "q_lora_rank": 32, "v_head_dim": 24},
    **{"qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "n_routed_experts": 6},
    **{"num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_shared_experts": 2},
}
_LATENT_KEYS = {
    **{"attention.head_count_kv": 1, "attention.kv_lora_rank": 32, "attention.key_length": 40},
    **{"attention.value_length": 32, "attention.key_length_mla": 40},
    **{"attention.value_length_mla": 24, "rope.dimension_count": 8, "expert_shared_count": 2},
    **{"attention.q_lora_rank": 32, "leading_dense_block_count": 0, "expert_gating_func": 1},
    **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0},
    **{"rope.scaling.original_context_length": 32, "rope.scaling.yarn_log_multiplier": 0.1},
}
_LATENT_NAMES = _SHARED_NAMES | {
    "self_attn.q_a_proj": "attn_q_a",
    "self_attn.q_a_layernorm": "attn_q_a_norm",
    "self_attn.q_b_proj": "attn_q_b",
    "self_attn.kv_a_proj_with_mqa": "attn_kv_a_mqa",
    "self_attn.kv_a_layernorm": "attn_kv_a_norm",
}

# The converter takes a network to be four times as wide as a token.
_OF_256 = {"num_key_value_heads": 4, "intermediate_size": 256}
_FALCON = _OF_256 | {"ffn_hidden_size": 256}
_FALCON_KEYS = {"attention.head_count_kv": 1, "attention.layer_norm_epsilon": 1e-5}
_FALCON_NAMES = {
    "word_embeddings": "token_embd",
    "ln_f": "output_norm",
    "ln_mlp": "attn_norm",
    "ln_attn": "attn_norm_2",
    "self_attention.query_key_value": "attn_qkv",
    "self_attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_NEOX_NAMES = {
    "embed_in": "token_embd",
    "embed_out": "output",
    "final_layer_norm": "output_norm",
    "attention.query_key_value": "attn_qkv",
    "attention.dense": "attn_output",
    "mlp.dense_h_to_4h": "ffn_up",
    "mlp.dense_4h_to_h": "ffn_down",
}
_BLOOM_KEYS = {"attention.head_count_kv": 4, "attention.layer_norm_epsilon": 1e-5}
_BLOOM_NAMES = _FALCON_NAMES | {
    "word_embeddings_layernorm": "token_embd_norm",
    "post_attention_layernorm": "ffn_norm",
}
_NEOX_ROPE = {"rotary_pct": 0.25, "rotary_emb_base": 10000, "rope_parameters": None}
_LENGTH = {"seq_length": CONTEXT}
_GPT2 = _OF_256 | {"n_inner": 256}
_GPT2_KEYS = {"attention.head_count_kv": 4, "attention.layer_norm_epsilon": 1e-5}
_GPT2_NAMES = {
    "wte": "token_embd",
    "wpe": "position_embd",
    "ln_f": "output_norm",
    "ln_1": "attn_norm",
    "ln_2": "ffn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
_GPTJ_NAMES = {
    **{"wte": "token_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "lm_head": "output"},
    **{f"attn.{part}_proj": f"attn_{part}" for part in "qkv"},
    **{"attn.out_proj": "attn_output", "mlp.fc_in": "ffn_up", "mlp.fc_out": "ffn_down"},
}

_MISTRAL_4 = {"architectures": ["Mistral3ForConditionalGeneration"]}  # published with pictures

_GLM4_NAMES = {
    "post_self_attn_layernorm": "post_attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "post_mlp_layernorm": "post_ffw_norm",
    "mlp.gate_up_proj": "ffn_up",
}
_HALF_ROTATES = {
    **{"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.5},
    "mrope_section": [2, 1, 1],
}
PLAIN_CASES = {
    "Llama with biases, as InternLM3": Case(
        "Llama",
        "llama",
        {"attention_bias": True, "mlp_bias": True, "head_dim": 32},
        reordered=True,
        extra={"model_type": "internlm3", "qkv_bias": True, "bias": True}
        | {"rope_scaling": {"rope_type": "dynamic", "factor": 6.0}, "rope_parameters": None}
        | {"rope_theta": 10000.0},
    ),
    "ERNIE 4.5": Case("Ernie4_5", "ernie4_5", {"head_dim": 32, "tie_word_embeddings": True}),
    "ERNIE 4.5 with experts": Case(
        "Ernie4_5_Moe",
        "ernie4_5-moe",
        # GGUF's width of the shared experts is this width over the number of heads of keys.
        {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32, "intermediate_size": 128},
        {"expert_shared_count": 2, "expert_shared_feed_forward_length": 64}
        | {"leading_dense_block_count": 1, "interleave_moe_layer_step": 1},
        names=_SHARED_NAMES | {"mlp.gate.moe_statics.e_score_correction_bias": "exp_probs_b.bias"},
        extra={"moe_capacity": [64, 64, 64], "moe_gate": "topk", "moe_use_aux_free": True},
    ),
    "GLM-4": Case(
        "Glm4",
        "glm4",
        {"head_dim": 32, "pad_token_id": 0},
        {"rope.dimension_count": 16},
        names=_GLM4_NAMES,
    ),
    "GLM-4.1V": Case(
        "Glm4v",
        "glm4",
        {"rope_parameters": _HALF_ROTATES},
        {"rope.dimension_count": 8},
        names=_GLM4_NAMES,
        sees=True,
    ),
    "EXAONE 3.5": Case("Exaone", "exaone", {"rope_parameters": _LLAMA3_ROPE}),
    "EXAONE 4.0 1.2B": Case(
        "Exaone4",
        "exaone4",
        {"sliding_window": None, "layer_types": ["full_attention"] * 3}
        | {"rope_parameters": _LLAMA3_ROPE, "tie_word_embeddings": True},
        names=_SANDWICH,
    ),
    "EXAONE 4.0 with windows": Case("Exaone4", "exaone4", _WINDOW, _WINDOW_KEYS, names=_SANDWICH),
    "EXAONE 4.5": Case(
        "Exaone4_5_",
        "exaone4",
        _WINDOW | {"model_type": "exaone4"},
        _WINDOW_KEYS,
        names=_SANDWICH,
        sees=True,
    ),
    "K-EXAONE": Case(
        "ExaoneMoe",
        "exaone-moe",
        _WINDOW | _EXPERTS | {"num_experts": 6, "n_group": 1, "routed_scaling_factor": 1.5},
        _WINDOW_KEYS
        | {"expert_gating_func": 2, "expert_weights_scale": 1.5, "expert_weights_norm": True}
        | {"expert_shared_count": 1, "leading_dense_block_count": 1},
        names=_BIASED_NAMES,
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    "Hunyuan, dense": Case(
        "HunYuanDenseV1",
        "hunyuan-dense",
        {"head_dim": 32, "tie_word_embeddings": True},
        names=_HUNYUAN_NAMES,
        extra={"use_qk_norm": True, "norm_type": "rms", "num_experts": 1},
    ),
    "Hunyuan, longer by a larger base": Case(
        "HunYuanDenseV1",
        "hunyuan-dense",
        {"head_dim": 32, "max_position_embeddings": 32768} | {"rope_parameters": _NTK},
        {"rope.freq_base": 1e4 * 50.0 ** (32 / 30)},
        names=_HUNYUAN_NAMES,
    ),
    "HunyuanOCR": Case(
        "HunYuanVL",
        "hunyuan_vl",
        {
            **{"head_dim": 32, "tie_word_embeddings": True},
            "rope_parameters": _NTK | {"mrope_section": [4, 4, 4, 4]},
        },
        {"rope.freq_base": 1e4 * 50.0 ** (32 / 30)}
        | {"rope.dimension_sections": np.array([4, 4, 4, 4], np.int32)},
        names=_HUNYUAN_NAMES,
        sees=True,
    ),
    "Hunyuan-A13B": Case(
        "HunYuanMoEV1",
        "hunyuan-moe",
        {"num_hidden_layers": 2, "num_experts": 6, "moe_topk": 2, "head_dim": 16},
        {"expert_shared_count": 1, "expert_shared_feed_forward_length": 96},
        names=_HUNYUAN_NAMES
        | {"mlp.gate.wg": "ffn_gate_inp"}
        | {f"mlp.shared_mlp.{part}_proj": f"ffn_{part}_shexp" for part in ("gate", "up", "down")},
        extra={"moe_topk": [2] * 2, "moe_intermediate_size": [96] * 2, "num_shared_expert": [1] * 2}
        | {"use_qk_norm": True, "use_mixed_mlp_moe": True},
    ),
    "dots.llm1": Case(
        "Dots1",
        "dots1",
        _EXPERTS
        | {"n_routed_experts": 6, "n_shared_experts": 2, "first_k_dense_replace": 1}
        | {"num_key_value_heads": 4}  # as llama.cpp takes for granted
        | {"norm_topk_prob": True, "routed_scaling_factor": 2.5, "sliding_window": None},
        {"expert_gating_func": 2, "expert_weights_scale": 2.5, "expert_weights_norm": True}
        | {"expert_shared_count": 2, "leading_dense_block_count": 1},
        names=_BIASED_NAMES,
        extra={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    ),
    "AFM-4.5B": Case("Arcee", "arcee", {"head_dim": 32}, reordered=True),
    "Trinity": Case(
        "Afmoe",
        "afmoe",
        _EXPERTS
        | {"num_experts": 6, "num_shared_experts": 1, "num_dense_layers": 1, "route_scale": 1.5}
        | {"num_hidden_layers": 5, "sliding_window": 20, "mup_enabled": True},
        {"attention.sliding_window": 20, "expert_gating_func": 2, "expert_weights_scale": 1.5}
        | {"expert_weights_norm": True, "expert_shared_count": 1}
        | {"leading_dense_block_count": 1},
        names=_AFMOE_NAMES,
        extra={"score_func": "sigmoid", "route_norm": True, "n_group": 1, "topk_group": 1},
    ),
    "Hy3": Case(
        "HYV3",
        "hy_v3",
        _EXPERTS | {"num_experts": 6, "num_shared_experts": 1, "router_scaling_factor": 1.5},
        {"expert_gating_func": 2, "expert_weights_scale": 1.5, "expert_weights_norm": True}
        | {"expert_shared_feed_forward_length": 32},
        names=_SHARED_NAMES | {"mlp.e_score_correction_bias": "exp_probs_b."},
        extra={"route_norm": True, "moe_router_use_sigmoid": True, "qk_norm": True},
    ),
    "Mistral 4": Case(
        "Mistral4",
        "mistral4",
        _LATENT | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.1}},
        _LATENT_KEYS | {"attention.temperature_scale": 0.1},
        names=_LATENT_NAMES,
        extra=_MISTRAL_4,
        lost="how queries grow",
    ),
    "Mistral 4 whose queries do not grow": Case(
        "Mistral4",
        "mistral4",
        _LATENT | {"rope_parameters": _YARN | {"llama_4_scaling_beta": 0.0}},
        _LATENT_KEYS,
        names=_LATENT_NAMES,
        extra=_MISTRAL_4,
    ),
    "StarCoder2": Case(
        "Starcoder2",
        "starcoder2",
        {"sliding_window": 20, "tie_word_embeddings": True},
        {"attention.sliding_window": 20, "attention.layer_norm_epsilon": 1e-5},
        names={"mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"},
        lost="the window",
    ),
    "Phi-2": Case(
        "Phi",
        "phi2",
        {"num_key_value_heads": 4, "intermediate_size": 256},
        {"rope.dimension_count": 8},
        names={
            "final_layernorm": "output_norm",
            "self_attn.dense": "attn_output",
            "mlp.fc1": "ffn_up",
            "mlp.fc2": "ffn_down",
        },
    ),
    "StableLM 2": Case("StableLm", "stablelm", {"use_qkv_bias": True}, {"rope.dimension_count": 4}),
    "StableLM with both halves side by side": Case(
        "StableLm", "stablelm", {"use_parallel_residual": True}, {"rope.dimension_count": 4}
    ),
    "Minitron": Case(
        "Nemotron",
        "nemotron",
        {"head_dim": 16},
        {"rope.dimension_count": 8, "attention.layer_norm_epsilon": 1e-5},
    ),
    "Apertus": Case(
        "Apertus",
        "apertus",
        {"rope_parameters": _LLAMA3_ROPE},
        names={"attention_layernorm": "attn_norm", "feedforward_layernorm": "ffn_norm"},
    ),
    "Falcon 7B": Case(
        "Falcon",
        "falcon",
        _FALCON,
        _FALCON_KEYS,
        names=_FALCON_NAMES,
        extra={"num_kv_heads": 1},  # the converter does not look at multi_query
    ),
    "Falcon 40B": Case(
        "Falcon",
        "falcon",
        _FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2},
        _FALCON_KEYS | {"attention.head_count_kv": 2},
        names=_FALCON_NAMES,
    ),
    "Falcon 11B": Case(
        "Falcon",
        "falcon",
        _FALCON
        | {"new_decoder_architecture": True, "num_kv_heads": 2, "num_ln_in_parallel_attn": 1},
        _FALCON_KEYS | {"attention.head_count_kv": 2},
        names=_FALCON_NAMES,
    ),
    "Pythia": Case(
        "GPTNeoX",
        "gptneox",
        _OF_256,
        {"rope.dimension_count": 4, "use_parallel_residual": True},
        names=_NEOX_NAMES,
        extra=_NEOX_ROPE,
    ),
    "GPT-NeoX with one half after the other": Case(
        "GPTNeoX",
        "gptneox",
        _OF_256 | {"use_parallel_residual": False},
        {"rope.dimension_count": 4, "use_parallel_residual": False},
        names=_NEOX_NAMES,
        extra=_NEOX_ROPE,
    ),
    "GPT-2": Case("GPT2", "gpt2", _GPT2, _GPT2_KEYS, names=_GPT2_NAMES, extra={"n_ctx": CONTEXT}),
    "GPT-J": Case(
        "GPTJ",
        "gptj",
        {"n_inner": 96, "rotary_dim": 8, "activation_function": "gelu_new"}
        | {"num_key_value_heads": 4},
        {"attention.layer_norm_epsilon": 1e-5, "rope.dimension_count": 8}
        | {"feed_forward_length": 96},
        names=_GPTJ_NAMES,
        extra=_LENGTH | {"rotary": True},
    ),
    "StarCoder": Case(
        "GPTBigCode",
        "starcoder",
        _GPT2,
        _GPT2_KEYS | {"attention.head_count_kv": 1},
        names=_GPT2_NAMES,
    ),
    "GLM-4 of 2024": Case(
        "Glm",
        "chatglm",
        {"head_dim": 16, "pad_token_id": 0, "rms_norm_eps": 1e-5},  # as the converter writes it
        {"rope.dimension_count": 8},
        names={"mlp.gate_up_proj": "ffn_up"},
        extra=_LENGTH,
    ),
    "BLOOM": Case("Bloom", "bloom", _OF_256, _BLOOM_KEYS, names=_BLOOM_NAMES, extra=_LENGTH),
    "BLOOM with six heads": Case(
        "Bloom",
        "bloom",
        _OF_256
        | {"num_attention_heads": 6, "hidden_size": 96, "intermediate_size": 384}
        | {"num_key_value_heads": 6},
        _BLOOM_KEYS | {"attention.head_count_kv": 6},
        names=_BLOOM_NAMES,
        extra=_LENGTH,
    ),
    "MPT": Case(
        "Mpt",
        "mpt",
        _OF_256 | {"max_seq_len": CONTEXT, "attn_config": {"clip_qkv": 1.0}},
        {"attention.max_alibi_bias": 8.0, "attention.layer_norm_epsilon": 1e-5}
        | {"attention.clamp_kqv": 1.0}
        | {"attention.head_count_kv": 4},
        names={
            "wte": "token_embd",
            "norm_f": "output_norm",
            "norm_1": "attn_norm",
            "norm_2": "ffn_norm",
            "attn.Wqkv": "attn_qkv",
            "attn.out_proj": "attn_output",
            "ffn.up_proj": "ffn_up",
            "ffn.down_proj": "ffn_down",
        },
        extra={"architectures": ["MPTForCausalLM"]},
    ),
    "Muse Glimmer": Case(
        "MuseGlimmer",
        "muse-glimmer",
        {"head_dim": 32, "sliding_window": 20, "num_hidden_layers": 4, "qk_scale_factor": 1.5}
        | {"output_multiplier": 0.7, "final_logit_softcapping": 3.0, "pad_token_id": 0},
        {"attention.sliding_window": 20, "logit_scale": 0.7, "final_logit_softcapping": 3.0}
        | {"attention.sliding_window_pattern": np.array([1, 1, 1, 0], bool)},
        names=_SANDWICH
        | {"pre_feedforward_layernorm": "ffn_norm", "self_attn.gate_proj": "attn_gate"},
        reordered=True,
        sees=True,
    ),
    "OLMo": Case(
        "Olmo",
        "olmo",
        {"clip_qkv": 1.0},
        {"attention.clamp_kqv": 1.0, "attention.layer_norm_epsilon": 1e-5},
        reordered=True,
    ),
    "Jais 2": Case("Jais2", "jais2", {"head_dim": 16}),
    "Gemma": Case(
        "Gemma",
        "gemma",
        {"head_dim": 32},
        names={"post_attention_layernorm": "ffn_norm"},
    ),
}
