"""Tiny models with the scan of Mamba, as in hf_cases."""

import numpy as np
from hf_case import Case

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
}
