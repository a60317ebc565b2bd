"""What may go wrong with a streamed model's files: an error that names the file, or right answers.

What the disk may do to single reads, stalls included, is in tests/cpp/test_stream.cpp.
"""

import errno
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hf_folder import write_folder
from split_model import write_split
from streamed_model import SIZES, TOKENS, Open, smallest_budget
from tiny_model import TinyModel, write_tiny_model
from variants import variant

from airllm.formats.gguf import FormatError, GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine


@dataclass
class Streaming:
    """An engine that has as little memory as it can have, and the last of its model's files."""

    engine: LayerWiseInferenceEngine
    file: Path


def split(model: TinyModel) -> Path:
    """The same model in three files; the path of the first."""
    folder = model.path.with_name("parts")
    folder.mkdir()
    with GGUFFile.open(model.path) as file:
        specs = [(t.name, t.type, t.shape, file.data(t.name).copy()) for t in file.tensors.values()]
        third = len(specs) // 3
        parts = [specs[:third], specs[third : 2 * third], specs[2 * third :]]
        return write_split(folder, dict(file.metadata.items()), parts)


@pytest.fixture(params=["one file", "parts", "folder"])
def streaming(request: pytest.FixtureRequest, tmp_path: Path, open_engine: Open) -> Streaming:
    type = "f16" if request.param == "folder" else "q4_0"
    model = write_tiny_model(tmp_path, type, sizes=replace(SIZES, n_layers=4))
    path = model.path
    if request.param == "parts":
        path = split(model)
    elif request.param == "folder":
        path = write_folder(tmp_path / "hf", model, dtype="F16", n_shards=3)
    own = replace(model, path=path)
    engine = open_engine(own, ram_budget=smallest_budget(open_engine, own))
    assert engine.plan().streams
    return Streaming(engine, engine._model.planned.file.parts[-1].path)


def test_a_file_that_is_truncated_is_an_error_that_names_it(streaming: Streaming) -> None:
    streaming.engine.forward([1])
    os.truncate(streaming.file, streaming.file.stat().st_size // 2)
    with pytest.raises(FormatError, match=f"{streaming.file}: the file was changed while it was"):
        streaming.engine.forward([2])


def test_a_file_that_is_written_to_is_an_error_and_never_a_wrong_token(
    streaming: Streaming,
) -> None:
    streaming.engine.forward([1])
    with streaming.file.open("r+b") as file:
        file.seek(streaming.file.stat().st_size // 2)
        file.write(bytes(100))
    with pytest.raises(FormatError, match=f"{streaming.file}: the file was changed while it was"):
        streaming.engine.forward([2])


@pytest.mark.parametrize("by", ["nothing", "another file"])
def test_a_file_that_vanishes_or_is_replaced_is_read_on(streaming: Streaming, by: str) -> None:
    expected = streaming.engine.forward([1])
    if by == "nothing":
        streaming.file.unlink()
    else:
        other = streaming.file.with_name("other")
        other.write_bytes(bytes(streaming.file.stat().st_size))
        other.replace(streaming.file)
    streaming.engine.reset()
    np.testing.assert_array_equal(streaming.engine.forward([1]), expected)


class FaultyStream:
    """A stream whose take fails once, at the section that `at` counts down to."""

    def __init__(self, stream: Any, at: int, error: BaseException) -> None:
        self._stream, self._left, self._error = stream, at, error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def take(self) -> tuple[int, int]:
        self._left -= 1
        if self._left == -1:
            raise self._error
        taken: tuple[int, int] = self._stream.take()
        return taken


@pytest.mark.parametrize("error", [OSError(errno.EIO, "the disk is ill", "f"), KeyboardInterrupt()])
@pytest.mark.parametrize("at", [variant(0), 2, variant(3)])
def test_after_an_error_in_the_middle_the_next_pass_begins_anew(
    streaming: Streaming, error: BaseException, at: int
) -> None:
    engine = streaming.engine
    engine.forward([1, 2])
    expected = engine.forward([3])
    engine.reset()
    engine.forward([1, 2])
    weights: Any = engine._model.decoder and engine._model.decoder.weights
    weights._ring._stream = FaultyStream(weights._ring._stream, at, error)
    with pytest.raises(type(error)):
        engine.forward([3])
    assert engine.position == 2
    np.testing.assert_array_equal(engine.forward([3]), expected)


def test_an_interrupt_between_two_layers_leaves_the_engine_usable(streaming: Streaming) -> None:
    engine = streaming.engine
    expected = engine.forward(TOKENS)
    engine.reset()

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        engine.forward(TOKENS, on_progress=interrupt)
    assert engine.position == 0
    np.testing.assert_array_equal(engine.forward(TOKENS), expected)
