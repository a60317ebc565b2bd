"""Every family against Hugging Face's implementation of it, on tiny random models."""

import numpy as np
import pytest
from extension import require_cpp
from hf_case import VOCAB
from hf_cases import CASES
from hf_models import build, logits, require_hf, write_folder, write_gguf

from airllm.formats.convert import convert
from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model
from airllm.state import checkpoints

# Norm of the logits' difference over the norm of the logits. Both compute in float32, transformers
# its angles, too; measured: up to 9.4e-7.
EXACT = 3e-6
# 8-bit weights are 0.5% off each, and activations likewise in a batch of more than 64; measured: up
# to 3.8% after three layers.
Q8_0 = 5e-2

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 90).tolist()


@pytest.fixture(scope="module", params=CASES)
def model(request):
    """A case, its model, and its logits for TOKENS."""
    require_hf()
    case = CASES[request.param]
    hf = build(case)
    return case, hf, logits(hf, TOKENS)


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def difference(actual, expected):
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("step", [90, 1], ids=["prefill", "token by token"])
def test_logits_are_those_of_transformers(tmp_path, model, backend, step):
    case, hf, expected = model
    path = write_gguf(tmp_path / "model.gguf", case, hf)
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        parts = [TOKENS[at : at + step] for at in range(0, len(TOKENS), step)]
        actual = np.concatenate([engine.forward(part, last_only=False) for part in parts])
    assert difference(actual, expected) <= EXACT


def test_logits_after_going_back_are_those_of_transformers(tmp_path, model, backend, monkeypatch):
    monkeypatch.setattr(checkpoints, "CHECKPOINT_TOKENS", 40)
    case, hf, expected = model
    path = write_gguf(tmp_path / "model.gguf", case, hf)
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        engine.forward(TOKENS[:40])
        state = engine._model.decoder.state
        snapshot = state.snapshot()
        engine.forward(TOKENS[:30])
        assert state.trim(40) == 40
        assert difference(engine.forward(TOKENS[40:], last_only=False), expected[40:]) <= EXACT
        state.restore(snapshot)
        assert difference(engine.forward(TOKENS[40:], last_only=False), expected[40:]) <= EXACT


def test_quantised_weights_and_then_activations_give_nearly_the_same_logits(
    tmp_path, model, backend
):
    case, hf, expected = model
    path = write_gguf(tmp_path / "model.gguf", case, hf, "q8_0")

    def check_nearly(actual, expected):
        if case.n_experts:  # a token whose experts are nearly equal goes to others: not every token
            each = [difference(*pair) for pair in zip(actual, expected, strict=True)]
            # Later tokens see a selection, which differs where positions have nearly equal scores.
            assert np.median(each[: case.config.get("index_topk")]) <= Q8_0
        else:
            assert difference(actual, expected) <= Q8_0

    with LayerWiseInferenceEngine(path, backend=backend, activations="f32") as engine:
        weights_rounded = engine.forward(TOKENS, last_only=False)
    check_nearly(weights_rounded, expected)
    with LayerWiseInferenceEngine(path, backend=backend) as engine:
        check_nearly(engine.forward(TOKENS, last_only=False), weights_rounded)


@pytest.mark.parametrize("n_shards", [1, 4])
def test_a_folder_that_transformers_saved_gives_its_logits(tmp_path, model, backend, n_shards):
    case, hf, expected = model
    folder = write_folder(tmp_path / "model", case, hf, n_shards)
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(folder, backend=backend, **exact) as engine:
        assert difference(engine.forward(TOKENS, last_only=False), expected) <= EXACT


def test_a_converted_folder_is_the_gguf_file_of_llama_cpp(tmp_path, model):
    case, hf, _ = model
    expected = write_gguf(tmp_path / "expected.gguf", case, hf)
    with open_model(write_folder(tmp_path / "model", case, hf)) as folder:
        convert(folder, tmp_path / "converted.gguf", "f32")
    with GGUFFile.open(tmp_path / "converted.gguf") as actual, GGUFFile.open(expected) as file:
        assert not any(key.startswith("airllm.") for key, _ in actual.metadata.items())
        assert set(actual.tensors) == set(file.tensors)
        for name in file.tensors:
            assert actual.tensors[name].shape == file.tensors[name].shape, name
            ours, its = (each.data(name).view("<f4").ravel() for each in (actual, file))
            np.testing.assert_allclose(ours, its, rtol=1e-6, err_msg=name)
