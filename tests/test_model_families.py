"""Each family's forward pass against the float64 reference, on both backends."""

import dataclasses

import numpy as np
import pytest
import reference_model
from extension import require_cpp
from family_models import write_family_model
from tiny_model import FAMILIES, TinyModel, write_tiny_model

from airllm.layer_engine import LayerWiseInferenceEngine

# Norm of the logits' error over the norm of the logits; measured: at most a third of it.
EXACT = 1e-5

TOKENS = np.random.default_rng(1).integers(0, 268, 70).tolist()


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


@pytest.fixture(params=FAMILIES)
def sizes(request):
    return FAMILIES[request.param]


def logits_of(model: TinyModel, backend: str, parts: list[list[int]], **settings) -> np.ndarray:
    """Logits of all tokens, fed part by part."""
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(model.path, backend=backend, **(exact | settings)) as engine:
        return np.concatenate([engine.forward(part, last_only=False) for part in parts])


def error(logits: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(logits - expected) / np.linalg.norm(expected))


def test_logits_are_the_references(tmp_path, backend, sizes):
    model = write_tiny_model(tmp_path, sizes=sizes)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert error(logits_of(model, backend, [TOKENS]), expected) <= EXACT


def test_logits_are_the_references_token_by_token(tmp_path, backend, sizes):
    model = write_tiny_model(tmp_path, sizes=sizes)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert error(logits_of(model, backend, [[id] for id in TOKENS]), expected) <= EXACT


@pytest.mark.parametrize("type", ["q8_0", "q4_1"])
def test_logits_of_quantised_weights_are_those_of_their_values(tmp_path, backend, sizes, type):
    sizes = dataclasses.replace(sizes, head_dim=32, rope_dims=32)  # whole blocks
    model = write_tiny_model(tmp_path, type, sizes=sizes)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert error(logits_of(model, backend, [TOKENS[:40], TOKENS[40:]]), expected) <= EXACT


def test_layers_that_rotate_alike_share_one_table(tmp_path):
    """gpt-oss: every other layer has a window, and all have the same angles."""
    path = write_family_model(tmp_path, "gpt-oss")
    with LayerWiseInferenceEngine(path, backend="numpy") as engine:
        decoder = engine._model.decoder
        assert len(decoder._rope_of) == 2
        assert {index for of_kind in decoder._rope_of for index in of_kind.values()} == {0}
        assert len(decoder._rope) == 1


def test_layers_that_rotate_otherwise_have_tables_of_their_own(tmp_path):
    path = write_family_model(tmp_path, "gemma3", **{"gemma3.rope.freq_base": 1e6})
    with LayerWiseInferenceEngine(path, backend="numpy") as engine:
        decoder = engine._model.decoder
        assert {index for of_kind in decoder._rope_of for index in of_kind.values()} == {0, 1}
        assert len(decoder._rope) == 2
