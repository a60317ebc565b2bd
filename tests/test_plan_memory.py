"""What a plan says is what is taken: of each part of a model's memory, for every family."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from benchmark_scripts import run
from extension import require_cpp
from family_models import ARCHITECTURES, EVERY_ARCHITECTURE, VOCAB, write_family_model
from subprocess_python import run_python
from tiny_model import Sizes, write_tiny_model
from traced_memory import traced_memory
from variants import variant

from airllm.backends.routed import RoutedExecutor
from airllm.engine.decoder import Decoder
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.state.pages import PagePool
from airllm.state.table import CHECKPOINT_TOKENS, CHECKPOINTS
from airllm.weights.budget import BudgetError

CLOSE = 0.02
FEW = "deepseek2", "gemma2", "gpt-oss", "qwen35"  # kinds of ops
BATCH, CONTEXT = 192, 1216
# Checkpoints lie 256 tokens apart. Two batches follow the last one. The second one's window has the
# most pages, and shares none with a checkpoint: it begins a position behind a page, or chunks of 20
# positions do.
ENDS = [1, *(CHECKPOINT_TOKENS * i + 1 for i in range(1, CHECKPOINTS + 1)), 961, 1153, CONTEXT - 9]
ENDS_OF_CHUNKS = [*ENDS[:-3], 983, 1175, CONTEXT - 9]


@pytest.fixture(scope="module", params=EVERY_ARCHITECTURE)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    longer = {f"{request.param}.context_length": 4096}
    return write_family_model(tmp_path_factory.mktemp("family"), request.param, **longer)


@pytest.fixture(params=[pytest.param("numpy", marks=pytest.mark.variant), "cpp"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "cpp":
        require_cpp()
    return str(request.param)


@pytest.fixture
def most_pages(monkeypatch: pytest.MonkeyPatch) -> dict[int, dict[int, list[int]]]:
    """Bytes of the pages that each pool has handed out, by its id() and the pages' size, as a pool
    keeps pages for others of that size: now, and the most so far."""
    found: dict[int, dict[int, list[int]]] = {}
    take, release = PagePool.take, PagePool.release

    def count(pool: PagePool, n_bytes: int, change: int) -> None:
        counts = found.setdefault(id(pool), {}).setdefault(n_bytes, [0, 0])
        counts[0] += change
        counts[1] = max(counts)

    def counted_take(pool: PagePool, table: int) -> Any:
        page = take(pool, table)
        count(pool, len(page.memory), len(page.memory))
        return page

    def counted_release(pool: PagePool, page: Any) -> None:
        if page.holders == 1:
            count(pool, len(page.memory), -len(page.memory))
        release(pool, page)

    monkeypatch.setattr(PagePool, "take", counted_take)
    monkeypatch.setattr(PagePool, "release", counted_release)
    return found


def executor_bytes(executor: Any) -> int:
    if isinstance(executor, RoutedExecutor):
        halves = executor_bytes(executor._first) + executor_bytes(executor._second)
        return halves + sum(array.nbytes for array in executor._crossing.values())
    if hasattr(executor, "_executor"):
        return int(executor._executor.nbytes)
    return sum(array.nbytes for array in executor._internal.values())


def arrays(decoder: Decoder) -> Iterator[Any]:
    """Everything with `nbytes` that lies between the graphs."""
    yield from (*decoder._carried.values(), *decoder._rope, decoder._last_logits)
    if (head := decoder.next_tokens) is not None:
        yield from (*head._carried.values(), head._hidden, head._guessed, head._logits)


def buffers_taken(decoder: Decoder) -> int:
    executors = [decoder._embed, *decoder._layers, decoder._head]
    if decoder.next_tokens is not None:
        executors += decoder.next_tokens.executors
    of_each = {id(executor): executor_bytes(executor) for executor in executors}
    return sum(of_each.values()) + sum(array.nbytes for array in arrays(decoder))


def temporary_bytes(decoder: Decoder) -> int:
    """What runs take and give back, as planned."""
    model, plan = decoder._model, decoder.plan
    graphs = [*(kind.graph for kind in model.kinds), model.embed, model.head]
    found = (decoder.backend.temporary_bytes(g, plan.batch_size, plan.context) for g in graphs)
    return max(found)


def fill(engine: LayerWiseInferenceEngine, ends: list[int]) -> None:
    """Evaluates tokens in pieces that end at `ends`."""
    tokens = np.random.default_rng(1).integers(0, VOCAB, ends[-1]).tolist()
    for start, end in zip([0, *ends], ends, strict=False):
        engine.forward(tokens[start:end])


def near(taken: int, planned: int) -> bool:
    """Whether two sizes are equal within CLOSE, or a few kilobytes."""
    return abs(taken - planned) <= max(CLOSE * planned, 4096)


def test_buffers_and_weights_take_what_is_planned(model: Path, backend: str) -> None:
    settings = {"backend": backend, "batch_size": 64, "context": 160}
    with LayerWiseInferenceEngine(model, **settings) as engine:
        fill(engine, [100, 160])
        plan, decoder = engine.plan(), engine._model.decoder
        assert near(buffers_taken(decoder) + temporary_bytes(decoder), plan.buffer_bytes)
        assert near(decoder.weights.nbytes, plan.pinned_bytes)


def test_buffers_take_what_is_planned_where_layers_and_experts_are_read_anew(
    model: Path, backend: str
) -> None:
    settings = {"backend": backend, "batch_size": 64, "context": 160}
    with pytest.raises(BudgetError) as refusal:
        LayerWiseInferenceEngine(model, ram_budget=1, **settings)
    with LayerWiseInferenceEngine(model, ram_budget=refusal.value.minimum, **settings) as engine:
        fill(engine, [1, 160])
        plan, decoder = engine.plan(), engine._model.decoder
        waiting = 4 * sum(decoder._model.carried.values()) * (160 - 64)  # rows of one pass
        assert plan.streams
        taken = buffers_taken(decoder) + temporary_bytes(decoder) + waiting
        assert near(taken, plan.buffer_bytes)


@pytest.mark.parametrize("family", [f if f in FEW else variant(f) for f in ARCHITECTURES])
def test_numpy_takes_no_more_than_is_planned_while_ops_run(tmp_path: Path, family: str) -> None:
    """Beside pages and the other buffers; 128 KiB are for the objects of Python."""
    path = write_family_model(tmp_path, family)
    with LayerWiseInferenceEngine(path, backend="numpy", context=128) as engine:
        engine.forward([1])  # what is made once
        engine.reset()
        with traced_memory() as found:
            fill(engine, [100, 128])
        decoder = engine._model.decoder
        kept = decoder.layout.nbytes(128, 128)
        assert found.peak <= kept + temporary_bytes(decoder) + (128 << 10)


def test_what_numpy_is_planned_to_take_while_ops_run_is_not_too_much(
    tmp_path: Path,
) -> None:
    sizes = Sizes(hidden=128, ffn=384, n_layers=1, n_heads=4, head_dim=32, rope_dims=32)
    path = write_tiny_model(tmp_path, "q4_0", sizes=replace(sizes, context=4096)).path
    with LayerWiseInferenceEngine(path, backend="numpy", context=2048) as engine:
        engine.forward([1])
        decoder = engine._model.decoder
        with traced_memory() as found:
            engine.forward([1] * 2047)
        pages = decoder.state.nbytes
        assert 0.9 * temporary_bytes(decoder) <= found.peak - pages


def test_a_state_takes_what_is_planned_at_the_most(
    model: Path, most_pages: dict[int, dict[int, list[int]]]
) -> None:
    """To the byte, at the end of the context, with tokens that are guessed."""
    require_cpp()
    settings: dict[str, Any] = {"batch_size": BATCH, "context": CONTEXT}
    with LayerWiseInferenceEngine(model, backend="cpp", **settings) as engine:
        decoder = engine._model.decoder
        state = decoder.state
        is_chunked = any(table.chunked for table in state.layout.tables)
        fill(engine, ENDS_OF_CHUNKS if is_chunked else ENDS)
        n_guesses = CONTEXT - state.length
        logits = np.empty((n_guesses, VOCAB), np.float32)
        decoder.evaluate_ahead(np.zeros(n_guesses, np.int32), logits)
        earlier = [*state._checkpoints.all, *([state._before] if state._before else [])]
        state.accept([], n_guesses)
        pages = sum(most for _, most in most_pages.get(id(state._pool), {}).values())
        copies = (1 + len(earlier)) * state.recurrent.nbytes
        assert pages + copies == engine.plan().kv_cache_bytes


TOTAL = """
import json, re
from pathlib import Path
import numpy as np, numpy.random, tokenizers  # what an answer imports
from airllm.backends import load_backend
from airllm.layer_engine import LayerWiseInferenceEngine

def resident():
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"^RssAnon:\\s*(\\d+)", status, re.M)[1])

load_backend("cpp")
before = resident()
with LayerWiseInferenceEngine(PATH, backend="cpp", context=1024) as engine:
    embedding = engine._model.planned.parts[0].nbytes  # stays in the file's map
    tokens = np.random.default_rng(1).integers(3, 2000, 1024).tolist()
    for start in (0, 256):  # so that there are three checkpoints
        engine.forward(tokens[start : start + 256])
    engine.forward(tokens[512:1016], last_only=False)  # the head's buffers are for all rows, too
    guesses = np.array(tokens[1016:], np.int32)  # for which recurrent memory is copied once more
    engine._model.decoder.evaluate_ahead(guesses, np.empty((8, 2000), np.float32))
    print(json.dumps([resident() - before, engine.plan().total_bytes - embedding]))
"""


LLAMA = ["--hidden-size=1024", "--ffn=3072", "--layers=8", "--heads=8", "--kv-heads=2"]
SHAPES = [LLAMA, variant(["--like", "gpt-oss"]), variant(["--like", "qwen35"])]


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape[-1])
def test_a_process_takes_what_is_planned(tmp_path: Path, shape: list[str]) -> None:
    """Pages that the system has not given yet are not counted, nor is the embedding, which stays
    in the file's map."""
    require_cpp()
    path = tmp_path / "model.gguf"
    run("make_model.py", path, "--vocab", "2000", *shape)
    done = run_python(TOTAL.replace("PATH", repr(str(path))))
    assert done.returncode == 0, done.stderr
    taken, planned = json.loads(done.stdout)
    assert abs(taken - planned) <= CLOSE * planned
