"""What families refuse by name, and what they make of keys and tensors that their files need not
have. Nothing is computed."""

import numpy as np
import pytest
from family_folders import config_of as folder_config
from family_models import described, metadata_of, shapes, whole_key
from messages import check_refused

from airllm.graph.ops.streams import MOST_EARLIER
from airllm.models import load_model
from airllm.models.config import ModelConfig
from airllm.models.config_reader import MAX_WIDTH
from airllm.models.opening import translate
from airllm.util.metadata import Metadata
from airllm.weights.layer_weights import check_tensors

# ---- folders -------------------------------------------------------------------------------------


def translated(model_type: str, **keys: object) -> dict[str, object]:
    config = folder_config(model_type) | keys
    return dict(translate(Metadata("config.json", config)).metadata.items())


@pytest.mark.parametrize(
    ("model_type", "keys", "said"),
    [
        ("afmoe", {"layer_types": ["sliding_attention"] * 4}, "every 4th layer has no window"),
        ("bailing_hybrid", {"kda_safe_gate": False}, "kda_safe_gate is 'False'; expected True"),
        ("bailing_hybrid", {"layer_group_size": 3}, "is 3; expected a divisor of 4"),
        ("bailing_hybrid", {"layer_types": ["conv"] * 4}, "does not say of each of 4 layers"),
        ("dots1", {"scoring_func": "softmax"}, "scoring_func is 'softmax'; expected 'sigmoid'"),
        ("exaone4", {"sliding_window_pattern": "LG"}, "sliding_window_pattern is 'LG'; expected 4"),
        ("glm5_next_text", {"qk_rope_head_dim": 8}, "qk_rope_head_dim is '8'; expected 0"),
        ("glm5_next_text", {"linear_num_heads": 8}, "has 8 heads; expected num_attention_heads, 4"),
        ("glm5_next_text", {"linear_attn_config": {"safe_gate": False}}, "has no safe_gate"),
        ("glm5_next_text", {"layer_types": ["conv"] * 4}, "does not say of each of 4 layers which"),
        ("glm5_next_text", {"indexer_types": ["full"] * 3}, "does not say of each of 4 layers"),
        ("hunyuan_v1_moe", {"num_experts": [6, 6, 6, 8]}, "num_experts differs between layers"),
        ("hy_v4", {"indexer_types": ["full"] * 3}, "does not say of each of 4 layers whether it"),
        (
            "hy_v4",
            {"layer_types": ["full_attention"] * 4},
            "layer_types does not say of each of 4 layers which of indexed_attention",
        ),
        ("hy_v4", {"swiglu_limit": 1e6}, "swiglu_limit is 1000000.0; expected 0.001 to"),
        ("phi", {"qk_layernorm": True}, "qk_layernorm is 'True'; expected False"),
        ("starcoder2", {"mlp_type": "gated"}, "mlp_type is 'gated'; expected 'default'"),
        ("ernie4_5_moe", {"moe_layer_end_index": 2}, "moe_layer_end_index is '2'; expected"),
    ],
)
def test_a_folder_that_asks_for_other_arithmetic_is_refused(
    model_type: str, keys: dict[str, object], said: str
) -> None:
    assert translated(model_type)
    check_refused(lambda: translated(model_type, **keys), said)


def test_linear_attention_of_glm_5_3_may_have_its_sizes_in_an_object() -> None:
    inner = {"num_heads": 4, "head_dim": 24, "gate_lower_bound": -3.0, "short_conv_kernel_size": 3}
    found = translated("glm5_next_text", linear_attn_config=inner)
    assert (found["glm5-next.kda.head_dim"], found["glm5-next.ssm.conv_kernel"]) == (24, 3)
    assert found["glm5-next.kda.gate_lower_bound"] == -3.0


def test_the_shared_experts_of_hy3_are_one_network() -> None:
    assert translated("hy_v3")["hy_v3.expert_shared_feed_forward_length"] == 2 * 32


@pytest.mark.parametrize("word", ["gelu", "gelu_pytorch_tanh"])
def test_older_folders_of_gemma_have_another_word_for_its_activation(word: str) -> None:
    assert translated("gemma", hidden_act=word)
    check_refused(lambda: translated("gemma", hidden_act="gelu_new"), "hidden_act is 'gelu_new'")


def test_scores_of_llama_4_grow_only_where_the_folder_says_so() -> None:
    assert translated("llama4_text")["llama4.attention.temperature_scale"] == 0.0


def test_published_folders_of_hunyuan_ocr_have_the_keys_of_both_parts_side_by_side() -> None:
    """Scaling by alpha has another name in them."""
    rope = {"type": "xdrope", "alpha": 1000.0, "xdrope_section": [2, 2, 2, 2], "factor": 1.0}
    beside = {
        "model_type": "hunyuan_vl",
        "vision_config": {"hidden_size": 16},
        "rope_scaling": rope,
    }
    config = folder_config("hunyuan_vl_text") | beside | {"norm_type": "rms", "use_qk_norm": True}
    found = translate(Metadata("config.json", config)).metadata
    assert found["hunyuan_vl.rope.freq_base"] == 1e4 * 1000 ** (16 / 14)
    np.testing.assert_array_equal(found["hunyuan_vl.rope.dimension_sections"], [2, 2, 2, 2])


# ---- files ---------------------------------------------------------------------------------------


def config_of(architecture: str, *, left_out: tuple[str, ...] = (), **keys: object) -> ModelConfig:
    """Of the file of tests/family_models.py with other keys, and without some tensors."""
    usual = metadata_of(architecture)
    tensors = shapes(architecture, usual)
    entries = usual | {whole_key(architecture, key): value for key, value in keys.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    tensors = {name: shape for name, shape in tensors.items() if name not in left_out}
    return load_model(described(entries, tensors)).config


@pytest.mark.parametrize(
    ("architecture", "keys", "said"),
    [
        ("deci", {"attention.head_count": np.zeros(8, np.int32)}, "expected a layer with"),
        (
            "deci",
            {"attention.head_count": np.array([4, 2] * 4), "attention.head_count_kv": 2},
            "has 2 and 4; expected one number",
        ),
        (
            "qwen4exp",
            {
                **{"embedding_length": MAX_WIDTH // 2, "hyper_connection.count": 3},
                **{"attention.key_length": 16, "attention.value_length": 16},
            },
            "expected at most 2",
        ),
        ("bailingmoe3", {"kda.gate_lower_bound": 0.0}, "expected it below 0"),
        ("bailingmoe3", {"kda.safe_gate": False}, "kda.safe_gate is False; expected True"),
        ("bailingmoe3", {"attention.head_count_kv": np.full(9, 2)}, "is 2; expected 0 or 1"),
        (
            "bailingmoe3",
            {"attention.head_count_kv": np.array([0, 1, 1, 0, 1, 0, 1, 1, 0])},
            "is 0; expected 1 of a next-token head",
        ),
        (
            "plamo2",
            {"attention.head_count": np.array([4, 2] * 4, np.int32)},
            "has 2 and 4; expected",
        ),
        ("plamo2", {"attention.head_count": np.zeros(8, np.int32)}, "expected heads in the layers"),
        ("maple", {"attention.sliding_window_pattern": 4}, "pattern is no array; expected an en"),
        ("plamo2", {"ssm.time_step_rank": 7}, "is 7; expected a divisor of 128, inner_size"),
        ("hunyuan_vl", {"rope.scaling.alpha": 0.5}, "alpha is 0.5; expected 1 to 1000000"),
        ("glm5-next", {"rope.dimension_count": 8}, "is 8; expected 0: nothing rotates"),
        ("glm5-next", {"attention.indexer.top_k": 13}, "is 13; expected a multiple of 4"),
        (
            "glm5-next",
            {"attention.indexer.types": np.arange(8) > 1},
            "the first layer selects no positions",
        ),
        ("glm5-next", {"swiglu_clamp_shexp": np.ones(9)}, "expected 0.5, that of the experts"),
        ("ernie4_5-moe", {"expert_shared_feed_forward_length": 33}, "of 2 experts"),
        (
            "kimi-k3",
            {
                **{"block_count": 8 * MOST_EARLIER, "attn_res.block_size": 7},
                "attention.head_count_kv": np.arange(8 * MOST_EARLIER) % 2,
            },
            "attn_res.block_size is 7; expected 8",
        ),
        (
            "glm-dsa",
            {"attention.indexer.types": np.zeros(8, bool)},
            "the first layer selects no positions",
        ),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    architecture: str, keys: dict[str, object], said: str
) -> None:
    check_refused(lambda: config_of(architecture, **keys), said)


def test_files_of_hunyuan_vl_have_the_alpha_that_theta_grows_by() -> None:
    entries = metadata_of("hunyuan_vl")
    rotation = load_model(described(entries, shapes("hunyuan_vl", entries))).rotations[0]
    theta = 1e4 * 50.0 ** (16 / 14)
    np.testing.assert_allclose(rotation.inv_freq, theta ** -(np.arange(8) / 8), rtol=1e-12)


def test_contexts_of_plamo_2_end_where_windows_would_begin_to_count() -> None:
    assert config_of("plamo2", context_length=4096).context_length == 2048


def test_a_layer_of_deci_without_attention_has_its_own_width() -> None:
    assert shapes("deci", metadata_of("deci"))["blk.1.ffn_up.weight"] == (64, 64)


def test_exaone_of_32b_has_a_window_where_its_file_is_silent() -> None:
    silent = {"attention.sliding_window": None}
    assert config_of("exaone4", **silent).windows == (0,) * 8
    assert config_of("exaone4", **silent, block_count=64).windows == (4096, 4096, 4096, 0) * 16


@pytest.mark.parametrize("architecture", ["exaone4", "glm4"])
def test_layers_of_a_next_token_head_are_left_out(architecture: str) -> None:
    assert config_of(architecture, nextn_predict_layers=1).n_layers == 7


def test_the_halves_of_heads_rotate_in_files_of_glm_4_that_see_pictures() -> None:
    """llama.cpp's converter puts the rows of Q and K in that order where there are sections."""
    sections = {"rope.dimension_sections": np.array([2, 1, 1, 0], np.int32)}
    assert config_of("glm4").rope_interleaved
    assert not config_of("glm4", **sections).rope_interleaved


def test_published_folders_of_sarvam_have_another_name_of_the_shared_experts() -> None:
    for kind, architecture in (("sarvam_mla", "deepseek2"), ("sarvam_moe", "bailingmoe2")):
        for name in ("num_shared_experts", "n_shared_experts"):
            config = Metadata("config.json", folder_config(kind) | {name: 3})
            assert translate(config).metadata[f"{architecture}.expert_shared_count"] == 3


def test_the_dense_layers_of_hy3_are_those_without_a_router() -> None:
    found = config_of("hy_v3", left_out=("blk.1.ffn_gate_inp.weight",)).layers
    assert [layer.has_experts for layer in found] == [False, False] + [True] * (len(found) - 2)


def test_every_so_manyth_layer_of_ernie_has_experts() -> None:
    step = {"interleave_moe_layer_step": 2, "leading_dense_block_count": 1}
    found = config_of("ernie4_5-moe", **step).layers
    assert [layer.has_experts for layer in found] == [False, True] * (len(found) // 2)


def test_only_layers_of_attention_choose_blocks_of_positions() -> None:
    found = config_of("qwen4exp", **{"attention.compress_ratios": 4}).layers
    assert all(layer.chooses == (layer.mixer == "attention") for layer in found)


@pytest.mark.parametrize(("context", "every"), [(2**20 - 1, 1), (2**20, 4)])
def test_layers_of_glm_5_2_share_positions_and_its_context_tells_it_from_glm_5(
    context: int, every: int
) -> None:
    keys = {"attention.indexer.types": None, "context_length": context}
    config = config_of("glm-dsa", **keys)
    assert config.indexer is not None
    assert config.indexer.shared == (every > 1)  # which has a buffer
    found = [layer.selects for layer in config.layers]
    assert found == [at < 3 or (at - 2) % every == 0 for at in range(len(found))]


def test_a_factor_of_1_takes_no_time() -> None:
    entries = {key: one for key, one in metadata_of("falcon-h1").items() if ".factor." not in key}
    model = load_model(described(entries, shapes("falcon-h1", entries)))
    assert all(op.kind != "scale" for op in model.kinds[0].graph.ops)


@pytest.mark.parametrize(
    ("architecture", "normalized"), [("kimi-linear", True), ("kimi-k3", False)]
)
def test_shares_of_experts_sum_to_1_where_a_file_of_kimi_linear_is_silent(
    architecture: str, normalized: bool
) -> None:
    router = config_of(architecture, expert_weights_norm=None).router
    assert router is not None
    assert router.normalized == normalized


def test_another_epsilon_beside_that_of_a_layer_norm_asks_for_nothing() -> None:
    assert config_of("nemotron", **{"attention.layer_norm_rms_epsilon": 1e-6}).norm_eps == 1e-5


def test_phi_2_may_have_one_matrix_for_queries_keys_and_values() -> None:
    entries = metadata_of("phi2")
    tensors = shapes("phi2", entries)
    for layer in range(8):
        width = 0
        for part in "qkv":
            width += tensors.pop(f"blk.{layer}.attn_{part}.weight")[0]
            del tensors[f"blk.{layer}.attn_{part}.bias"]
        tensors[f"blk.{layer}.attn_qkv.weight"] = (width, 64)
        tensors[f"blk.{layer}.attn_qkv.bias"] = (width,)
    file = described(entries, tensors)
    check_tensors(file, load_model(file))
