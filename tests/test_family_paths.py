"""Every architecture gives the same numbers by every way of computing them."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from extension import require_cpp
from family_models import ARCHITECTURES, CONTEXT, EVERY_ARCHITECTURE, VOCAB, write_family_model

from airllm.backends import numpy_temporaries
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import FAMILIES
from airllm.state import checkpoints
from airllm.weights.budget import BudgetError

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 90).tolist()
# Norm of the difference over the norm of the logits. Between backends: sums in another order.
CLOSE = 3e-6
EXACT = {"kv_type": "f32", "activations": "f32", "batch_size": 32, "context": CONTEXT}

Open = Callable[..., LayerWiseInferenceEngine]


@pytest.fixture(scope="module", params=EVERY_ARCHITECTURE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family_model(tmp_path_factory.mktemp("family"), request.param)


@pytest.fixture(params=[pytest.param("numpy", marks=pytest.mark.variant), "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp":
        require_cpp()
    return str(request.param)


def logits(engine: LayerWiseInferenceEngine, parts: Sequence[list[int]]) -> np.ndarray:
    return np.concatenate([engine.forward(part, last_only=False) for part in parts])


def in_parts(sizes: Sequence[int]) -> list[list[int]]:
    ends = np.cumsum(sizes).tolist()
    return [TOKENS[end - size : end] for end, size in zip(ends, sizes, strict=True)]


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@functools.lru_cache(maxsize=2)
def at_once(model: Path, backend: str) -> np.ndarray:
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        found = engine.forward(TOKENS, last_only=False)
    found.setflags(write=False)
    return found


@pytest.fixture
def whole(model: Path, backend: str) -> np.ndarray:
    """The logits of all tokens, in one call."""
    return at_once(model, backend)


def test_every_architecture_has_its_model() -> None:
    assert set(ARCHITECTURES) == set(FAMILIES)


def test_the_backends_agree(model: Path) -> None:
    require_cpp()
    found = []
    for backend in ("numpy", "cpp"):
        with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
            found.append(engine.forward(TOKENS, last_only=False))
    assert np.isfinite(found[0]).all()
    assert difference(*found) <= CLOSE


def test_numpy_works_on_a_few_rows_at_a_time(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = EXACT | {"backend": "numpy", "batch_size": 90}
    with LayerWiseInferenceEngine(model, **settings) as engine:
        at_once = engine.forward(TOKENS, last_only=False)
        engine.reset()
        monkeypatch.setattr(numpy_temporaries, "_PIECE_BYTES", 7 * 8 * 64)  # 7 rows of 64 values
        np.testing.assert_array_equal(engine.forward(TOKENS, last_only=False), at_once)


# Token by token where short convolutions begin, and over a page's end (64).
EACH = [*[1] * 8, 42, *[1] * 40]


@pytest.mark.parametrize("sizes", [EACH, [40, 1, 7, 42]], ids=["each", "pieces"])
def test_a_prompt_may_come_in_any_pieces(
    model: Path, backend: str, whole: np.ndarray, sizes: list[int]
) -> None:
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        assert difference(logits(engine, in_parts(sizes)), whole) <= CLOSE


def test_fusion_changes_no_bit(model: Path, backend: str, whole: np.ndarray) -> None:
    with LayerWiseInferenceEngine(model, backend=backend, fusion=False, **EXACT) as engine:
        np.testing.assert_array_equal(engine.forward(TOKENS, last_only=False), whole)


def test_a_streamed_model_gives_the_same_logits(
    model: Path, backend: str, whole: np.ndarray
) -> None:
    settings = {**EXACT, "backend": backend}
    with pytest.raises(BudgetError) as refusal:
        LayerWiseInferenceEngine(model, ram_budget=1, **settings)
    with LayerWiseInferenceEngine(model, ram_budget=refusal.value.minimum, **settings) as engine:
        assert engine.plan().streams
        assert difference(engine.forward(TOKENS, last_only=False), whole) <= CLOSE


def test_a_batch_of_three_gives_each_the_logits_that_it_has_alone(
    model: Path, backend: str
) -> None:
    steps = np.random.default_rng(1).integers(0, VOCAB, (6, 3))
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        with engine.sequences(3) as sequences:
            together = np.stack([sequences.forward(step).copy() for step in steps], axis=1)
        for sequence, tokens in enumerate(steps.T):
            engine.reset()
            alone = logits(engine, [[int(token)] for token in tokens])
            np.testing.assert_array_equal(together[sequence], alone)


def test_going_back_gives_the_logits_of_going_there_at_once(
    model: Path, backend: str, whole: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_TOKENS", 16)
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        engine.forward(TOKENS[:20])
        engine.forward([*TOKENS[20:40], *TOKENS[:30]])
        state = engine._model.decoder.state
        kept = state.keep_shared(TOKENS)
        assert kept == (20 if state.recurrent.size else 40)  # recurrent memory has no other past
        after = engine.forward(TOKENS[kept:], last_only=False)
        assert difference(after, whole[kept:]) <= CLOSE


def test_a_restored_snapshot_gives_the_logits_of_going_on_at_once(
    model: Path, backend: str, whole: np.ndarray
) -> None:
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        engine.forward(TOKENS[:40])
        state = engine._model.decoder.state
        snapshot = state.snapshot()
        engine.forward(TOKENS[:30])
        state.restore(snapshot)
        assert difference(engine.forward(TOKENS[40:], last_only=False), whole[40:]) <= CLOSE


def test_a_saved_session_goes_on_as_before(
    model: Path, backend: str, whole: np.ndarray, tmp_path: Path
) -> None:
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        engine.forward(TOKENS[:40])
        engine.save_session(tmp_path / "session")
        engine.forward(TOKENS[:30])
        engine.load_session(tmp_path / "session")
        assert difference(engine.forward(TOKENS[40:], last_only=False), whole[40:]) <= CLOSE


def test_wrong_guesses_leave_no_trace(model: Path, backend: str, whole: np.ndarray) -> None:
    with LayerWiseInferenceEngine(model, backend=backend, **EXACT) as engine:
        engine.forward(TOKENS[:40])
        decoder = engine._model.decoder
        guesses = np.array([*TOKENS[40:43], *TOKENS[:3]], np.int32)
        rows = decoder.evaluate_ahead(guesses, np.empty((6, VOCAB), np.float32))
        assert difference(rows[:3], whole[40:43]) <= CLOSE
        again = decoder.state.accept(TOKENS[40:43], 6)
        if again:
            decoder.evaluate(np.array(again, np.int32))
        assert difference(engine.forward(TOKENS[43:], last_only=False), whole[43:]) <= CLOSE
