"""Kimi Linear: which folders and files are translated to what, and which are refused by name."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import described, metadata_of, shapes, write_family_model
from messages import check_refused

from airllm.formats.convert import convert
from airllm.formats.mixes import chosen_types
from airllm.models import Model, load_model
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata
from airllm.weights.layer_weights import check_tensors

ARCH = "kimi-linear"
LINEAR, FULL = "linear_attention", "full_attention"
_SIZES: dict[str, Any] = {
    **{"model_type": "kimi_linear", "vocab_size": 160, "hidden_size": 64, "hidden_act": "silu"},
    **{"intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4},
    **{"num_key_value_heads": 4, "rms_norm_eps": 1e-5, "kv_lora_rank": 32, "q_lora_rank": None},
    **{"qk_nope_head_dim": 32, "qk_rope_head_dim": 8, "v_head_dim": 24, "num_experts": 6},
    **{"moe_intermediate_size": 32, "routed_scaling_factor": 2.446, "topk_group": 2},
}
# As the published folder has it.
OWN: dict[str, Any] = _SIZES | {
    **{"model_max_length": 128, "moe_renormalize": False, "num_expert_group": 3},
    **{"num_experts_per_token": 2, "num_shared_experts": 2, "first_k_dense_replace": 1},
    **{"head_dim": 16, "mla_use_nope": True, "moe_layer_freq": 1, "rope_theta": 10000.0},
    **{"moe_router_activation_func": "sigmoid", "use_grouped_topk": True},
    "linear_attn_config": {
        **{"kda_layers": [1, 3], "full_attn_layers": [2], "head_dim": 16, "num_heads": 4},
        "short_conv_kernel_size": 3,
    },
}
# As transformers writes it.
TRANSFORMERS: dict[str, Any] = _SIZES | {
    **{"max_position_embeddings": 128, "norm_topk_prob": False, "n_group": 3},
    **{"num_experts_per_tok": 2, "n_shared_experts": 2, "head_dim": 8},
    **{"mlp_layer_types": ["dense", "sparse", "sparse"], "layer_types": [LINEAR, FULL, LINEAR]},
    **{"linear_head_dim": 16, "linear_num_heads": 4, "linear_conv_kernel_dim": 3},
}


def translated(config: dict[str, Any]) -> dict[str, Any]:
    """GGUF's keys without the architecture in front; arrays as lists."""
    found = translate(Metadata("config.json", config)).metadata
    return {
        key.removeprefix(f"{ARCH}."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found.items()
    }


def loaded(tensors: dict[str, tuple[int, ...]] | None = None, **entries: object) -> Model:
    """The model of tests/family_models.py with other metadata or shapes of tensors."""
    usual = metadata_of(ARCH)
    found = shapes(ARCH, usual) | (tensors or {})
    file = described(usual | {f"{ARCH}.{key}": value for key, value in entries.items()}, found)
    model = load_model(file)
    check_tensors(file, model)
    return model


def test_the_published_folder_and_that_of_transformers_say_the_same() -> None:
    found = translated(OWN)
    assert found == translated(TRANSFORMERS)
    assert found["attention.head_count_kv"] == [0, 1, 0]
    assert (found["kda.head_dim"], found["ssm.conv_kernel"]) == (16, 3)
    assert (found["expert_group_count"], found["expert_group_used_count"]) == (3, 2)
    assert (found["expert_used_count"], found["expert_shared_count"]) == (2, 2)
    assert found["leading_dense_block_count"] == 1
    assert found["expert_weights_norm"] is False
    assert found["attention.key_length_mla"] == 40


def test_without_a_list_every_fourth_layer_has_full_attention() -> None:
    config = TRANSFORMERS | {"num_hidden_layers": 9, "mlp_layer_types": ["sparse"] * 9}
    del config["layer_types"]
    assert translated(config)["attention.head_count_kv"] == [0, 0, 0, 0, 1, 0, 0, 0, 1]


@pytest.mark.parametrize(
    ("linear", "said"),
    [
        ({"kda_layers": [1]}, "does not have each of the layers 1 to 3 in one of"),
        ({"kda_layers": [1, 2, 3]}, "does not have each of the layers 1 to 3 in one of"),
        ({"kda_layers": 1}, "does not have each of the layers 1 to 3 in one of"),
        ({"gate_lower_bound": -5.0}, "linear_attn_config has other keys than"),
        ({"num_heads": 2}, "linear attention has 2 heads; expected num_attention_heads, 4"),
        ({"head_dim": "x"}, "linear_head_dim"),
    ],
)
def test_a_folder_whose_linear_attention_is_another_is_refused(
    linear: dict[str, Any], said: str
) -> None:
    check_refused(
        lambda: translated(OWN | {"linear_attn_config": OWN["linear_attn_config"] | linear}), said
    )


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"mla_use_nope": False}, "mla_use_nope is 'False'; expected True"),
        ({"use_grouped_topk": False}, "use_grouped_topk is 'False'; expected True"),
        (
            {"moe_router_activation_func": "softmax"},
            "moe_router_activation_func is 'softmax'; expected 'sigmoid'",
        ),
        ({"linear_attn_config": [1]}, "linear_attn_config has other keys than"),
        ({"layer_types": [FULL, "conv", LINEAR]}, "layer_types does not say of each of 3 layers"),
        ({"layer_types": [FULL]}, "layer_types does not say of each of 3 layers"),
        ({"routed_expert_hidden_size": 32}, "routed_expert_hidden_size asks for something"),
    ],
)
def test_a_folder_with_another_arithmetic_is_refused_by_name(
    keys: dict[str, Any], said: str
) -> None:
    check_refused(lambda: translated(OWN | keys), said)


def test_a_layer_keeps_a_matrix_for_each_head_or_one_latent() -> None:
    model = loaded()
    for layer, state in zip(model.config.layers, model.states, strict=True):
        if layer.mixer == "attention":
            assert state.keys is not None
            assert (state.keys.n_kv_heads, state.keys.head_dim) == (1, 24 + 8)
            assert state.recurrent_floats == 0
        else:
            assert state.keys is None
            assert state.recurrent_floats == 4 * 12 * 12 + 3 * (4 - 1) * 4 * 12


def test_no_layer_rotates() -> None:
    assert not loaded(**{"rope.freq_base": 10000.0, "rope.scaling.type": "yarn"}).rotations


def test_vectors_and_filters_may_have_axes_of_one_value() -> None:
    loaded(
        {
            "blk.0.ssm_a": (1, 1, 4, 1),
            "blk.0.ssm_conv1d_q.weight": (1, 48, 1, 4),
            "blk.0.ssm_conv1d_k.weight": (48, 1, 4),
        }
    )


@pytest.mark.parametrize("part", "qkv")
def test_a_conversion_keeps_filters_as_they_are(part: str) -> None:
    usual = metadata_of(ARCH)
    types = chosen_types(described(usual, shapes(ARCH, usual)), "q8_0").types
    assert types[f"blk.0.ssm_conv1d_{part}.weight"] == "f32"


@pytest.mark.parametrize("architecture", [ARCH, "bailingmoe3", "kimi-k3"])
def test_a_conversion_has_the_filters_that_llama_cpp_reads(
    tmp_path: Path, architecture: str
) -> None:
    """It refuses other ones, and llama.cpp's converter writes these."""
    with open_model(write_family_model(tmp_path, architecture)) as file:
        convert(file, tmp_path / "converted.gguf", "f32")
    with open_model(tmp_path / "converted.gguf") as file:
        for part in "qkv":
            assert file.tensors[f"blk.0.ssm_conv1d_{part}.weight"].shape == (48, 1, 4)


@pytest.mark.parametrize("shape", [(1, 4, 1, 48), (2, 24, 1, 4)])
def test_filters_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(FormatError, match=r"blk.0.ssm_conv1d_q.weight has shape"):
        loaded({"blk.0.ssm_conv1d_q.weight": shape})


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.head_count_kv", np.array([0, 2] * 4, np.int32), "is 2; expected 0 or 1"),
        ("kda.head_dim", 257, "is 257; expected 1 to 256"),
        ("kda.gate_lower_bound", -5.0, "asks for something that kimi-linear models here do not do"),
        ("ssm.conv_kernel", 9, "is 9; expected 1 to 8"),
        ("attention.key_length", 33, "is 33; expected 32, of a latent"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        loaded(**{key: value})
    assert f"{ARCH}.{key} {said}" in str(refused.value)
