"""A worker whose memory is smaller than its slice, and what it keeps on disk."""

import os
import re
import signal
import socket
import time
from pathlib import Path

import dllama_recording
import numpy as np
import pytest
from dllama_model import Model, Shape
from dllama_playback import play
from dllama_root import Root
from extension import require_cpp
from worker_process import Process
from worker_threads import addresses, workers

from airllm.backends import load_backend
from airllm.cluster import run
from airllm.cluster.checks import Program
from airllm.cluster.link import LinkError
from airllm.cluster.lowering import lower
from airllm.cluster.node_config import read_node_config
from airllm.cluster.protocol import read_handshake, read_net_config
from airllm.cluster.spill import CacheFile, SpillFile, open_spill
from airllm.cluster.streamed import StreamedWeights
from airllm.cluster.wire import take_from
from airllm.weights.residency import Residency

RECORDINGS = ["llama-f32", "llama-q40", "qwen3moe-q40"]


def from_disk(kept=(), cache=None, slots=2):
    """What holds the weights: all but the segments `kept` come from the disk."""
    return lambda lowered, sizes, backend: StreamedWeights(
        lowered, sizes, backend, open_spill(cache), Residency(frozenset(kept), 0, slots, 1 << 20)
    )


def played(name, backend, **options):
    """The bytes that a node sends in a recorded run."""
    return play(dllama_recording.read_recording(name)[0], 0, backend, **options).sent


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return load_backend(request.param)


@pytest.mark.parametrize(("kept", "slots"), [((), 2), ((), 1), ((1, 3), 2)])
@pytest.mark.parametrize("name", RECORDINGS)
def test_weights_from_disk_give_the_same_bytes(name, kept, slots, backend):
    assert played(name, backend, hold=from_disk(kept, slots=slots)) == played(name, backend)


# ---- the file ----


def test_weights_in_the_cache_are_not_written_again(backend, tmp_path):
    first = played("llama-q40", backend, hold=from_disk(cache=tmp_path))
    files = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert files
    assert played("llama-q40", backend, hold=from_disk(cache=tmp_path)) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == files


@pytest.mark.parametrize("damage", [b"", b"\0" * 30_000, b"nonsense\n"])
@pytest.mark.parametrize("name", ["weights", "weights.index"])
def test_what_is_damaged_in_the_cache_is_written_anew(name, damage, backend, tmp_path):
    first = played("llama-q40", backend, hold=from_disk(cache=tmp_path))
    (tmp_path / name).write_bytes(damage)
    assert played("llama-q40", backend, hold=from_disk(cache=tmp_path)) == first


def test_an_index_that_names_a_place_twice_damages_nothing(tmp_path):
    planes = [np.full(5000, value, np.uint8) for value in range(2)]
    spill = CacheFile(tmp_path)
    for plane in planes:
        spill.store(plane)
    spill.close()
    index = tmp_path / "weights.index"
    index.write_text(index.read_text().replace(" 8192 ", " 0 "))
    spill = CacheFile(tmp_path)
    for place, plane in zip([spill.store(plane) for plane in planes], planes, strict=True):
        assert os.pread(spill.descriptor, plane.nbytes, place) == plane.tobytes()
    spill.close()


def test_two_workers_do_not_share_a_cache(tmp_path):
    spill = CacheFile(tmp_path)
    with pytest.raises(OSError, match="another worker uses this cache"):
        CacheFile(tmp_path)
    spill.close()
    CacheFile(tmp_path).close()


def test_a_cache_is_free_when_it_is_closed_though_something_still_holds_its_file(tmp_path):
    """As io_uring does, until the kernel has ended the ring."""
    spill = CacheFile(tmp_path)
    held = os.dup(spill.descriptor)
    spill.close()
    CacheFile(tmp_path).close()
    os.close(held)


def test_weights_that_cannot_be_read_end_the_run_with_their_place(tmp_path):
    def hold(lowered, sizes, backend):
        weights = from_disk(cache=tmp_path)(lowered, sizes, backend)
        finish_well = weights.finish

        def finish(executors):
            (tmp_path / "weights").write_bytes(b"short")
            finish_well(executors)

        weights.finish = finish
        return weights

    require_cpp()
    with pytest.raises(OSError, match=re.escape(str(tmp_path / "weights"))):
        played("llama-q40", load_backend("cpp"), hold=hold)


@pytest.mark.parametrize("kind", [SpillFile, CacheFile])
def test_what_is_stored_is_in_the_file_where_it_says(kind, tmp_path):
    spill = kind(tmp_path / "new") if kind is CacheFile else kind()
    planes = [np.random.default_rng(i).integers(0, 256, 1000 + i, np.uint8) for i in range(3)]
    places = [spill.store(plane) for plane in planes]
    for place, plane in zip(places, planes, strict=True):
        assert os.pread(spill.descriptor, plane.nbytes, place) == plane.tobytes()
    spill.close()


# ---- a worker of its own, whose memory can be measured ----


@pytest.fixture(scope="module")
def model():
    """A slice of 85 MB."""
    return Model(Shape("llama", False, dim=1024, hidden=2048, layers=4, heads=8, head_dim=128))


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
@pytest.mark.parametrize("ram", [None, 130_000_000])
def test_resident_memory_stays_within_what_is_said(model, ram):
    require_cpp()
    worker = Process("--once", *(["--ram", str(ram)] if ram else []))
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


@pytest.fixture
def process_takes(monkeypatch):
    """Says what this process itself takes of a budget, as far as a worker in it can tell."""
    return lambda n: monkeypatch.setattr("airllm.cluster.run.system.resident_bytes", lambda: n)


def test_a_cache_says_what_was_in_it(model, tmp_path, process_takes):
    with workers(1, ram=130_000_000, cache=tmp_path) as made:
        report = made[0].report
        # From the second run on, the process has grown: it keeps fewer weights and stores more.
        for number, taken in enumerate((40_000_000, 50_000_000, 50_000_000), start=1):
            process_takes(taken)
            Root(model, addresses(made)).stop()
            report.wait_for("run_over", number)
        first, second, third = report.fields_of("cache")
        text = report.texts("cache")[-1]
    assert first["reused_bytes"] == 0
    assert 20e6 < second["reused_bytes"] == first["stored_bytes"] < second["stored_bytes"]
    assert third["reused_bytes"] == third["stored_bytes"] == second["stored_bytes"]
    assert text.endswith(f" were already in {tmp_path}/weights")


def test_a_budget_too_small_to_stream_is_refused_with_what_would_do(model, process_takes):
    process_takes(110_000_000)
    with workers(1, ram=130_000_000) as made:
        with pytest.raises(LinkError):
            Root(model, addresses(made))
        [text] = made[0].report.wait_for("run_failed")
    assert "streaming needs" in text


def test_a_disk_without_room_is_refused_before_the_weights_come(model, monkeypatch, process_takes):
    monkeypatch.setattr(run, "room_bytes", lambda cache: 1_000_000)
    process_takes(10_000_000)
    with workers(1, ram=100_000_000) as made:
        with pytest.raises(LinkError):
            Root(model, addresses(made))
        [text] = made[0].report.wait_for("run_failed")
    assert re.search(r"too little; streaming needs [0-9.]+ MB on the disk, .* for 1\.0 MB$", text)


def test_a_run_that_breaks_off_gives_the_disk_back(model, monkeypatch, process_takes):
    made_well, spills = run.open_spill, []

    def make(*arguments):
        spills.append(made_well(*arguments))
        close_well = spills[-1].close
        spills[-1].close = lambda: (spills.append("closed"), close_well())
        return spills[0]

    def die(name):
        if name == "weights":
            raise ConnectionError

    monkeypatch.setattr(run, "open_spill", make)
    process_takes(10_000_000)
    with workers(1, ram=100_000_000) as made:
        with pytest.raises(ConnectionError):
            Root(model, addresses(made), stage=die)
        made[0].report.wait_for("run_failed")
    assert spills[1:] == ["closed"]


def test_what_the_disk_takes_is_counted_in_whole_pages_of_all_that_streams():
    data = bytes(dllama_recording.read_recording("qwen3moe-q40")[0][0, 0].to_worker)
    take = take_from(data)
    handshake = read_handshake(take)
    take(4)
    net = read_net_config(take, handshake)
    program = Program(net, read_node_config(take, handshake, net))
    lowered = lower(program)
    every = range(len(lowered.segments))
    assert run._stored_bytes(lowered, program.weights, set(every)) == 0
    planes = [
        size
        for (name, _), size in program.weights.items()
        if name.startswith(("block_matmul", "block_moe_gate", "final_matmul"))
        for _ in range(size.z)
    ]
    expected = sum(-(-size.plane_bytes // 4096) * 4096 for size in planes)
    assert run._stored_bytes(lowered, program.weights, set()) == expected


def test_sigterm_ends_it_within_a_second_and_well():
    """The best of a few attempts: others may use the machine."""

    def seconds():
        worker = Process()
        with socket.create_connection(worker.address) as sock:
            sock.sendall(bytes([1, 0, 0, 0]))  # the beginning of a handshake
            began = time.monotonic()
            os.kill(worker.process.pid, signal.SIGTERM)
            assert worker.process.wait(30) == 0
            return time.monotonic() - began

    assert any(seconds() < 1.5 for _ in range(5))
