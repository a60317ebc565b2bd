"""A real model, where it was pulled: `airllm pull smollm2-135m`, or AIRLLM_TEST_MODEL=its path."""

import os

import numpy as np
import pytest
from extension import EVERY_ISA, forced_isa, require_cpp

from airllm.hub import find_model
from airllm.layer_engine import LayerWiseInferenceEngine

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


@pytest.fixture(scope="module")
def path():
    found = find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if found is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`, or set AIRLLM_TEST_MODEL")
    return found


def test_the_capital_of_france_on_numpy(path):
    with LayerWiseInferenceEngine(path, backend="numpy", context=128) as engine:
        answer = engine.generate(QUESTION, temperature=0, max_new_tokens=20)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"


@pytest.mark.parametrize("activations", ["auto", "f32"])  # auto is q16 for so few tokens
@pytest.mark.parametrize("isa", EVERY_ISA)
def test_the_capital_of_france_on_cpp(path, isa, activations):
    settings = {"backend": "cpp", "context": 128, "activations": activations}
    with forced_isa(isa), LayerWiseInferenceEngine(path, **settings) as engine:
        answer = engine.generate(QUESTION, temperature=0, max_new_tokens=20)
    assert answer.text == "The capital of France is Paris."
    assert answer.finish_reason == "stop"


def test_an_8_bit_cache_costs_less_than_8_bit_activations_do(path):
    """Measured: 1 to 2% of the logits' norm, where activations="q8" costs 4 to 10%."""
    require_cpp()
    logits = []
    for kv_type in ("f32", "q8_0"):
        with LayerWiseInferenceEngine(
            path, backend="cpp", context=128, activations="f32", kv_type=kv_type
        ) as engine:
            logits.append(engine.forward(engine.tokenize(QUESTION)))
            kv_bytes = engine.memory_usage()["kv_cache"]
    exact, found = logits
    assert np.linalg.norm(found - exact) < 0.04 * np.linalg.norm(exact)
    assert kv_bytes == 30 * 2 * 3 * 64 * (64 // 32 * 34)  # layers, K and V, heads, a page, rows
