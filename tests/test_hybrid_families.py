"""Families whose layers differ in how they see earlier tokens: what their files say of it."""

import math
from typing import Any

import numpy as np
import pytest
from family_models import described, metadata_of, shapes

from airllm.models import Model, load_model
from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

_SIZES = {
    **{"vocab_size": 160, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128},
}
_LFM2 = _SIZES | {"model_type": "lfm2", "num_hidden_layers": 3}
_GRANITE = _SIZES | {
    **{"model_type": "granitemoehybrid", "num_hidden_layers": 2, "rms_norm_eps": 1e-6},
    **{"layer_types": ["mamba", "attention"], "mamba_n_heads": 8},
    "num_local_experts": 0,
}
_NEMOTRON = _SIZES | {"model_type": "nemotron_h", "hybrid_override_pattern": "M-*"}


def metadata(config: dict[str, Any]) -> dict[str, object]:
    return translate(Metadata("config.json", config)).metadata


def refusal(config: dict[str, Any]) -> str:
    with pytest.raises(FormatError) as error:
        metadata(config)
    return str(error.value)


def loaded(architecture: str, **entries: object) -> Model:
    """The model of tests/family_models.py with other metadata."""
    own = {f"{architecture}.{key}": value for key, value in entries.items()}
    usual = metadata_of(architecture)
    return load_model(described(usual | own, shapes(architecture, usual)))


# ---- folders -------------------------------------------------------------------------------------


def test_older_folders_of_lfm2_name_the_layers_with_attention() -> None:
    found = metadata(_LFM2 | {"full_attn_idxs": [0, 2]})["lfm2.attention.head_count_kv"]
    np.testing.assert_array_equal(found, [2, 0, 2])


@pytest.mark.parametrize(
    ("keys", "width"),
    [
        ({}, 256),  # 64 in multiples of 256
        ({"block_multiple_of": 16}, 64),
        ({"block_multiple_of": 16, "block_ffn_dim_multiplier": 1.3}, 96),  # 83 in multiples of 16
        ({"block_auto_adjust_ff_dim": False}, 96),
        ({"block_auto_adjust_ff_dim": False, "block_ff_dim": 112}, 112),
    ],
)
def test_the_width_of_lfm2_follows_its_rule(keys: dict[str, Any], width: int) -> None:
    assert metadata(_LFM2 | keys)["lfm2.feed_forward_length"] == width


def test_the_architecture_of_nemotron_depends_on_its_layers() -> None:
    assert metadata(_NEMOTRON)["general.architecture"] == "nemotron_h"
    with_experts = _NEMOTRON | {
        **{"hybrid_override_pattern": "ME*", "n_routed_experts": 8, "num_experts_per_tok": 2},
        **{"moe_intermediate_size": 32, "moe_shared_expert_intermediate_size": 48},
    }
    assert metadata(with_experts)["general.architecture"] == "nemotron_h_moe"


@pytest.mark.parametrize("most", [math.inf, {"__float__": "Infinity"}])
def test_time_steps_without_a_limit_need_no_key(most: object) -> None:
    found = metadata(_GRANITE | {"time_step_limit": [0.0, most]})
    assert not [key for key in found if "time_step_m" in key]


@pytest.mark.parametrize(
    ("config", "keys", "fault"),
    [
        (_LFM2, {"conv_bias": True}, "conv_bias is 'True'; expected False"),
        (
            _LFM2,
            {"layer_types": ["conv", "linear"]},
            "layer_types does not say of each of 3 layers",
        ),
        (_LFM2, {"full_attn_idxs": 1}, "full_attn_idxs is no list"),
        (_LFM2, {"block_ffn_dim_multiplier": -1.0}, "block_ffn_dim_multiplier is -1.0"),
        (_GRANITE, {"mamba_d_head": 8}, "mamba_d_head times mamba_n_heads, 8, is not 128"),
        (_GRANITE, {"time_step_limit": [0.0]}, "time_step_limit is no list of two"),
        (_GRANITE, {"time_step_limit": [0.0, "x"]}, "time_step_limit has x"),
        (_GRANITE, {"mamba_new_thing": 1}, "mamba_new_thing asks for something"),
        (_NEMOTRON, {"hybrid_override_pattern": "M?*"}, "layers_block_type is no list of mamba"),
        (_NEMOTRON, {"hybrid_override_pattern": "ME-"}, "layers with experts and layers without"),
        (_NEMOTRON, {"mlp_hidden_act": "silu"}, "mlp_hidden_act is 'silu'; expected 'relu2'"),
    ],
)
def test_a_folder_with_another_arithmetic_is_refused_by_name(
    config: dict[str, Any], keys: dict[str, Any], fault: str
) -> None:
    assert fault in refusal(config | keys)


# ---- GGUF files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "mixers"),
    [
        ("lfm2", ["short_conv", "short_conv", "attention", "short_conv"]),
        ("granitehybrid", ["mamba2", "attention", "mamba2", "mamba2"]),
        ("nemotron_h", ["mamba2", "none", "attention", "none"]),
    ],
)
def test_the_heads_of_keys_say_which_layers_have_attention(
    architecture: str, mixers: list[str]
) -> None:
    assert [layer.mixer for layer in loaded(architecture).config.layers[:4]] == mixers


def test_layers_without_attention_keep_no_keys_and_rotate_nothing() -> None:
    model = loaded("lfm2")
    for kind, layer, state in zip(
        model.kind_of_layer, model.config.layers, model.states, strict=True
    ):
        attends = layer.mixer == "attention"
        assert (state.keys is not None) == attends
        assert (state.recurrent_floats == 0) == attends
        assert ("rope" in model.kinds[kind].rotations) == attends


@pytest.mark.parametrize(
    ("architecture", "key", "value", "fault"),
    [
        ("lfm2", "attention.head_count_kv", np.array([0, 1, 2] * 2 + [0, 2]), "has 1 and 2"),
        ("lfm2", "attention.head_count_kv", np.array([0, 2]), "array of 2 int64; expected 8"),
        ("lfm2", "attention.head_count_kv", np.array([0, 3] * 4), "is 3; expected a divisor"),
        ("lfm2", "shortconv.l_cache", 9, "is 9; expected 1 to 8"),
        ("granitehybrid", "ssm.time_step_rank", 7, "is 7; expected a divisor of 128"),
        ("granitehybrid", "ssm.group_count", 3, "is 3; expected a divisor of 8 heads"),
        ("granitehybrid", "ssm.time_step_max", 1e39, "expected it above 0.0"),
        ("nemotron_h", "feed_forward_length", np.array([0, 96, 0, 64] * 4), "has 64 and 96"),
    ],
)
def test_a_file_whose_layers_do_not_fit_is_refused_by_name(
    architecture: str, key: str, value: object, fault: str
) -> None:
    with pytest.raises(FormatError) as error:
        loaded(architecture, **{key: value})
    assert f"{architecture}.{key}" in str(error.value)
    assert fault in str(error.value)
