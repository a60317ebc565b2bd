"""DeepSeek V3.2 and GLM-5: which files and folders are refused, what is kept, and which layers
select the positions that tokens see."""

from pathlib import Path

import numpy as np
import pytest
from family_models import CONTEXT, described, metadata_of, shapes, write_family_model
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
    with pytest.raises(FormatError, match="layer_types is"):
        translated(layer_types=["indexed_attention"] * 3 + ["full_attention"])
