"""What is closed, and by whom: files and threads of engines that are dropped, or never were."""

import gc
import os
import sys
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from extension import require_cpp
from hf_folder import write_folder
from streamed_model import SIZES, Open, smallest_budget
from subprocess_python import run_python
from tiny_model import Sizes, TinyModel, write_tiny_model

from airllm.backends import load_backend
from airllm.cluster.report import Report
from airllm.cluster.run import Run, Settings
from airllm.cluster.spill import CacheFile, SpillFile
from airllm.engine.decoder import Decoder
from airllm.formats.mapped_file import MappedFile
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model
from airllm.tools.batch_answers import Answers
from airllm.util.closing import Closing
from airllm.util.metadata import FormatError
from airllm.weights.plan_model import PlannedModel
from airllm.weights.residency import Residency

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="the system does not list a process's descriptors"
)


EXPERTS = Sizes(
    "qwen3moe", hidden=128, ffn=256, head_dim=32, rope_dims=32, n_experts=32, n_used=2, n_layers=4
)


def descriptors_below(folder: Path) -> int:
    """How many descriptors of this process are of files there."""
    found = 0
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found += folder in entry.readlink().parents
        except FileNotFoundError:
            continue  # the one that lists the folder
    return found


@pytest.fixture(params=["numpy", "cpp"])
def backend(request: pytest.FixtureRequest) -> Any:
    if request.param == "cpp":
        require_cpp()
    return request.param


def opened(backend: str, model: TinyModel, **settings: Any) -> LayerWiseInferenceEngine:
    settings = {"context": 96, "batch_size": 32, **settings}
    return LayerWiseInferenceEngine(model.path, backend=backend, **settings)


@contextmanager
def silence() -> Iterator[None]:
    """Nothing warns inside. An error that a destructor raises would be printed, and fail nobody."""
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield
    assert not [str(warning.message) for warning in warned]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """What is given back is given back at once, not by a collector that comes by at some time."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


# ---- dropped engines -----------------------------------------------------------------------------


@pytest.mark.usefixtures("uncollected")
def test_a_dropped_engine_gives_its_file_back_and_warns(tmp_path: Path, backend: str) -> None:
    engine = LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend=backend)
    engine.generate("hello", max_new_tokens=2)
    assert descriptors_below(tmp_path) > 0
    with pytest.warns(ResourceWarning, match=r"engine of '.*tiny\.gguf' was dropped without close"):
        del engine
    assert descriptors_below(tmp_path) == 0


@pytest.mark.usefixtures("uncollected")
def test_a_dropped_engine_gives_every_shard_back_and_warns_once(
    tmp_path: Path, backend: str
) -> None:
    folder = write_folder(tmp_path / "hf", write_tiny_model(tmp_path), n_shards=3)
    engine = LayerWiseInferenceEngine(folder, backend=backend)
    assert descriptors_below(folder) >= 3
    with pytest.warns(ResourceWarning) as warned:
        del engine
    assert len(warned) == 1
    warned.clear()  # a warning holds what it warns of
    assert descriptors_below(folder) == 0


@pytest.mark.parametrize("sizes", [SIZES, EXPERTS], ids=["layers", "experts"])
def test_a_dropped_engine_ends_what_reads_ahead(
    tmp_path: Path, backend: str, uncollected: None, sizes: Sizes
) -> None:
    model = write_tiny_model(tmp_path, sizes=sizes)
    with opened(backend, model) as whole:
        most = whole.plan().total_bytes - whole.plan().pinned_bytes // 4
    del whole
    engine = opened(backend, model, ram_budget=most)
    engine.forward([1, 2])
    assert engine.plan().streams
    assert bool(engine.plan().expert_places) == (sizes is EXPERTS)
    weights = weakref.ref(engine._model.decoder.weights)
    with pytest.warns(ResourceWarning):
        del engine
    assert weights() is None  # and the stream, which ends with it
    if backend == "numpy":  # the threads of the other one give their files back in their time
        assert descriptors_below(tmp_path) == 0


@pytest.mark.usefixtures("uncollected")
def test_an_engine_that_was_closed_warns_of_nothing(tmp_path: Path, backend: str) -> None:
    with silence():
        with LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend=backend) as engine:
            pass
        del engine


@pytest.mark.usefixtures("uncollected")
def test_a_stream_goes_on_when_its_engine_is_dropped(tmp_path: Path, backend: str) -> None:
    engine = LayerWiseInferenceEngine(write_tiny_model(tmp_path).path, backend=backend)
    whole = engine.generate("hello", seed=1, max_new_tokens=20).text
    stream = engine.stream("hello", seed=1, max_new_tokens=20)
    first = next(stream)
    del engine
    with pytest.warns(ResourceWarning):
        rest = "".join(stream)
    assert first + rest == whole
    assert descriptors_below(tmp_path) == 0


@pytest.mark.usefixtures("uncollected")
def test_a_warning_that_is_an_error_does_not_keep_the_file_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[type[BaseException]] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda error: raised.append(error.exc_type))
    file = open_model(write_tiny_model(tmp_path).path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del file
    assert raised == [ResourceWarning]
    assert descriptors_below(tmp_path) == 0


def test_an_engine_that_is_open_when_python_ends_is_closed_in_silence(
    tmp_path: Path, backend: str
) -> None:
    path = str(write_tiny_model(tmp_path).path)
    code = f"""
from airllm.layer_engine import LayerWiseInferenceEngine
engine = LayerWiseInferenceEngine({path!r}, backend={backend!r})
engine.generate("x", max_new_tokens=1)
engine.itself = engine  # so that it lives to the very end
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")


# ---- what fails half way -------------------------------------------------------------------------


def fail(*_: object, **__: object) -> None:
    raise MemoryError("no room")


@pytest.mark.parametrize(
    ("owner", "name"),
    [(PlannedModel, "open"), (Decoder, "__init__"), (Decoder, "new_state")],
    ids=["before the file is open", "before its decoder", "within its decoder"],
)
def test_an_engine_that_cannot_be_made_leaves_nothing_open_and_warns_of_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: type, name: str
) -> None:
    path = write_tiny_model(tmp_path).path
    monkeypatch.setattr(owner, name, fail)
    with silence():
        with pytest.raises(MemoryError):
            LayerWiseInferenceEngine(path, backend="numpy")
        gc.collect()
    assert descriptors_below(tmp_path) == 0


def test_a_stream_is_closed_where_its_file_has_changed_meanwhile(
    tmp_path: Path, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_tiny_model(tmp_path, sizes=SIZES)
    least = smallest_budget(partial(opened, backend), model)
    kind = type(load_backend(backend))
    stream = kind.stream
    streams: list[Any] = []

    def open_and_change(*args: Any, **options: Any) -> Any:
        streams.append(stream(*args, **options))
        os.utime(model.path, (1, 1))
        return streams[-1]

    monkeypatch.setattr(kind, "stream", open_and_change)
    with pytest.raises(FormatError, match="was changed"):
        opened(backend, model, ram_budget=least)
    with pytest.raises(RuntimeError, match="it is closed"):
        streams[-1].take()


def test_a_folder_whose_descriptions_cannot_be_read_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "hf", write_tiny_model(tmp_path), n_shards=2)
    monkeypatch.setattr("airllm.formats.hf_folder._digest_of_descriptions", fail)
    with silence():
        with pytest.raises(MemoryError):
            open_model(folder)
        gc.collect()
    assert descriptors_below(folder) == 0


def test_what_never_opened_is_not_closed() -> None:
    class Opening(Closing):
        def __init__(self) -> None:
            raise MemoryError

        def release(self) -> None:
            raise AssertionError

    with silence():
        with pytest.raises(MemoryError):
            Opening()
        gc.collect()


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("owner", ["answers", "cache"])
def test_another_file_that_is_dropped_is_closed_with_its_lock(tmp_path: Path, owner: str) -> None:
    def opened() -> Closing:
        if owner == "answers":
            return Answers.open(tmp_path / "answers", [], "run")
        return CacheFile(tmp_path / "cache")

    file = opened()
    with pytest.raises((ValueError, OSError), match="another"):
        opened()
    gc.collect()  # what was refused
    with pytest.warns(ResourceWarning, match="dropped without close"):
        del file
    assert descriptors_below(tmp_path) == 0
    opened().close()


def test_a_workers_file_is_closed_where_its_weights_cannot_be_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spill = SpillFile()
    descriptor = spill.descriptor
    monkeypatch.setattr("airllm.cluster.run.open_spill", lambda *_: spill)
    monkeypatch.setattr("airllm.cluster.run.StreamedWeights", fail)
    monkeypatch.setattr(
        "airllm.cluster.run.plan_residency", lambda *_: Residency(frozenset(), 0, 2, 1, 2, 1)
    )
    backend = load_backend("numpy")
    run = Run(backend, Settings(ram=1), None, Report())  # type: ignore[arg-type]
    monkeypatch.setattr("airllm.cluster.run.cache_bytes", lambda *_: 1)
    monkeypatch.setattr("airllm.cluster.run.buffer_bytes", lambda *_: 1)
    monkeypatch.setattr("airllm.cluster.run.memory_bytes", lambda *_: 1)
    monkeypatch.setattr("airllm.cluster.run.staging_bytes", lambda *_: 1)
    monkeypatch.setattr("airllm.cluster.run._stored_bytes", lambda *_: 1)
    with pytest.raises(MemoryError):
        run._weights(SimpleNamespace(weights={}), None)  # type: ignore[arg-type]
    assert spill.closed
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# ---- after close ---------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["1GiB", None], ids=["all in memory", "streamed"])
def test_after_close_every_use_is_the_same_kind_of_error(
    tmp_path: Path, open_engine: Open, budget: str | None
) -> None:
    model = write_tiny_model(tmp_path, sizes=SIZES)
    engine = open_engine(model, ram_budget=budget or smallest_budget(open_engine, model))
    streams: list[Iterator[object]] = [
        engine.stream("hello", max_new_tokens=9),
        engine.stream_batch(["hello", "you"], max_new_tokens=9),
        open_engine(model).stream("hello", max_new_tokens=9, draft=engine),
    ]
    next(streams[0])
    engine.close()
    for stream in streams:
        with pytest.raises(RuntimeError, match="the engine is closed"):
            list(stream)
    for use in (engine.plan, engine.reset, lambda: engine.generate("hello")):
        with pytest.raises(RuntimeError, match="the engine is closed"):
            use()


def test_a_draft_that_is_closed_ends_the_stream_that_it_guesses_for(
    tmp_path: Path, open_engine: Open
) -> None:
    model = write_tiny_model(tmp_path)
    draft = open_engine(model)
    stream = open_engine(model).stream("hello", draft=draft, lookahead=1, seed=1)
    next(stream)
    draft.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        list(stream)


def test_a_file_that_was_closed_says_so(tmp_path: Path) -> None:
    file = MappedFile.open(write_tiny_model(tmp_path).path, hint="")
    file.close()
    file.close()
    with pytest.raises(RuntimeError, match=r"tiny\.gguf: the file is closed"):
        file.check_unchanged()
