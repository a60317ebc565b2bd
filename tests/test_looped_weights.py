"""Models whose tokens go several times through the same layers."""

import re
from pathlib import Path

import numpy as np
import pytest
from family_models import VOCAB, write_family_model

from airllm.layer_engine import LayerWiseInferenceEngine as Engine
from airllm.weights.budget import BudgetError

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()
EXACT = {"kv_type": "f32", "activations": "f32"}


def write_looped(folder: Path, n_loops: int) -> Path:
    return write_family_model(folder, "nanbeige", **{"nanbeige.num_loops": n_loops})


def write_looped_and_repeated(folder: Path, n_loops: int) -> list[Path]:
    """A model without norms between loops, and a Llama that has its layers as often."""
    known: dict[str, np.ndarray] = {}

    def of_first_loop(name: str, values: np.ndarray) -> np.ndarray:
        layer = re.match(r"blk\.(\d+)\.", name)
        if layer:
            name = f"blk.{int(layer[1]) % 8}.{name[layer.end() :]}"
        return known.setdefault(name, values)

    looped = {"nanbeige.num_loops": n_loops, "nanbeige.skip_loop_final_norm": True}
    return [
        write_family_model(folder, "nanbeige", of_first_loop, **looped),
        write_family_model(folder, "llama", of_first_loop, **{"llama.block_count": 8 * n_loops}),
    ]


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
@pytest.mark.parametrize("step", [40, 1], ids=["at once", "token by token"])
def test_a_loop_computes_what_further_layers_with_its_weights_do(
    tmp_path: Path, backend: str, step: int
) -> None:
    found = []
    for path in write_looped_and_repeated(tmp_path, 3):
        with Engine(path, backend=backend, **EXACT) as engine:
            parts = [TOKENS[at : at + step] for at in range(0, 40, step)]
            found.append(np.concatenate([engine.forward(p, last_only=False) for p in parts]))
    np.testing.assert_array_equal(*found)


def test_loops_take_no_memory_for_weights(tmp_path: Path) -> None:
    found = []
    for n_loops in (1, 3):
        with Engine(write_looped(tmp_path, n_loops), **EXACT) as engine:
            found.append((engine._model.decoder.weights.nbytes, engine.plan().pinned_bytes))
    assert found[0] == found[1]


def test_a_pass_of_a_streamed_model_reads_its_layers_in_each_loop(tmp_path: Path) -> None:
    with Engine(write_looped(tmp_path, 1), **EXACT) as engine:
        _, *layers, head = engine._model.planned.parts
    path = write_looped(tmp_path, 3)
    with pytest.raises(BudgetError) as refusal:
        Engine(path, ram_budget=1, **EXACT)
    with Engine(path, ram_budget=refusal.value.minimum, **EXACT) as engine:
        assert len(engine.plan().streamed_layers) == len(layers)
        read = 3 * sum(layer.file_bytes for layer in layers) + head.file_bytes
        assert engine.plan().streamed_bytes_per_pass == read
        engine.forward(TOKENS)
        assert engine.stream_stats()["bytes_taken"] == read


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_some_layers_may_stay_in_memory_while_others_are_read(tmp_path: Path, backend: str) -> None:
    path, settings = write_looped(tmp_path, 3), {**EXACT, "backend": backend}
    with Engine(path, **settings) as engine:
        expected = engine.forward(TOKENS, last_only=False)
    with pytest.raises(BudgetError) as refusal:
        Engine(path, ram_budget=1, **settings)
    with Engine(path, ram_budget=refusal.value.minimum + 300_000, **settings) as engine:
        plan = engine.plan()
        assert plan.pinned_layers
        assert plan.streamed_layers
        for _ in range(2):
            found = engine.forward(TOKENS, last_only=False)
            assert np.linalg.norm(found - expected) <= 3e-6 * np.linalg.norm(expected)
            engine.reset()
