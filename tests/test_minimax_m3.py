"""MiniMax M3: which layers choose blocks, and what of its files and folders is refused."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from family_models import described, metadata_of, shapes, write_family_model
from messages import check_refused

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

ARCH = "minimax-m3"


def refusal(**changes: object) -> str:
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    with pytest.raises(FormatError) as refused:
        load_model(described(entries, shapes(ARCH, metadata_of(ARCH))))
    return str(refused.value)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("top_k", 0, "is 0; expected 1 to"),
        ("top_k", 2**16, "is 65536; expected 1 to 6553"),
        ("block_size", 0, "is 0; expected 1 to 4096"),
        ("block_size", 2**13, "is 8192; expected 1 to 4096"),
        ("head_count", 4, "is 4; expected 2, the heads of keys"),
        ("head_count", 0, "is 0; expected 1 to"),
        ("key_length", 7, "is 7; expected 8 to 576"),
        ("local_blocks", 4, "is 4; expected 0 to 3"),
        ("local_blocks", -1, "is -1; expected 0 to 3"),
        ("types", np.ones(7, bool), "has 7 entries; expected 8"),
        ("kpool", 4, "asks for something that minimax-m3 models here do not do"),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(key: str, value: object, said: str) -> None:
    name = f"attention.indexer.{key}"
    assert f"{ARCH}.{name} {said}" in refusal(**{name: value})


@pytest.mark.parametrize(
    ("types", "choosing"), [(None, range(2, 8)), ([0, 1, 0, 0, 0, 1, 0, 0], [1, 5]), ([0] * 8, [])]
)
def test_only_layers_that_choose_blocks_keep_an_index(
    types: list[int] | None, choosing: Sequence[int]
) -> None:
    entries = metadata_of(ARCH)
    if types is not None:
        entries[f"{ARCH}.attention.indexer.types"] = np.array(types, bool)
    model = load_model(described(entries, shapes(ARCH, entries)))
    kept = [index for index, state in enumerate(model.states) if state.index is not None]
    assert kept == list(choosing)


def test_a_context_may_be_longer_than_the_chosen_blocks(tmp_path: Path) -> None:
    path = write_family_model(tmp_path, ARCH, **{f"{ARCH}.context_length": 2**20})
    with LayerWiseInferenceEngine(path, backend="numpy", context=5000) as engine:
        assert engine.plan().context == 5000


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


def test_a_folder_says_which_layers_choose_blocks() -> None:
    types = f"{ARCH}.attention.indexer.types"
    assert types not in translated()  # those with experts
    found = translated(sparse_attention_config=SPARSE | {"sparse_attention_freq": [0, 0, 1, 1]})
    np.testing.assert_array_equal(found[types], [False, False, True, True])
    found = translated(layer_types=["minimax_m3_sparse"] * 3 + ["full_attention"])
    np.testing.assert_array_equal(found[types], [True, True, True, False])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_types": ["full_attention"] * 3}, "layer_types does not say of each of 4 layers"),
        ({"layer_types": ["sliding_attention"] * 4}, "layer_types does not say of each of 4"),
        (
            {"sparse_attention_config": SPARSE | {"sparse_attention_freq": [0, 1, 2, 1]}},
            "sparse_attention_freq does not say of each of 4 layers",
        ),
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
