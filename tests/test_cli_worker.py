"""airllm worker: its options, its status, and what it says."""

import contextlib
import itertools
import json
import socket
import threading
import types

import pytest
from dllama_model import Model, Shape
from dllama_root import Root
from worker_threads import workers

from airllm.cli import main, worker
from airllm.cluster import meter, report
from airllm.cluster.door import LOOPBACK as LOOPBACK_NETWORKS
from airllm.cluster.door import Door
from airllm.cluster.report import Report, status_path


def usage_error(capsys, *argv):
    try:
        status = main(["worker", *argv])
    except SystemExit as exit:
        status = exit.code
    assert status == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--ram", "much"], "'much' is no size; expected a number and a unit, as in 2GiB or 500MB"),
        (["--ram", "0"], "'0' is no size"),
        (["--min-rate", "slow"], "'slow' is no size"),
        (["--allow", "300.1.1.1/8"], "'300.1.1.1/8' is not a network"),
        (["--port", "70000"], "70000 is not a port number"),
        (["--cache", "d"], "--cache keeps the weights that --ram leaves on disk"),
        (["--host", "no.such.invalid"], "--host no.such.invalid: "),
        (["--host", "0.0.0.0"], "--host 0.0.0.0 lets other machines connect"),
    ],
)
def test_a_wrong_option_is_a_usage_error_that_says_what_would_do(argv, says, capsys):
    assert says in usage_error(capsys, *argv)


def test_the_memory_that_the_environment_grants_is_a_size_too(capsys, monkeypatch):
    monkeypatch.setenv("AIRLLM_RAM", "much")
    assert main(["worker"]) == 1
    assert "AIRLLM_RAM: 'much' is no size" in capsys.readouterr().err


def test_an_address_in_use_is_an_error(capsys):
    with workers(1) as [running]:
        port = running.address[1]
        assert main(["worker", "--port", str(port)]) == 1
    said = capsys.readouterr().err
    assert f"error: cannot listen on 127.0.0.1:{port}: Address already in use" in said


def test_without_a_worker_there_is_no_status(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert main(["worker", "--status", "--port", "1"]) == 1
    assert "no worker of this user answers for port 1" in capsys.readouterr().err


def test_the_status_socket_says_what_the_worker_does(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    state = Report()
    state.update(state="running", run={"tokens": 7})
    door = Door(
        "127.0.0.1",
        0,
        LOOPBACK_NETWORKS,
        silence=1.0,
        log=print,
        status=state.status,
        status_path=status_path(4321),
    )
    try:
        assert main(["worker", "--status", "--port", "4321"]) == 0
        assert "run:       tokens 7" in capsys.readouterr().out
        assert main(["worker", "--status", "--port", "4321", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["state"] == "running"
    finally:
        door.close()
    assert not status_path(4321).exists()


@contextlib.contextmanager
def liar(path, says):
    """Somebody who answers at that path, with bytes or until nobody listens any more."""

    def serve():
        with contextlib.suppress(OSError):
            visitor, _ = server.accept()
            with visitor:
                for piece in [says] if isinstance(says, bytes) else says:
                    visitor.sendall(piece)

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def runtime(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("says", "expected"),
    [
        (b"", "its answer is not JSON"),
        (b"\xff\xfe", "its answer is not JSON"),
        (b"[" * 60_000, "its answer is not JSON"),
        (b"9" * 60_000, "its answer is not JSON"),
        (b"[1]", "its answer is not the status of a worker"),
        (b"null", "its answer is not the status of a worker"),
        (b'{"a": [1]}', "its answer is not the status of a worker"),
        (b'{"a": {"b": {"c": 1}}}', "its answer is not the status of a worker"),
        (b"{" + b" " * 65_536, "it says more than 65,536 bytes, as no worker does"),
        (itertools.repeat(b" " * 65_536), "it says more than 65,536 bytes, as no worker does"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_status_that_makes_no_sense_is_an_error(says, expected, options, capsys, runtime):
    with liar(status_path(4321), says):
        assert main(["worker", "--status", "--port", "4321", *options]) == 1
    found = capsys.readouterr()
    assert found.err.endswith(f"{status_path(4321)}: {expected}\n")
    assert len(found.err.splitlines()) == 1


def test_a_status_that_drips_is_given_up(capsys, runtime, monkeypatch):
    hours = itertools.count(step=3600.0)
    clock = types.SimpleNamespace(monotonic=lambda: next(hours))
    monkeypatch.setattr(worker, "time", clock)
    with liar(status_path(4321), itertools.repeat(b" ")):
        assert main(["worker", "--status", "--port", "4321"]) == 1
    assert capsys.readouterr().err.endswith(f"{status_path(4321)}: it does not come to an end\n")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_what_a_status_says_is_shown_with_its_escapes(options, capsys, runtime):
    says = json.dumps({"\x1b]0;a\x07": "b\x1b[2J\n", "c": {"\x9b": "\u202e"}}).encode()
    with liar(status_path(4321), says):
        assert main(["worker", "--status", "--port", "4321", *options]) == 0
    out = capsys.readouterr().out
    assert all(char.isprintable() or char == "\n" for char in out)
    assert out.count("\n") == (1 if options else 2)


def test_a_status_in_a_folder_that_others_may_write_to_is_not_believed(capsys, runtime):
    runtime.chmod(0o777)
    with liar(status_path(4321), b"{}"):
        assert main(["worker", "--status", "--port", "4321"]) == 1
    assert f"{runtime}: can be written by other users" in capsys.readouterr().err


def test_a_run_is_told_in_plain_lines():
    model = Model(Shape("llama", True, dim=64, hidden=64, layers=2, heads=2, kv_heads=2))
    with workers(1) as [running]:
        root = Root(model, [running.address])
        root.run(model.tokens[:40])
        root.stop()
        running.report.wait_for("run_over")
        events = running.report.events
    texts = dict(events)
    assert [name for name, _ in events][:2] == ["listening", "root"]
    assert texts["root"].endswith("this is worker 0 of 1")
    assert texts["model"].startswith("model: 2 layers on 2 nodes, 64 positions")
    assert texts["memory"].startswith("memory: ")
    assert texts["weights"].startswith("weights: 0.0 MB of 0.0 MB in ")
    assert texts["tokens"].startswith("40 tokens in 2 steps, ")
    assert texts["run_over"].startswith("the run is over, ")


def test_json_events_are_a_line_each(capsys):
    told = Report(as_json=True)
    told.event("listening", "listening on x", {"port": 5})
    told.event("run_failed", "the run ended: y", fault=True)
    first, second = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert (first["event"], first["text"], first["port"]) == ("listening", "listening on x", 5)
    assert second["event"] == "run_failed"


def test_weights_are_told_with_rate_and_time_left(monkeypatch):
    clock = iter([0.0, 1.0, 6.0, 7.0])
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    lines = []
    told = Report()
    monkeypatch.setattr(told, "event", lambda name, text, fields: lines.append(text))
    progress = meter.WeightsProgress(90_000_000, told)
    progress.add(10_000_000)
    progress.add(20_000_000)
    progress.finish()
    assert lines == [
        "weights: 30.0 MB of 90.0 MB, 5.0 MB/s, 12 s left",
        "weights: 30.0 MB of 90.0 MB in 7.0 s",
    ]


def test_what_a_run_has_done_is_told_once_a_second(monkeypatch):
    clock = iter([0.0, 0.5, 1.0, 1.9, 2.1])
    monkeypatch.setattr(meter.time, "monotonic", lambda: next(clock))
    told = Report()
    updates = []
    monkeypatch.setattr(told, "update", lambda run: updates.append(run["steps"]))
    measured = meter.Meter(told)
    for _ in range(4):
        measured.step(1, 0.1, 0.1, 0.0, 0.0)
    assert updates == [2, 4]


def test_the_status_of_each_user_has_a_place_of_its_own(monkeypatch):
    monkeypatch.delenv("XDG_RUNTIME_DIR", raising=False)
    monkeypatch.setattr(report.os, "getuid", lambda: 77)
    assert status_path(9990).parent.name == "airllm-77"
