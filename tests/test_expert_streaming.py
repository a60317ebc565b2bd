"""Mixtures of experts larger than memory: experts are read as the router chooses them."""

import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from extension import require_cpp
from tiny_model import FAMILIES, Sizes, TinyModel, write_tiny_model

from airllm.backends.routed import split_at_route
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.plan import Plan

# 4 layers of 32 experts of 51 KB (Q4_0), of which a token uses 2.
SIZES = Sizes(
    "qwen3moe",
    eps=1e-6,
    hidden=128,
    ffn=256,
    n_layers=4,
    head_dim=32,
    rope_dims=32,
    n_experts=32,
    n_used=2,
)
EXPERT_BYTES = 3 * 128 * 256 * 18 // 32
TOKENS = np.random.default_rng(1).integers(0, 268, 70).tolist()

Open = Callable[..., LayerWiseInferenceEngine]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("model"), "q4_0", sizes=SIZES)


@pytest.fixture(params=["numpy", "cpp"])
def open_engine(request: pytest.FixtureRequest, model: TinyModel) -> Iterator[Open]:
    if request.param == "cpp":
        require_cpp()
    engines = []

    def opened(ram_budget: int | str, path: Path = model.path) -> LayerWiseInferenceEngine:
        engine = LayerWiseInferenceEngine(
            path, backend=request.param, batch_size=32, context=96, ram_budget=ram_budget
        )
        engines.append(engine)
        return engine

    yield opened
    for engine in engines:
        engine.close()


def budget_for(open_engine: Open, places: int) -> int:
    """What is needed to keep all but the experts, and so many of them."""
    plan = open_engine("1GiB").plan()
    some = open_engine(plan.total_bytes - 40 * EXPERT_BYTES).plan()
    assert some.expert_places > 0
    return some.total_bytes + (places - some.expert_places) * EXPERT_BYTES + EXPERT_BYTES // 2


def test_a_layers_graph_is_split_after_its_router_and_nothing_is_lost(
    tmp_path: Path,
) -> None:
    path = write_tiny_model(tmp_path, sizes=FAMILIES["qwen3moe"]).path
    with closing(open_model(path)) as gguf:
        [kind] = load_model(gguf).kinds
    graph = kind.graph
    first, second = split_at_route(graph)
    assert first.ops + second.ops == graph.ops
    assert first.ops[-1].kind == "route"
    assert {weight.name for weight in second.weights} == {
        "ffn_gate_exps",
        "ffn_up_exps",
        "ffn_down_exps",
    }
    crossing = {b.name for b in first.buffers if b.external} & {
        b.name for b in second.buffers if b.external
    }
    assert len(crossing) == 3  # the residual, what the experts take, and the route


@pytest.mark.parametrize("places", [32, 50, 100])
def test_answers_are_the_same_bit_for_bit(open_engine: Open, places: int) -> None:
    def logits(engine: LayerWiseInferenceEngine) -> list[np.ndarray]:
        found = [engine.forward(TOKENS)]
        found += [engine.forward([token]) for token in range(20)]
        engine.reset()
        return [*found, engine.forward(TOKENS[:9], last_only=False)]

    expected = logits(open_engine("1GiB"))
    engine = open_engine(budget_for(open_engine, places))
    assert engine.plan().expert_places == places
    for found, wanted in zip(logits(engine), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)


def stats(engine: LayerWiseInferenceEngine) -> dict[str, Any]:
    found = engine.stream_stats()
    assert found is not None
    return found


def test_a_token_reads_the_experts_that_it_uses_and_no_other(open_engine: Open) -> None:
    engine = open_engine(budget_for(open_engine, 32))
    engine.forward([1])
    found = stats(engine)
    assert found["expert_misses"] == 4 * 2
    assert found["bytes_taken"] == 4 * 2 * EXPERT_BYTES


def test_experts_that_were_used_last_are_not_read_again(open_engine: Open) -> None:
    engine = open_engine(budget_for(open_engine, 64))
    engine.forward([1])
    before = stats(engine)
    engine.reset()
    engine.forward([1])
    after = stats(engine)
    assert after["bytes_taken"] == before["bytes_taken"]
    assert after["expert_hits"] - before["expert_hits"] == 4 * 2


def test_several_sequences_share_what_is_read(open_engine: Open) -> None:
    expected = open_engine("1GiB").generate_batch(
        ["hello", "world", "held"], max_new_tokens=5, temperature=0
    )
    engine = open_engine(budget_for(open_engine, 32))
    found = engine.generate_batch(["hello", "world", "held"], max_new_tokens=5, temperature=0)
    assert [answer.tokens for answer in found] == [answer.tokens for answer in expected]


def test_after_an_error_of_the_disk_the_next_pass_is_right(open_engine: Open) -> None:
    expected = open_engine("1GiB").forward([1])
    engine = open_engine(budget_for(open_engine, 32))
    engine.forward([2])
    engine.reset()
    weights: Any = engine._model.decoder and engine._model.decoder.weights
    weights._experts._stream = FailingStream(weights._experts._stream)
    with pytest.raises(OSError, match="the disk is ill"):
        engine.forward([1])
    assert engine.position == 0
    np.testing.assert_array_equal(engine.forward([1]), expected)


def test_a_file_that_is_truncated_meanwhile_is_an_error_that_names_it(
    tmp_path: Path, model: TinyModel, open_engine: Open
) -> None:
    own = shutil.copy(model.path, tmp_path / "own.gguf")
    engine = open_engine(budget_for(open_engine, 32), own)
    engine.forward([1])
    os.truncate(own, own.stat().st_size // 2)
    with pytest.raises(FormatError, match=r"own\.gguf: the file was changed while it was in use"):
        engine.forward([2])


class FailingStream:
    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def take(self) -> tuple[int, int]:
        raise OSError(errno.EIO, "the disk is ill", "file")


def test_a_plan_expects_what_is_read_where_all_experts_are_as_likely(open_engine: Open) -> None:
    plan: Plan = open_engine(budget_for(open_engine, 64)).plan()
    assert plan.expert_places == 64  # half of them
    assert plan.streamed_bytes_per_pass == pytest.approx(4 * 2 * EXPERT_BYTES / 2, rel=0.01)
