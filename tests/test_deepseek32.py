"""DeepSeek V3.2 and GLM-5: which files and folders are refused, what is kept, and which layers
select the positions that tokens see."""

from pathlib import Path

import numpy as np
import pytest
from family_models import CONTEXT, described, metadata_of, shapes, write_family_model
from messages import check_refused
from test_deepseek2 import CONFIG, RANK, ROPE

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

INDEX = 24  # values of a key of the index

CONFIG_32 = CONFIG | {
    **{"model_type": "deepseek_v32", "q_lora_rank": 24, "index_n_heads": 4, "index_head_dim": 16},
    "index_topk": 8,
}


def translated(**changes: object) -> dict[str, object]:
    """The metadata of a folder with this config.json, without the architecture in front."""
    said = {key: value for key, value in (CONFIG_32 | changes).items() if value != "left out"}
    found = translate(Metadata("config.json", said)).metadata
    return {key.partition(".")[2]: value for key, value in found.items()}


def refusal(arch: str, **changes: object) -> str:
    entries = metadata_of(arch) | {f"{arch}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    with pytest.raises(FormatError) as refused:
        load_model(described(entries, shapes(arch, metadata_of(arch))))
    return str(refused.value)


@pytest.mark.parametrize(("kv_type", "value_bytes"), [("f16", 2), ("f32", 4)])
def test_a_token_keeps_a_latent_and_a_key_of_the_index_for_each_layer(
    tmp_path: Path, kv_type: str, value_bytes: int
) -> None:
    path = write_family_model(tmp_path, "deepseek32")
    with LayerWiseInferenceEngine(
        path, backend="numpy", context=CONTEXT, kv_type=kv_type
    ) as engine:
        kept = engine.plan().kv_cache_bytes
    assert kept == 8 * CONTEXT * (RANK + ROPE + INDEX) * value_bytes


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.q_lora_rank", 0, "is 0; expected at least 1: the index needs it"),
        ("attention.indexer.head_count", 0, "is 0; expected 1 to 1024"),
        ("attention.indexer.key_length", 7, "is 7; expected 8 to 576"),
        ("attention.indexer.key_length", 577, "is 577; expected 8 to 576"),
        ("attention.indexer.top_k", 0, "is 0; expected 1 to 8192"),
        ("attention.indexer.top_k", 2**30, "is 1073741824; expected 1 to 8192"),
        ("attention.indexer.top_k", None, "is missing"),
        ("attention.indexer.kpool", 4, "asks for something that deepseek32 models here do not do"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(key: str, value: object, said: str) -> None:
    assert f"deepseek32.{key} {said}" in refusal("deepseek32", **{key: value})


def test_a_folder_says_what_the_index_has() -> None:
    found = translated()
    assert found["attention.indexer.head_count"] == 4
    assert found["attention.indexer.key_length"] == 16
    assert found["attention.indexer.top_k"] == 8


def test_sizes_that_config_json_leaves_out_are_those_of_transformers() -> None:
    left_out = {key: "left out" for key in CONFIG_32 if key.startswith("index_")}
    found = translated(**left_out)
    names = "head_count", "key_length", "top_k"
    assert [found[f"attention.indexer.{name}"] for name in names] == [64, 128, 2048]


def test_layers_of_other_kinds_are_refused() -> None:
    assert translated(layer_types=["indexed_attention"] * 4)
    with pytest.raises(
        FormatError, match="does not say of each of 4 layers that it is 'indexed_attention'"
    ):
        translated(layer_types=["indexed_attention"] * 3 + ["full_attention"])


# ---- GLM-5 ---------------------------------------------------------------------------------------


def selecting(**changes: object) -> list[int]:
    """The layers that select positions, of a file with these changes."""
    entries = metadata_of("glm-dsa") | {f"glm-dsa.{key}": each for key, each in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    model = load_model(described(entries, shapes("glm-dsa", metadata_of("glm-dsa"))))
    kept = [index for index, state in enumerate(model.states) if state.index is not None]
    assert kept == [i for i, layer in enumerate(model.config.layers) if layer.selects]
    return kept


def test_layers_that_do_not_select_keep_no_index() -> None:
    assert selecting() == [0, 1, 4, 6]


def test_a_file_that_says_nothing_has_an_index_in_each_layer_or_is_glm_5_2() -> None:
    types = {"attention.indexer.types": None}
    assert selecting(**types) == list(range(8))
    assert selecting(**types, context_length=2**20) == [0, 1, 2, 6]


def test_a_selection_passes_from_layer_to_layer_only_where_layers_share_it() -> None:
    for selects, carried in (([1] * 8, {}), ([1] * 7 + [0], {"selection": 12})):
        entries = metadata_of("glm-dsa") | {
            "glm-dsa.attention.indexer.types": np.array(selects, bool)
        }
        model = load_model(described(entries, shapes("glm-dsa", metadata_of("glm-dsa"))))
        assert model.carried == {"residual": 64} | carried


@pytest.mark.parametrize(
    ("types", "said"),
    [
        (np.array([0] + [1] * 7, bool), "the first layer selects no positions"),
        (np.ones(7, bool), "has 7 entries; expected 8"),
        ("FFFFFFFF", "is no array of true and false"),
    ],
)
def test_types_that_make_no_sense_are_refused(types: object, said: str) -> None:
    assert f"glm-dsa.attention.indexer.types{': ' if 'first' in said else ' '}{said}" in refusal(
        "glm-dsa", **{"attention.indexer.types": types}
    )


GLM = {"model_type": "glm_moe_dsa", "num_hidden_layers": 6}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, [1, 1, 1, 1, 1, 1]),
        ({"index_topk_freq": 2}, [1, 1, 0, 1, 0, 1]),
        ({"index_topk_freq": 4, "index_skip_topk_offset": 3}, [1, 1, 1, 0, 0, 0]),
        ({"index_topk_pattern": "FFSFSS", "index_topk_freq": 4}, [1, 1, 0, 1, 0, 0]),
        ({"index_topk_pattern": ["full"] * 5 + ["shared"]}, [1, 1, 1, 1, 1, 0]),
        ({"indexer_types": ["full"] + ["shared"] * 5, "index_topk_freq": 1}, [1, 0, 0, 0, 0, 0]),
    ],
)
def test_a_folder_says_which_layers_select(said: dict[str, object], expected: list[int]) -> None:
    found = translated(**GLM, **said)["attention.indexer.types"]
    np.testing.assert_array_equal(found, np.array(expected, bool))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"indexer_types": ["full"] * 5}, "indexer_types does not say of each of 6 layers"),
        ({"indexer_types": ["F"] * 6}, "indexer_types does not say of each of 6 layers"),
        ({"index_topk_pattern": "FFXFFF"}, "index_topk_pattern does not say of each of 6 layers"),
        ({"indexer_rope_interleave": False}, "indexer_rope_interleave is 'False'; expected True"),
        ({"index_kpool": 4}, "index_kpool asks for something"),
    ],
)
def test_a_glm_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**GLM, **changes), said)


def test_the_index_of_glm_5_has_other_defaults_and_rotates_neighbours() -> None:
    found = translated(**GLM, index_n_heads="left out")
    assert found["attention.indexer.head_count"] == 32
    for arch, interleaved in (("glm-dsa", True), ("deepseek32", False)):
        model = load_model(described(metadata_of(arch), shapes(arch, metadata_of(arch))))
        [op] = [
            op for op in model.kinds[0].graph.ops if op.kind == "rope" and op.attrs["n_heads"] == 8
        ]
        assert op.attrs["interleaved"] == interleaved
