"""DeepSeek V4: which files and folders are refused, what is kept, what folders of either kind say,
and the tables that have the experts of each token."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from family_models import described, metadata_of, shapes, write_family_model
from hf_models import build, logits, require_hf, write_folder
from messages import check_refused

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata

PUBLISHED = {
    **{"model_type": "deepseek_v4", "vocab_size": 160, "hidden_size": 64, "hidden_act": "silu"},
    **{"num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 64},
    **{"max_position_embeddings": 1024, "rms_norm_eps": 1e-6, "tie_word_embeddings": False},
    **{"q_lora_rank": 32, "qk_rope_head_dim": 8, "o_groups": 2, "o_lora_rank": 16},
    **{"sliding_window": 20, "compress_ratios": [0, 4, 128, 4, 0], "compress_rope_theta": 160000},
    **{"index_n_heads": 8, "index_head_dim": 16, "index_topk": 6, "num_hash_layers": 2},
    **{"hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "swiglu_limit": 10.0},
    **{"n_routed_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
    **{"n_shared_experts": 1, "routed_scaling_factor": 1.5, "norm_topk_prob": True},
    **{"scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc", "rope_theta": 10000},
    **{"num_nextn_predict_layers": 1, "expert_dtype": "fp4", "attention_bias": False},
    "rope_scaling": {
        **{"type": "yarn", "factor": 16, "original_max_position_embeddings": 64},
        **{"beta_fast": 32, "beta_slow": 1},
    },
}
# The same as transformers writes it.
OF_TRANSFORMERS = {
    **{"compress_ratios": None, "num_hash_layers": None, "rope_scaling": None},
    **{"compress_rope_theta": None, "qk_rope_head_dim": None, "partial_rotary_factor": 0.125},
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 128},
    "layer_types": [
        *("sliding_attention", "compressed_sparse_attention"),
        *("heavily_compressed_attention", "compressed_sparse_attention"),
    ],
    "mlp_layer_types": ["hash_moe", "hash_moe", "moe", "moe"],
    "rope_parameters": {
        "main": {"rope_type": "default", "rope_theta": 10000, "partial_rotary_factor": 0.125},
        "compress": {
            **{"rope_type": "yarn", "rope_theta": 160000, "partial_rotary_factor": 0.125},
            **{"factor": 16, "original_max_position_embeddings": 64, "attention_factor": 1.0},
            **{"beta_fast": 32, "beta_slow": 1},
        },
    },
}


def translated(**changes: object) -> dict[str, object]:
    """The metadata of a folder with this config.json, without the architecture in front."""
    said = {key: value for key, value in (PUBLISHED | changes).items() if value is not None}
    found = translate(Metadata("config.json", said)).metadata
    return {key.partition(".")[2]: value for key, value in found.items()}


def refusal(**changes: object) -> str:
    whole = metadata_of("deepseek4")
    entries = whole | {f"deepseek4.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    with pytest.raises(FormatError) as refused:
        load_model(described(entries, shapes("deepseek4", whole)))
    return str(refused.value)


# ---- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.q_lora_rank", 0, "is 0; expected 1 to"),
        ("attention.key_length", 577, "is 577; expected 2 to 576"),
        ("attention.value_length", 8, "is 8; expected 24, the keys' length"),
        ("attention.head_count_kv", 2, "is 2; expected 1"),
        ("attention.sliding_window", 0, "is 0; expected 1 to"),
        ("attention.output_group_count", 3, "is 3; expected a divisor of 4"),
        ("attention.output_lora_rank", 0, "is 0; expected 1 to"),
        ("attention.indexer.key_length", 7, "is 7; expected at least 8, which rotate"),
        ("attention.indexer.top_k", 2**30, "is 1073741824; expected 1 to 8192"),
        ("attention.compress_ratios", 4, "is no array of integers"),
        ("attention.compress_ratios", np.zeros(6, np.int32), "has 6 entries; expected 7, one for"),
        ("attention.compress_ratios", np.full(7, -4, np.int32), "has -4; expected 0 for none"),
        ("attention.compress_ratios", np.full(7, 4097, np.int32), "has 4097; expected 0 for none"),
        ("attention.compress_rope_freq_base", 0.5, "is 0.5; expected at least 1"),
        ("hash_layer_count", 8, "is 8; expected 0 to 7"),
        ("hyper_connection.count", 17, "is 17; expected 1 to 16"),
        ("hyper_connection.sinkhorn_iterations", 0, "is 0; expected 1 to 1000"),
        ("hyper_connection.epsilon", 2.0, "is 2.0; expected 0 to 1"),
        ("hyper_connection.magnitude", 1.0, "is 1.0; expected 2.0"),
        ("hyper_connection.low_rank", 8, "asks for something that deepseek4 models here do not do"),
        ("swiglu_clamp_shexp", 7.0, "is 7.0; expected 1.5, that of the experts"),
        ("swiglu_clamp_exp", np.arange(7.0, dtype=np.float32), "differs between layers"),
        ("swiglu_clamp_exp", np.ones(3, np.float32), "is no array of 7 numbers"),
        ("swiglu_clamp_exp", np.full(7, np.nan, np.float32), "differs between layers"),
        ("swiglu_clamp_exp", -1.0, "is -1.0; expected 0.001"),
        ("expert_gating_func", 3, "is 3; expected 1 (softmax), 2 (sigmoid), 4 (sqrtsoftplus)"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(key: str, value: object, said: str) -> None:
    assert f"deepseek4.{key} {said}" in refusal(**{key: value})


def test_layers_that_guess_are_left_out_only_where_the_file_has_them() -> None:
    entries = metadata_of("deepseek4") | {"deepseek4.nextn_predict_layers": 1}
    found = shapes("deepseek4", metadata_of("deepseek4"))
    assert len(load_model(described(entries, found)).config.layers) == 7
    guessing = {"blk.6.nextn.eh_proj.weight": (64, 128)}
    model = load_model(described(entries, found | guessing))
    assert len(model.config.layers) == 6
    assert model.config.left_out == range(6, 7)


def test_a_file_without_groups_may_say_how_they_would_be_made() -> None:
    whole = metadata_of("deepseek4")
    entries = whole | {"deepseek4.attention.compress_ratios": np.zeros(7, np.int32)}
    model = load_model(described(entries, shapes("deepseek4", entries)))
    assert all(state.groups is None for state in model.states)
    assert [kind.rotations["rope"].magnitude for kind in model.kinds] == [1.0, 1.0]


def test_each_kind_of_layer_keeps_what_it_needs() -> None:
    entries = metadata_of("deepseek4")
    model = load_model(described(entries, shapes("deepseek4", entries)))
    kinds = [
        (state.groups and state.groups.every, state.index is not None) for state in model.states
    ]
    of_12, of_4 = (12, False), (4, True)
    assert kinds == [(None, False), of_4, of_12, of_4, of_12, of_12, of_4]
    assert all(state.keys is not None and state.keys.window == 20 for state in model.states)
    assert model.carried == {"residual": 3 * 64, "experts": 2 * 2}


def test_a_table_that_names_an_expert_that_is_not_there_is_refused(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, "deepseek4")
    with open_model(path) as file:
        table = file.data("blk.0.ffn_gate_tid2eid.weight").view("<f4")
        numbers = np.ascontiguousarray(table[:1]).astype("<i4")
    data = path.read_bytes()
    at = data.index(table.astype("<i4").tobytes())
    wrong = np.full(numbers.shape, 6, "<i4").tobytes()
    path.write_bytes(data[:at] + wrong + data[at + len(wrong) :])
    said = "tensor blk.0.ffn_gate_tid2eid.weight has numbers that are not from 0 to 5"
    check_refused(lambda: LayerWiseInferenceEngine(path, backend="numpy"), said)


def test_a_table_of_floats_is_refused(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, "deepseek4")
    name = b"blk.0.ffn_gate_tid2eid.weight"
    data = bytearray(path.read_bytes())
    at = data.index(name) + len(name) + 4 + 2 * 8  # behind the number of axes and two axes
    data[at : at + 4] = (0).to_bytes(4, "little")
    path.write_bytes(data)
    said = "tensor blk.0.ffn_gate_tid2eid.weight is f32; expected i32, numbers of experts"
    check_refused(lambda: LayerWiseInferenceEngine(path, backend="numpy"), said)


def test_a_weight_of_integers_is_refused_by_its_name(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, "deepseek4")
    name = b"blk.0.attn_sinks.weight"
    data = bytearray(path.read_bytes())
    at = data.index(name) + len(name) + 4 + 8  # the type is behind the number of axes and one axis
    data[at : at + 4] = (26).to_bytes(4, "little")
    path.write_bytes(data)
    said = "tensor 'blk.0.attn_sinks.weight' is of type I32; supported are"
    check_refused(lambda: LayerWiseInferenceEngine(path, backend="numpy"), said)


@pytest.mark.parametrize("type", ["f16", "q8_0", "q4_k_m"])
def test_a_converted_file_has_the_tables_as_integers(tmp_path: Path, type: str) -> None:
    path = write_family_model(tmp_path, "deepseek4")
    with open_model(path) as file:
        expected = file.data("blk.1.ffn_gate_tid2eid.weight").copy()
        convert(file, tmp_path / "converted.gguf", type)
    raw = (tmp_path / "converted.gguf").read_bytes()
    assert expected.view("<f4").astype("<i4").tobytes() in raw
    with open_model(tmp_path / "converted.gguf") as file:
        np.testing.assert_array_equal(file.data("blk.1.ffn_gate_tid2eid.weight"), expected)
        for slot in ("attn_compressor_ape", "hc_attn_fn"):
            assert file.tensors[f"blk.1.{slot}.weight"].type == "f32"


# ---- folders -------------------------------------------------------------------------------------


def test_a_folder_of_its_makers_and_one_of_transformers_say_the_same() -> None:
    published, saved = translated(), translated(**OF_TRANSFORMERS)
    key = "attention.compress_ratios"
    np.testing.assert_array_equal(published.pop(key), saved.pop(key))
    # Rotated values are not multiplied by YaRN's magnitude, whatever a folder says.
    saved.pop("rope.scaling.attn_factor")
    assert published == saved
    assert published["hash_layer_count"] == 2
    assert published["rope.dimension_count"] == 8


def test_sizes_that_config_json_leaves_out_are_those_of_transformers() -> None:
    left_out = ("q_lora_rank", "o_groups", "o_lora_rank", "sliding_window", "index_n_heads")
    left_out += ("index_head_dim", "index_topk", "hc_mult", "head_dim", "qk_rope_head_dim")
    left_out += ("compress_ratios", "num_hash_layers", "compress_rope_theta")
    found = translated(**dict.fromkeys(left_out))
    names = ("q_lora_rank", "output_group_count", "output_lora_rank", "sliding_window")
    assert [found[f"attention.{name}"] for name in names] == [1024, 8, 1024, 128]
    names = ("head_count", "key_length", "top_k")
    assert [found[f"attention.indexer.{name}"] for name in names] == [64, 128, 512]
    assert found["attention.key_length"] == 512
    assert found["rope.dimension_count"] == 64
    np.testing.assert_array_equal(found["attention.compress_ratios"], [128, 128, 4, 128])
    assert found["hash_layer_count"] == 3
    assert found["attention.compress_rope_freq_base"] == 160000.0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; expected 'sqrtsoftplus'"),
        ({"norm_topk_prob": False}, "norm_topk_prob is 'False'; expected True"),
        ({"compress_ratios": [0, 4, 128]}, "compress_ratios has 3 entries; expected 4 of 0, 4"),
        ({"compress_ratios": [0, 4, 64, 4]}, "expected 4 of 0, 4 and 128"),
        ({"compress_ratios": "0444"}, "compress_ratios is no list of integers"),
        ({"compress_rate_csa": 8}, "the rate of compressed_sparse_attention is not 4"),
        ({"compress_rate_hca": 2}, "the rate of heavily_compressed_attention is 2; expected 5"),
        ({"layer_types": ["full_attention"] * 4}, "layer_types does not say of each of 4 layers"),
        ({"mlp_layer_types": ["moe", "hash_moe"] * 2}, "mlp_layer_types is no list of 4 hash_moe"),
        ({"index_kpool": 4}, "index_kpool asks for something"),
        ({"rope_parameters": {"main": {}, "compress": 3}}, "rope_parameters is no object for each"),
        (
            {"rope_parameters": {"main": {"rope_type": "yarn"}, "compress": {}}},
            "rope_parameters scales layers without groups",
        ),
        ({"compress_rates": [4, 128]}, "compress_rates is no object"),
        (
            {"rope_parameters": {"main": {}, "compress": {"attention_factor": 1.2}}},
            "attention_factor is 1.2; expected 1",
        ),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)


@pytest.mark.parametrize("fp8", [True, False], ids=["fp8", "floats"])
def test_a_folder_as_published_gives_the_logits_of_transformers(tmp_path: Path, fp8: bool) -> None:
    require_hf()
    from hf_cases import CASES
    from hf_deepseek4 import with_published_groups, write_published

    case = with_published_groups(CASES["DeepSeek-V4"])
    model = build(replace(case, config=case.config | {"max_position_embeddings": 512}))
    saved = write_folder(tmp_path / "saved", case, model)
    folder = write_published(tmp_path / "published", saved, model, fp8=fp8)
    tokens = np.random.default_rng(3).integers(0, 160, 150).tolist()
    expected = logits(model, tokens)
    # FP8 is read as Q8_0, unless it is converted.
    with open_model(folder, exact=True) as file:
        convert(file, tmp_path / "converted.gguf", "f32")
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    paths = [tmp_path / "converted.gguf", *([] if fp8 else [folder])]
    for path in paths:
        with LayerWiseInferenceEngine(path, **exact) as engine:
            actual = engine.forward(tokens, last_only=False)
        assert np.linalg.norm(actual - expected) <= 3e-6 * np.linalg.norm(expected)


def test_a_folder_with_a_table_of_wrong_numbers_is_refused(tmp_path: Path) -> None:
    require_hf()
    from hf_cases import CASES

    case = CASES["DeepSeek-V4"]
    model = build(case)
    model.model.layers[1].mlp.gate.tid2eid[5, 1] = -1
    folder = write_folder(tmp_path / "saved", case, model)
    said = "tensor 'model.layers.1.ffn.gate.tid2eid' has numbers that are not from 0 to 5"
    check_refused(lambda: LayerWiseInferenceEngine(folder, backend="numpy"), said)
