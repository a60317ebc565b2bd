"""Models whose structure was changed, not only bytes: each answers, or is refused by its name.

A changed metadata value has another number, type or sign; a tensor another shape, type or name; so
metadata and tensors contradict each other.
"""

import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf_writer import write_gguf
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from tiny_model import FAMILIES, write_tiny_model
from traced_memory import traced_memory

from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine

Entries = tuple[dict[str, Any], dict[str, tuple[str, str | int, tuple[int, ...], np.ndarray]]]

numbers = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 16, 64, 2**31 - 1, 2**32 - 1]),
    st.sampled_from([-1, -(2**31), 2**63 - 1, -(2**63)]).map(np.int64),
    st.sampled_from([2**63, 2**64 - 1]).map(np.uint64),
    st.sampled_from([0.0, -0.0, -1.0, 0.5, 16.0, 1e-38, 1e38, math.nan, math.inf]).map(np.float32),
    st.sampled_from([1e308, 5e-324, -1e308, 1e-300, 16.0]).map(np.float64),
)
values = st.one_of(
    numbers,
    numbers,
    st.booleans(),
    st.sampled_from(["", "16", "llama", "gemma3", "linear", "none"]),
    st.just(np.array([1, 2, 3], np.int32)),
    st.just(np.array([], np.float32)),
    st.none(),  # the key is missing
)
dims = st.sampled_from([1, 2, 3, 8, 16, 24, 32, 64, 268, 269])
shapes = st.lists(dims, min_size=1, max_size=3).map(tuple)
sampling = settings(
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture(scope="module", params=["llama", "gemma3", "qwen3moe"])
def entries(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Entries:
    model = write_tiny_model(tmp_path_factory.mktemp("model"), sizes=FAMILIES[request.param])
    with GGUFFile.open(model.path) as file:
        tensors = {
            name: (name, tensor.type, tensor.shape, file.data(name).copy())
            for name, tensor in file.tensors.items()
        }
        return dict(file.metadata), tensors


@settings(sampling, max_examples=60)
@given(st.data())
def test_a_model_of_another_structure_answers_or_is_refused(
    tmp_path: Path, entries: Entries, data: st.DataObject
) -> None:
    check_changed(tmp_path, entries, data)


@pytest.mark.fuzz
@settings(sampling, max_examples=150)
@given(st.data())
def test_many_models_of_another_structure_answer_or_are_refused(
    tmp_path: Path, entries: Entries, data: st.DataObject
) -> None:
    check_changed(tmp_path, entries, data)


def check_changed(tmp_path: Path, entries: Entries, data: st.DataObject) -> None:
    metadata, tensors = changed(entries, data)
    path = write_gguf(tmp_path / "changed.gguf", metadata, tensors)
    started = time.process_time()
    with traced_memory() as traced:
        refusal = answer(path)
    event("refused" if refusal else "answered")
    assert time.process_time() - started < 5
    assert traced.peak < 64 * 2**20  # of a file of 200 kB, with a KV cache of 8 tokens
    said = (f"{path}: ", "context is 8", "sample: the largest logit is", "the prompt has")
    assert refusal is None or (refusal.startswith(said) and len(refusal) < 1200 + len(str(path)))


def changed(entries: Entries, data: st.DataObject) -> tuple[dict[str, Any], list[Any]]:
    metadata, tensors = dict(entries[0]), dict(entries[1])
    for _ in range(data.draw(st.integers(1, 3))):
        what = data.draw(st.sampled_from(["value", "value", "shape", "type", "name", "remove"]))
        if what == "value":
            key = data.draw(st.sampled_from([key for key in metadata if "tokenizer" not in key]))
            metadata[key] = data.draw(values)
            continue
        key = data.draw(st.sampled_from(list(tensors)))
        name, kind, shape, raw = tensors[key]
        if what == "shape":
            shape = data.draw(shapes)
            raw = np.resize(raw.reshape(-1), math.prod(shape) * 4)
        elif what == "type":
            kind = data.draw(st.sampled_from(["f16", "q8_0", "q4_0", "bf16", "q6_k", 24, 40, 999]))
        elif what == "name":
            name = data.draw(st.sampled_from(["blk.0.attn_q.weight", "blk.99.attn_q.weight", ""]))
        if what == "remove":
            del tensors[key]
        else:  # a second tensor of another's name is added
            tensors[f"{name} {len(tensors)}" if what == "name" else key] = (name, kind, shape, raw)
    kept = {key: value for key, value in metadata.items() if value is not None}
    return kept, list(tensors.values())


def answer(path: Path) -> str | None:
    """The message if the file is refused, at any step on the way to an answer."""
    try:
        with LayerWiseInferenceEngine(path, backend="numpy", context=8) as engine:
            engine.generate("hello", max_new_tokens=2, temperature=0.5, seed=1)
    except ValueError as error:  # FormatError, a context beyond the model's, numbers that overflow
        return str(error)
    return None
