"""Hundreds of folders whose JSON is damaged: each opens as a model, or is refused by name."""

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest
from hf_folder import write_folder, write_json
from hf_quantized import FORMATS, write_quantised
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tiny_model import FAMILIES, Sizes, write_tiny_model

from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.text.chat_template import ChatTemplate
from airllm.text.tokenizer import Tokenizer
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

FILES = ("config.json", "tokenizer.json", "tokenizer_config.json")
INDEX = "model.safetensors.index.json"

# What newer files say, too.
EXTRAS: dict[str, dict[str, object]] = {
    "llama": {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 32,
        }
    },
    "gemma3": {
        "layer_types": [*["sliding_attention"] * 6, "full_attention"],
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "rope_theta": 1e6, "factor": 8.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
        },
    },
    "qwen3moe": {"layer_types": ["full_attention"] * 3, "use_sliding_window": False},
}

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.sampled_from([0, 1, -1, 2**31, 2**63, 10**400, 0.5, -0.0, 1e308])
    | st.sampled_from(["", "a", "ByteLevel", "Sequence", "linear", "llama3", "x" * 5000, "../x"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


QUANTISED = ["AWQ", "int4 in groups of 32", "FP8 in blocks", "NVFP4 of ModelOpt"]


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3moe", *QUANTISED])
def folder(request, tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    if request.param in QUANTISED:
        sizes = Sizes("qwen3", hidden=128, ffn=128, n_layers=1, head_dim=32, rope_dims=32)
        model = write_tiny_model(place, sizes=sizes)
        write_quantised(place / "hf", model, FORMATS[request.param], n_shards=2)
        return place / "hf"
    model = write_tiny_model(place, sizes=FAMILIES[request.param])
    return write_folder(place / "hf", model, n_shards=2, config=EXTRAS[request.param])


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something stands in a JSON value; of long lists and objects, the first few."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key in list(value)[:30]:
            found += places(value[key], (*path, key))
    elif isinstance(value, list):
        for at in range(min(len(value), 3)):
            found += places(value[at], (*path, at))
    return found


sampling = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@settings(sampling, max_examples=20)
@given(st.data())
def test_a_damaged_description_opens_whole_or_is_refused(folder: Path, data: st.DataObject) -> None:
    check_damaged(folder, data)


@pytest.mark.fuzz
@settings(sampling, max_examples=300)
@given(st.data())
def test_many_damaged_descriptions_open_whole_or_are_refused(
    folder: Path, data: st.DataObject
) -> None:
    check_damaged(folder, data)


def check_damaged(folder: Path, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from([*FILES, INDEX]))
    whole = json.loads((folder / name).read_text())
    damaged = copy.deepcopy(whole)
    for _ in range(data.draw(st.integers(1, 2))):
        path = data.draw(st.sampled_from(places(whole)))
        place = damaged
        for key in path[:-1]:
            place = place[key] if _has(place, key) else {}
        if _has(place, path[-1]):
            place[path[-1]] = data.draw(json_values)
    try:
        write_json(folder / name, damaged)
        started = time.process_time()
        refused = open_whole(folder)
        assert time.process_time() - started < 2
    finally:
        (folder / name).write_text(json.dumps(whole))
    event("refused" if refused else "opened")
    assert refused is None or refused.startswith(str(folder))
    assert len(refused or "") < 800 + len(str(folder))


def _has(place: Any, key: Any) -> bool:
    return (isinstance(place, dict) and key in place) or (
        isinstance(place, list) and isinstance(key, int) and key < len(place)
    )


def open_whole(folder: Path) -> str | None:
    """The message if the folder is refused, at any step on the way to an answer."""
    try:
        with open_model(folder) as file:
            check_tensors(file, load_model(file))
            Tokenizer.from_gguf(file.metadata).encode("hello 12", parse_special=True)
            ChatTemplate.from_gguf(file.metadata)
    except FormatError as error:
        return str(error)
    return None
