"""`airllm serve` with a tiny model: sockets, answers, signals, and command lines that are wrong."""

import http.client
import json
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tiny_model import Sizes, write_tiny_model

pytest.importorskip("uvicorn")

from running_server import RunningServer, ServeProcess
from scripted_server import Say, ScriptedEngine, scripted_model

from airllm.cli import main
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.server import run
from airllm.server.one_model import OneModel
from airllm.server.run import Server, listen
from airllm.server.settings import ServerSettings

CHAT = "/v1/chat/completions"
SIZES = Sizes(context=400)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path: Path = write_tiny_model(tmp_path_factory.mktemp("serve"), sizes=SIZES).path
    return path


@pytest.fixture(scope="module")
def server(tiny: Path) -> Iterator[RunningServer]:
    scheduling = {"lanes": 32, "piece_tokens": 32}
    with RunningServer(tiny, backend="numpy", scheduling=scheduling) as server:
        yield server


def question(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def post(address: tuple[str, int], path: str, body: Any) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def get(address: tuple[str, int], path: str) -> str:
    connection = http.client.HTTPConnection(*address, timeout=60)
    try:
        connection.request("GET", path)
        return connection.getresponse().read().decode()
    finally:
        connection.close()


def greedy(text: str, **more: Any) -> dict[str, Any]:
    return {"messages": question(text), "temperature": 0, "max_tokens": 24, **more}


def gauge(address: tuple[str, int], name: str) -> float:
    lines = dict(line.rsplit(" ", 1) for line in get(address, "/metrics").splitlines())
    return float(lines.get(f"airllm_{name}", 0))


def wait_for(address: tuple[str, int], name: str, value: float) -> None:
    """Ask until a gauge has a value; pytest's own time-out ends a wait in vain."""
    for _ in range(10_000):
        if gauge(address, name) == value:
            return
    raise AssertionError(f"{name} never became {value}")


def test_greedy_answers_are_generates_alone_and_among_31_others(
    server: RunningServer, tiny: Path
) -> None:
    texts = [f"hello {'world ' * (at % 9)}{at}" for at in range(32)]
    with LayerWiseInferenceEngine(tiny, backend="numpy") as engine:
        expected = []
        for text in texts:
            engine.reset()
            expected.append(engine.generate(question(text), temperature=0, max_new_tokens=24).text)
    alone = [post(server.address, CHAT, greedy(text))[1] for text in texts[:4]]
    assert [body["choices"][0]["message"]["content"] for body in alone] == expected[:4]
    found: dict[int, str] = {}

    def ask(at: int) -> None:
        status, body = post(server.address, CHAT, greedy(texts[at]))
        assert status == 200
        found[at] = body["choices"][0]["message"]["content"]

    threads = [threading.Thread(target=ask, args=(at,)) for at in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[at] for at in range(32)] == expected


def test_a_prompt_that_came_before_is_reused(server: RunningServer) -> None:
    body = {**greedy("a long question " * 8), "temperature": 0.5}
    first, second = (post(server.address, CHAT, body)[1]["usage"] for _ in range(2))
    assert first["prompt_tokens"] == second["prompt_tokens"]
    assert second["prompt_tokens_details"]["cached_tokens"] == second["prompt_tokens"] - 1


def test_who_hangs_up_is_cancelled(server: RunningServer) -> None:
    cancelled = f'requests_total{{endpoint="{CHAT}",outcome="cancelled"}}'
    body = json.dumps(greedy("hello", max_tokens=300)).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(server.address)
    connection.sendall(head.encode() + body)
    connection.close()
    wait_for(server.address, cancelled, 1)
    wait_for(server.address, "requests_running", 0)
    assert post(server.address, CHAT, greedy("hello"))[0] == 200


def test_who_connects_and_says_nothing_is_not_waited_for(
    server: RunningServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "HEADER_SECONDS", 0.1)
    with socket.create_connection(server.address, timeout=30) as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nHost: lo")
        assert connection.recv(100) == b""
    assert get(server.address, "/health") == '{"status":"ok"}'


def test_connections_beyond_the_limit_are_refused(tiny: Path) -> None:
    with RunningServer(tiny, backend="numpy", settings={"max_connections": 2}) as server:
        with (
            socket.create_connection(server.address),
            closing(http.client.HTTPConnection(*server.address, timeout=30)) as second,
            closing(http.client.HTTPConnection(*server.address, timeout=30)) as third,
        ):
            second.request("GET", "/health")
            assert second.getresponse().read() == b'{"status":"ok"}'
            third.request("GET", "/health")
            assert third.getresponse().status == 503
        wait_for(server.address, "model_loaded", 1)


def test_nonsense_instead_of_http_is_refused(server: RunningServer) -> None:
    with socket.create_connection(server.address) as connection:
        connection.sendall(b"\x00\xffnonsense\r\n\r\n")
        assert b"400" in connection.recv(100)
    assert get(server.address, "/health") == '{"status":"ok"}'


def test_a_websocket_is_refused_without_advice_to_install_a_library(
    server: RunningServer, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(http.client.HTTPConnection(*server.address, timeout=60)) as connection:
        headers = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        connection.request("GET", "/v1/responses", headers=headers)
        assert connection.getresponse().status == 426
    assert "pip install" not in caplog.text


def test_a_signal_lets_requests_end_and_then_the_server(tiny: Path, tmp_path: Path) -> None:
    options = ["--backend", "numpy", "--cache-dir", str(tmp_path / "cache")]
    with ServeProcess("-m", str(tiny), *options) as process:
        connection = http.client.HTTPConnection(*process.address, timeout=60)
        body = greedy("hello", max_tokens=200, stream=True)
        connection.request("POST", CHAT, json.dumps(body))
        response = connection.getresponse()
        first = response.readline()
        process.signal()
        rest = response.read()
        connection.close()
        assert first.startswith(b"data: ")
        assert rest.endswith(b"data: [DONE]\n\n")
        assert process.wait() == 0
    assert list((tmp_path / "cache").iterdir())


def test_what_was_evaluated_is_reused_after_a_restart(tiny: Path, tmp_path: Path) -> None:
    body = {**greedy("a long question " * 8), "temperature": 0.5}
    reused = []
    for _ in range(2):
        with RunningServer(tiny, backend="numpy", scheduling={"cache_dir": tmp_path}) as server:
            usage = post(server.address, CHAT, body)[1]["usage"]
            reused.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert reused == [0, usage["prompt_tokens"] - 1]


def test_a_second_signal_ends_at_once(tiny: Path) -> None:
    with ServeProcess("-m", str(tiny), "--backend", "numpy", "--parallel", "1") as process:
        connections = []
        for _ in range(8):  # more than can be answered soon
            connection = http.client.HTTPConnection(*process.address, timeout=60)
            body = greedy("hello", max_tokens=380, stream=True, n=1)
            connection.request("POST", CHAT, json.dumps(body))
            connections.append(connection)
        connections[0].getresponse().readline()
        process.signal()
        while "another signal" not in process.line():
            pass
        process.signal()
        assert process.wait() == 0
        while line := process.line():
            assert "Traceback" not in line, process.lines
        for connection in connections:
            connection.close()


def test_an_engine_that_fails_ends_the_server_although_a_request_waits() -> None:
    engine = ScriptedEngine(Say("Hello.", waits=True))

    def fail() -> None:
        engine.submitted.wait(30)
        raise RuntimeError("the engine has failed")

    engine.serve_forever = fail  # type: ignore[method-assign]
    settings = ServerSettings(port=0)
    listener = listen(settings)
    server = Server(OneModel(lambda: scripted_model(engine)), settings, listener)
    connection = http.client.HTTPConnection(*listener.getsockname(), timeout=60)
    asking = threading.Thread(
        target=connection.request, args=("POST", CHAT, json.dumps(greedy("x")))
    )
    with pytest.raises(RuntimeError, match="the engine has failed"):
        server.run(lambda model: asking.start())
    asking.join()
    connection.close()


# ---- command lines that are wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "either --model or --demo"),
        (["-m", "x", "--demo"], "either --model or --demo"),
        (["-m", "x", "--host", "0.0.0.0"], "--api-key-file"),
        (["-m", "x", "--port", "99999"], "99999"),
        (["-m", "x", "--parallel", "0"], "0"),
    ],
)
def test_a_command_line_that_is_wrong_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = main(["serve", *options])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert words in capsys.readouterr().err


def test_without_its_libraries_the_command_says_how_to_get_them(
    tiny: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "airllm.server.run")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "-m", str(tiny)]) == 1
    error = capsys.readouterr().err
    assert "the server needs uvicorn" in error
    assert "pip install starlette uvicorn" in error


def test_a_port_that_is_taken_is_named(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["serve", "-m", str(tiny), "--port", str(port)]) == 1
        assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_a_key_file_without_keys_is_refused(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text("\n\n")
    assert main(["serve", "-m", str(tiny), "--api-key-file", str(tmp_path / "keys")]) == 1
    assert "has no key" in capsys.readouterr().err


def test_a_model_that_cannot_be_opened_ends_the_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bad.gguf").write_bytes(b"GGUF")
    assert main(["serve", "-m", str(tmp_path / "bad.gguf"), "--port", "0"]) == 1
    assert "bad.gguf" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named_with_the_way_out() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(OSError, match=f"--port takes another port.*127.0.0.1:{port}"):
            listen(ServerSettings(port=port))
