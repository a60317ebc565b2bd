"""Tiny models of Gemma 2 to 4, as in hf_cases."""

import numpy as np
from hf_case import VOCAB, Case

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

GEMMA_CASES = {
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
}
