"""What was evaluated is written while the server runs: a process that is killed loses little."""

import logging
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from running_server import ServeProcess
from test_prefix_tree import LAYERS, Forest
from test_serve import CHAT, get, greedy, post
from tiny_model import Sizes, write_tiny_model

from airllm.state import prefix_writer
from airllm.state.prefix_files import PrefixFolder
from airllm.state.prefix_writer import PrefixWriter

FINGERPRINT = bytes(32)


class Written:
    """A writer of the tree of a forest with these layers, on a clock of its own. ended: that a job
    has."""

    def __init__(
        self,
        layers: str,
        folder: Path,
        monkeypatch: pytest.MonkeyPatch,
        most_bytes: int = 1 << 30,
    ) -> None:
        self._layers = LAYERS[layers]
        self.forest = forest = Forest(self._layers, most_bytes)
        self.folder, self.now = folder, 1000.0
        self.ended = threading.Event()
        monkeypatch.setattr(prefix_writer, "monotonic", lambda: self.now)
        self.files = PrefixFolder(folder, forest.layout, FINGERPRINT)
        self.writer = PrefixWriter(
            forest.tree, self.files, forest._make, seconds=10, wake=self.ended.set, written={}
        )

    def go_on(self, *, idle: bool = True) -> float | None:
        """Calls the writer, and waits for the job that this has begun."""
        self.ended.clear()
        seconds = self.writer.go_on(idle=idle)
        if not self.writer._job_ended.is_set():
            assert self.ended.wait(30)
        return seconds

    def go_on_until_all_is_written(self) -> None:
        self.go_on()
        self.now += 10
        while self.writer._n_written != self.forest.tree.n_added:
            assert self.go_on() is None

    def read(self) -> Forest:
        """What a process would read that is started now."""
        forest = Forest(self._layers)
        self.files.load(forest.tree, forest.state, 1 << 30)
        return forest

    def names(self) -> set[str]:
        return {path.name for path in self.folder.glob("*")}


@pytest.fixture(params=LAYERS)
def written(request, tmp_path, monkeypatch):
    made = Written(request.param, tmp_path / "kept", monkeypatch)
    yield made
    made.writer.close()


def test_it_is_written_after_some_seconds_without_a_step(written: Written) -> None:
    written.forest.add(range(100))
    assert written.go_on() == 10
    written.now += 4
    assert written.go_on(idle=False)
    assert written.go_on() == 10
    written.now += 9
    assert written.go_on() == 1
    assert not written.names()
    written.now += 1
    written.go_on()
    assert written.names()
    assert written.read().longest(range(100)) == 100


def test_where_there_is_always_a_step_it_is_written_after_ten_times_as_long(
    written: Written,
) -> None:
    written.forest.add(range(100))
    written.now += 99
    assert written.go_on(idle=False) == 1
    assert not written.names()
    written.now += 1
    written.go_on(idle=False)
    assert written.read().longest(range(100)) == 100


def test_files_take_a_tenth_of_the_time_where_there_is_always_a_step(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = written.files.write

    def slow_write(*args: Any) -> None:
        written.now += 30
        write(*args)

    monkeypatch.setattr(written.files, "write", slow_write)
    written.forest.add(range(100))
    written.forest.add(range(1000, 1100))
    written.now += 100
    assert written.go_on(idle=False) is None
    assert written.go_on(idle=False) == 300
    assert len(written.names()) == 1


def test_what_was_used_last_is_written_first(written: Written) -> None:
    written.forest.add(range(100))
    written.forest.add(range(1000, 1100))
    written.go_on()
    written.now += 10
    written.go_on()
    found = written.read()
    assert (found.longest(range(100)), found.longest(range(1000, 1100))) == (0, 100)
    written.go_on_until_all_is_written()
    assert written.read().longest(range(100)) == 100


def test_the_files_of_what_is_forgotten_go_when_all_else_is_written(written: Written) -> None:
    written.forest.add(range(100))
    written.go_on_until_all_is_written()
    before = written.names()
    written.forest.tree.shrink(0)
    written.forest.add(range(1000, 1100))
    written.go_on()
    assert before < written.names()
    written.go_on_until_all_is_written()
    assert written.names()
    assert not before & written.names()


def test_nothing_is_written_twice(written: Written) -> None:
    written.forest.add(range(100))
    written.go_on_until_all_is_written()
    before = {path.name: path.stat().st_ino for path in written.folder.iterdir()}
    written.forest.add(range(1000, 1100))
    written.go_on_until_all_is_written()
    after = {path.name: path.stat().st_ino for path in written.folder.iterdir()}
    assert before.items() < after.items()
    assert written.go_on() is None


def test_in_an_hour_no_more_is_written_than_the_tree_may_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Forest(LAYERS["whole"])
    one.add(range(100))
    written = Written("whole", tmp_path, monkeypatch, most_bytes=one.tree.nbytes * 3 // 2)
    written.forest.add(range(1000, 1100))
    written.go_on_until_all_is_written()
    written.forest.add(range(2000, 2100))  # the other one goes
    written.now += 10
    seconds = written.go_on()
    assert seconds is not None
    assert 1100 < seconds < 1300  # for a third of what the tree may have
    written.now += seconds + 1
    written.go_on_until_all_is_written()
    written.writer.close()
    assert written.read().longest(range(2000, 2100)) == 100


def test_files_of_what_is_forgotten_go_although_there_is_always_more_to_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Forest(LAYERS["whole"])
    one.add(range(100))
    written = Written("whole", tmp_path, monkeypatch, most_bytes=one.tree.nbytes * 3 // 2)
    for at in range(8):
        written.forest.add(range(1000 * at, 1000 * at + 100))  # the one before goes
        written.go_on()
        written.now += 3600
        written.go_on()
    written.writer.close()
    assert len(written.names()) <= 3


def test_what_was_written_is_not_held(written: Written) -> None:
    written.forest.add(range(100))
    written.go_on_until_all_is_written()
    written.go_on()
    written.forest.state.clear()
    written.forest.tree.shrink(0)
    written.forest.pool.shrink()
    assert written.forest.pool.nbytes == 0


def test_a_snapshot_that_is_forgotten_while_it_is_written_is_written_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = Written("whole", tmp_path, monkeypatch)
    began, goes_on = threading.Event(), threading.Event()
    write = written.files.write

    def slow_write(*args: Any) -> None:
        began.set()
        assert goes_on.wait(30)
        write(*args)

    monkeypatch.setattr(written.files, "write", slow_write)
    written.forest.add(range(100))
    written.writer.go_on(idle=True)
    written.now += 10
    written.writer.go_on(idle=True)
    assert began.wait(30)
    assert written.writer.go_on(idle=True) is None  # and leaves what is being written
    written.forest.tree.shrink(0)
    written.forest.add(range(1000, 1100))  # would take the pages if they were free
    goes_on.set()
    assert written.ended.wait(30)
    written.writer.close()
    assert written.read().longest(range(100)) == 100


def test_a_folder_that_cannot_be_written_is_a_warning_and_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a file"
    blocked.write_text("no folder")
    written = Written("whole", blocked, monkeypatch)
    written.forest.add(range(100))
    with caplog.at_level(logging.WARNING, "airllm"):
        written.go_on()
        written.now += 10
        written.go_on()
        assert written.go_on() is None
    assert caplog.text.count("could not be kept for the next start") == 1
    blocked.unlink()
    written.forest.add(range(1000, 1100))
    written.go_on_until_all_is_written()
    written.writer.close()
    assert len(list(blocked.iterdir())) == 2


def test_what_a_killed_process_left_incomplete_goes_after_an_hour(written: Written) -> None:
    written.forest.add(range(100))
    written.go_on_until_all_is_written()
    name = next(iter(written.names()))
    old, new = written.folder / f".{name}.old", written.folder / f".{name}.new"
    for path in (old, new):
        path.write_bytes(b"AIRLLMKV")
    os.utime(old, (time.time() - 4000,) * 2)
    written.forest.add(range(1000, 1100))
    written.go_on_until_all_is_written()
    assert not old.exists()
    assert new.exists()


# ---- processes that are killed -----------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(write_tiny_model(tmp_path, "f32", sizes=Sizes(context=400)).path)


def cached_tokens(address: tuple[str, int], body: dict[str, Any]) -> tuple[int, int]:
    usage = post(address, CHAT, body)[1]["usage"]
    return usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


def test_a_server_that_is_killed_has_what_it_wrote_when_it_had_nothing_to_do(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    options = ["-m", str(tiny), "--backend", "numpy", "--cache-dir", str(folder)]
    body = {**greedy("a long question " * 8), "temperature": 0.5}
    with ServeProcess(*options, "--cache-save-seconds", "0") as process:
        assert cached_tokens(process.address, body)[0] == 0
        while not list(folder.glob("*.session")):  # pytest's time limit ends this
            get(process.address, "/health")
        process.process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with ServeProcess(*options) as process:
        reused, n_prompt = cached_tokens(process.address, body)
    assert reused == n_prompt - 1


IN_THE_MIDDLE = """
import os, sys, threading
from airllm.cli import main

def fsync(descriptor):  # the file is complete but for its place
    print("writing", flush=True)
    threading.Event().wait()

os.fsync = fsync
main(sys.argv[1:])
"""


def test_a_server_that_is_killed_while_it_writes_leaves_no_half_file_in_use(
    tiny: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "kept"
    options = ["-m", str(tiny), "--backend", "numpy", "--cache-dir", str(folder)]
    body = {**greedy("a long question " * 8), "temperature": 0.5}
    command = [sys.executable, "-c", IN_THE_MIDDLE, "serve", "--port", "0", *options]
    with subprocess.Popen(
        [*command, "--cache-save-seconds", "0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parent.parent,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        line = process.stderr.readline()
        while "served at" not in line:
            assert line
            line = process.stderr.readline()
        port = int(line.partition("http://127.0.0.1:")[2].partition(",")[0])
        cached_tokens(("127.0.0.1", port), body)
        assert process.stdout.readline() == "writing\n"
        # It answers meanwhile.
        assert post(("127.0.0.1", port), CHAT, body)[0] == 200
        process.kill()
    assert [stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()] == [0o600]
    assert not list(folder.glob("*.session"))
    with ServeProcess(*options) as again:
        assert cached_tokens(again.address, body)[0] == 0
