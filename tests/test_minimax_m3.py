"""MiniMax M3: its limit, and what of its folders is refused."""

from pathlib import Path
from typing import Any

import pytest
from family_models import described, metadata_of, shapes, write_family_model
from messages import check_refused

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

ARCH = "minimax-m3"


def context_of(**changes: object) -> int:
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    return load_model(described(entries, shapes(ARCH, metadata_of(ARCH)))).config.context_length


@pytest.mark.parametrize(("chosen", "context"), [(1, 16), (7, 112), (8, 128), (100, 128)])
def test_a_context_ends_where_a_token_would_no_longer_see_all_blocks(
    chosen: int, context: int
) -> None:
    assert context_of(**{"attention.indexer.top_k": chosen}) == context


def test_a_longer_context_is_refused_by_name(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH, **{f"{ARCH}.attention.indexer.top_k": 4})
    with pytest.raises(ValueError, match="context is 65; tiny allows at most 64"):
        LayerWiseInferenceEngine(path, backend="numpy", context=65)


@pytest.mark.parametrize("name", ["top_k", "block_size"])
def test_blocks_of_nothing_are_refused(name: str) -> None:
    key = f"attention.indexer.{name}"
    with pytest.raises(FormatError, match=rf"{ARCH}.{key} is 0; expected 1 to"):
        context_of(**{key: 0})


SPARSE = {
    **{"sparse_num_index_heads": 4, "sparse_index_dim": 128, "sparse_topk_blocks": 16},
    **{"sparse_block_size": 128, "sparse_local_block": 1},
    "sparse_attention_freq": [0, 1, 1, 1],
}


def translated(**changes: object) -> dict[str, object]:
    text: dict[str, Any] = {"num_hidden_layers": 4, "moe_layer_freq": [0, 1, 1, 1]}
    text |= {"hidden_act": "swigluoai", "sparse_attention_config": SPARSE, "n_shared_experts": 1}
    config = {"model_type": "minimax_m3_vl", "text_config": text | changes, "vision_config": {}}
    return translate(Metadata("config.json", config)).metadata


def test_the_published_folder_says_how_many_blocks_are_chosen() -> None:
    found = translated(sparse_attention_config=SPARSE | {"sparse_topk_blocks": 9})
    assert found[f"{ARCH}.attention.indexer.top_k"] == 9
    assert found[f"{ARCH}.attention.indexer.block_size"] == 128
    assert found[f"{ARCH}.leading_dense_block_count"] == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"moe_layer_freq": [1, 0, 1, 1]}, "no list of 4 dense, then sparse layers"),
        ({"moe_layer_freq": 1}, "no list of 4 dense, then sparse layers"),
        ({"mlp_layer_types": ["dense"] * 3}, "no list of 4 dense, then sparse layers"),
        ({"shared_intermediate_size": 1000}, "is 1000; expected a multiple of 3072"),
        ({"n_shared_experts": 2}, "n_shared_experts is '2'; expected 1"),
        ({"swiglu_alpha": 1.0}, "swiglu_alpha is '1.0'; expected 1.702"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; expected 'silu' or 'swigluoai'"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)
