"""A worker whose memory is smaller than its slice, and what it keeps on disk."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import dllama_recording
import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_playback import play
from dllama_root import Root
from extension import require_cpp
from worker_threads import addresses, workers

from airllm.backends import load_backend
from airllm.cluster.link import LinkError
from airllm.cluster.spill import CacheFolder, SpillFile, open_spill
from airllm.cluster.streamed import StreamedWeights, segments_to_keep
from airllm.system import resident_bytes

RECORDINGS = ["llama-f32", "llama-q40", "qwen3moe-q40"]


def streamed(n_kept, cache=None):
    return lambda lowered, sizes, backend: StreamedWeights(
        lowered, sizes, backend, open_spill(cache), n_kept
    )


def played(name, backend, **options):
    """The bytes that a node sends in a recorded run."""
    return play(dllama_recording.read_recording(name)[0], 0, backend, **options).sent


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return load_backend(request.param)


@pytest.mark.parametrize("n_kept", [0, 3])
@pytest.mark.parametrize("name", RECORDINGS)
def test_weights_from_disk_give_the_same_bytes(name, n_kept, backend):
    assert played(name, backend, hold=streamed(n_kept)) == played(name, backend)


def test_weights_in_the_cache_are_not_written_again(backend, tmp_path):
    first = played("llama-q40", backend, hold=streamed(0, tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert files
    assert played("llama-q40", backend, hold=streamed(0, tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


def test_a_damaged_file_in_the_cache_is_written_anew(backend, tmp_path):
    first = played("llama-q40", backend, hold=streamed(0, tmp_path))
    for path in tmp_path.iterdir():
        path.write_bytes(bytes(path.stat().st_size))
    assert played("llama-q40", backend, hold=streamed(0, tmp_path)) == first


def test_weights_that_cannot_be_read_end_the_run_with_their_place(tmp_path):
    spill = CacheFolder(tmp_path)
    place = spill.store(np.zeros(100, np.uint8))
    place.write_bytes(b"short")
    with pytest.raises(OSError, match=re.escape(str(place))):
        spill.read(place, np.empty(100, np.uint8))


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_is_stored_is_read_back(kind, tmp_path):
    spill = SpillFile() if kind == "file" else CacheFolder(tmp_path / "new")
    planes = [np.random.default_rng(i).integers(0, 256, 1000 + i, np.uint8) for i in range(3)]
    places = [spill.store(plane) for plane in planes]
    for place, plane in reversed(list(zip(places, planes, strict=True))):
        memory = np.zeros(plane.nbytes, np.uint8)
        spill.read(place, memory)
        np.testing.assert_array_equal(memory, plane)
    spill.close()


@pytest.mark.parametrize(
    ("nbytes", "budget", "kept"),
    [
        ([10, 10, 10, 10], 40, 4),
        ([10, 10, 10, 10], 39, 1),
        ([10, 10, 10, 10], 20, 0),
        ([10, 10, 10, 10], 19, None),
        ([10, 10, 50, 50], 119, 1),
        ([50, 10, 10], 100, 3),
        ([50, 10, 10], 99, 3),
        ([], 0, 0),
    ],
)
def test_as_many_segments_stay_as_fit_beside_two_that_stream(nbytes, budget, kept):
    assert segments_to_keep(nbytes, budget) == kept


# ---- a worker of its own, whose memory can be measured ----


class Process:
    """`airllm worker --once` with these options."""

    def __init__(self, *options):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.address = probe.getsockname()
        command = [sys.executable, "-m", "airllm", "worker", "--json", "--once"]
        self.process = subprocess.Popen(
            [*command, "--port", str(self.address[1]), "--threads", "1", *options],
            stdout=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent.parent,
        )
        assert self.event()["event"] == "listening"

    def event(self):
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def peak_bytes(self):
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])


@pytest.fixture(scope="module")
def model():
    """A slice of 85 MB."""
    return Model(Shape("llama", False, dim=1024, hidden=2048, layers=4, heads=8, head_dim=128))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("ram", [None, 130_000_000])
def test_resident_memory_stays_within_what_is_said(model, ram):
    require_cpp()
    worker = Process(*(["--ram", str(ram)] if ram else []))
    try:
        root = Root(model, [worker.address], backend="cpp")
        found = root.run(model.tokens[:10], batch=5)
        peak = worker.peak_bytes()
        root.stop()
        events = {}
        while (event := worker.event())["event"] != "stopped":
            events[event["event"]] = event
    finally:
        worker.process.terminate()
        worker.process.wait(5)
    memory, expected = events["memory"], model.reference(model.tokens[:10], 2)
    assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    assert memory["weight_bytes"] > 80e6
    if ram:
        assert peak <= ram
        assert memory["streamed_bytes"] > 20e6
    else:
        needed = memory["weight_bytes"] + memory["cache_bytes"] + memory["buffer_bytes"]
        assert peak <= needed + 100e6


def test_a_budget_too_small_to_stream_is_refused_with_what_would_do(model):
    with workers(1, ram=resident_bytes() + (20 << 20)) as made:
        with pytest.raises(LinkError):
            Root(model, addresses(made))
        [text] = made[0].report.wait_for("run_failed")
    assert "are enough to stream" in text


def test_sigterm_ends_it_within_a_second_and_well():
    worker = Process()
    with socket.create_connection(worker.address) as sock:
        sock.sendall(bytes([1, 0, 0, 0]))  # the beginning of a handshake
        began = time.monotonic()
        os.kill(worker.process.pid, signal.SIGTERM)
        assert worker.process.wait(5) == 0
        assert time.monotonic() - began < 1.5
