"""A small config.json of every model_type, with no more than its family needs."""

from typing import Any

from airllm.models import FAMILIES

_COMMON: dict[str, Any] = {
    **{"vocab_size": 160, "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 4},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128},
    **{"rms_norm_eps": 1e-5, "hidden_act": "silu"},
}
_GELU: dict[str, Any] = {"rms_norm_eps": None, "hidden_act": "gelu"}  # and LayerNorm
_OF_SIX = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_EXPERTS = {"num_experts": 6, **_OF_SIX}
_WIDE_EXPERTS = {"num_local_experts": 6, "num_experts_per_tok": 2}
_ROUTED = {"n_routed_experts": 6, **_OF_SIX}
_LATENT = {"kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16}
_LATENT |= {"q_lora_rank": 24, "num_key_value_heads": 4, "first_k_dense_replace": 1, **_ROUTED}
_DENSE_LATENT = {k: v for k, v in _LATENT.items() if k not in (*_ROUTED, "first_k_dense_replace")}
_INDEX = {"index_n_heads": 4, "index_head_dim": 16, "index_topk": 8}
_DELTA = {"linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16}
_DELTA |= {"linear_value_head_dim": 16, "linear_conv_kernel_dim": 4, "head_dim": 16}
_THREE_OF_FOUR = ["sliding_attention"] * 3 + ["full_attention"]
_YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0}
_YARN |= {"original_max_position_embeddings": 32}
_KDA = {"kda_layers": [1, 2, 3], "full_attn_layers": [4], "head_dim": 16, "num_heads": 4}
_KDA |= {"short_conv_kernel_size": 4}

_SHARED = {"shared_expert_intermediate_size": 32}
_PLAIN_NORM = {"rms_norm_eps": None}
_WIDE = {"intermediate_size": 128, "rms_norm_eps": None}
_RELU: dict[str, Any] = {"rms_norm_eps": None, "hidden_act": "relu2"}
_GEMMA = {"head_dim": 16, "hidden_act": None, "sliding_window": 20}
_OLDEST = {key: None for key in _COMMON if key != "vocab_size"}  # whose keys have other names

# What a model_type needs beside the common keys. None: what it does not have.
_OWN: dict[str, dict[str, Any]] = {
    "afmoe": _EXPERTS | {"mup_enabled": True, "sliding_window": 32, "layer_types": _THREE_OF_FOUR},
    "apertus": {"hidden_act": "xielu"},
    "arcee": {"hidden_act": "relu2"},
    "bailing_hybrid": _LATENT
    | {"n_routed_experts": None, "num_experts": 8, "n_group": 2, "topk_group": 1}
    | {"layer_group_size": 2, "head_dim": 16, "kda_safe_gate": True},
    "bailing_moe": _EXPERTS | {"use_qk_norm": True, "score_function": "sigmoid"},
    "bloom": _PLAIN_NORM,
    "cohere": _PLAIN_NORM,
    "cohere2": _PLAIN_NORM,
    "dbrx": _OLDEST
    | {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}
    | {"attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 5e5}}
    | {"ffn_config": {"moe_num_experts": 6, "moe_top_k": 2, "ffn_hidden_size": 32}},
    "deepseek": _ROUTED,
    "deepseek_v2": _LATENT,
    "deepseek_v3": _LATENT,
    "deepseek_v32": _LATENT | _INDEX,
    "dots1": _ROUTED,
    "ernie4_5_moe": {"moe_num_experts": 6, "moe_k": 2, "moe_intermediate_size": 32},
    "exaone4": {"sliding_window": 32, "sliding_window_pattern": 4},
    "exaone_moe": _EXPERTS,
    "falcon": _GELU,
    "falcon_mamba": _WIDE,
    "gemma": {"head_dim": 16, "hidden_act": None},
    "gemma2": _GEMMA,
    "gemma3_text": _GEMMA,
    "gemma3n_text": _GEMMA,
    "gemma4_text": _GEMMA,
    "glm4_moe": _ROUTED,
    "glm4_moe_lite": _LATENT,
    "gemma4_unified_text": _GEMMA,
    "glm4v_moe_text": _ROUTED,
    "glm5_next_text": _LATENT
    | _INDEX
    | {"qk_rope_head_dim": 0, "index_kpool": 4, "linear_num_heads": 4, "linear_head_dim": 16},
    "glm_moe_dsa": _LATENT | _INDEX,
    "gptj": _OLDEST
    | {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128, "rotary_dim": 8}
    | {"activation_function": "gelu_new"},
    "gpt2": _OLDEST | {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128},
    "gpt_bigcode": _OLDEST | {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 128},
    "gpt_neox": _GELU,
    "gpt_oss": {"num_local_experts": 6, "num_experts_per_tok": 2, "rope_parameters": _YARN},
    "granitemoe": _WIDE_EXPERTS,
    "granitemoehybrid": {"layer_types": ["mamba"] * 3 + ["attention"]},
    "granitemoeshared": _WIDE_EXPERTS,
    "hunyuan_v1_moe": {"num_experts": [6] * 4, "moe_topk": [2] * 4},
    "hy_v3": _EXPERTS | {"num_shared_experts": 2},
    "hy_v4": _LATENT | _INDEX,
    "hy_v4_vl_text": _LATENT | _INDEX,
    "jais2": _RELU,
    "kimi_k2": _LATENT,
    "kimi_linear": _LATENT
    | {"n_routed_experts": None, "num_experts": 6, "linear_attn_config": _KDA},
    "lfm2": _PLAIN_NORM,
    "lfm2_moe": _EXPERTS | _PLAIN_NORM,
    "llama4_text": {"attn_temperature_tuning": False, "attn_scale": 0.1},
    "mamba": _WIDE,
    "mamba2": _WIDE | {"num_heads": 8, "head_dim": 16},
    "mellum": _EXPERTS,
    "mimo_v2_flash": _ROUTED,
    "minicpm3": {key: value for key, value in _LATENT.items() if key not in _ROUTED}
    | {"first_k_dense_replace": None, "v_head_dim": None},
    "minimax_m2": _WIDE_EXPERTS,
    "mistral4": _LATENT,
    "mixtral": {"num_local_experts": 6, "num_experts_per_tok": 2},
    "mpt": _OLDEST | {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 128},
    "nemotron": _RELU,
    "nemotron_h": {"hybrid_override_pattern": "M-*-", "rms_norm_eps": None},
    "olmo": _PLAIN_NORM,
    "olmoe": _WIDE_EXPERTS,
    "phi": {"rms_norm_eps": None, "hidden_act": "gelu_new"},
    "phimoe": _WIDE_EXPERTS,
    "qwen2_moe": _EXPERTS | _SHARED,
    "qwen3_5_moe_text": _EXPERTS | _DELTA | _SHARED,
    "qwen3_5_text": _DELTA,
    "qwen3_moe": _EXPERTS,
    "qwen3_next": _EXPERTS | _DELTA | _SHARED,
    "qwen3_vl_moe_text": _EXPERTS | {"moe_intermediate_size": 96},
    "qwen4_exp_text": _EXPERTS
    | _DELTA
    | {"output_gate_type": "sigmoid", "indexer_kv_heads": 1, "indexer_compress_ratio": 4}
    | {"indexer_budget": 16, "indexer_head_dim": 16, "indexer_n_heads": 4, "ple_layer_ids": [3]}
    | {"ple_embed_dim": 64, "ngram_vocab_size_base": 50, "heads_per_ngram": 1}
    | {"make_ngram_vocab_size_divisible_by": 16, "eos_token_id": 2},
    "sarvam_mla": _LATENT,
    "sarvam_moe": _EXPERTS,
    "smallthinker": _EXPERTS | {"hidden_act": None},
    "solar_open": _ROUTED,
    "stablelm": _PLAIN_NORM,
    "starcoder2": {"rms_norm_eps": None, "hidden_act": "gelu_pytorch_tanh"},
    "youtu": _DENSE_LATENT,
}


def config_of(model_type: str) -> dict[str, Any]:
    """config.json of a model_type."""
    config = _COMMON | {"model_type": model_type} | _OWN.get(model_type, {})
    return {key: value for key, value in config.items() if value is not None}


MODEL_TYPES = sorted({each.model_type for f in FAMILIES.values() for each in f.hugging_face})
