"""`airllm serve --models-dir` with tiny models: answers, memory, files that lie, signals."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from tiny_model import Sizes, write_tiny_model

pytest.importorskip("uvicorn")

from running_server import ServeProcess
from test_serve import CHAT, get, greedy, post

from airllm.cli import main
from airllm.hub import directory
from airllm.layer_engine import LayerWiseInferenceEngine

ROOT = Path(__file__).parent.parent
# 25 MB of weights, so that they show among what a process takes.
LARGE = Sizes(hidden=256, ffn=2048, n_layers=4, context=400)


def write(directory: Path, name: str, sizes: Sizes) -> Path:
    made = directory / "made"
    made.mkdir()
    path = directory / f"{name}.gguf"
    write_tiny_model(made, sizes=sizes).path.rename(path)
    shutil.rmtree(made)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("models")
    for n_layers, name in enumerate(("one", "two", "three"), 1):
        write(directory, name, Sizes(n_layers=n_layers, context=400))
    (directory / "liar.gguf").write_bytes((directory / "one.gguf").read_bytes()[:5000])
    return directory


def said(address: tuple[str, int], model: str, text: str = "hello") -> str:
    status, body = post(address, CHAT, {**greedy(text), "model": model})
    assert status == 200, body
    content: str = body["choices"][0]["message"]["content"]
    return content


def alone(path: Path, text: str = "hello") -> str:
    with LayerWiseInferenceEngine(path) as engine:
        question = [{"role": "user", "content": text}]
        return engine.generate(question, temperature=0, max_new_tokens=24).text


def loaded(address: tuple[str, int]) -> list[str]:
    return [id for id, state in states(address).items() if state == "loaded"]


def states(address: tuple[str, int]) -> dict[str, str]:
    data = json.loads(get(address, "/v1/models"))["data"]
    return {one["id"]: one["status"]["value"] for one in data}


def test_each_model_gives_its_own_answers_alone_and_beside_others(models: Path) -> None:
    names = ("one", "two", "three")
    expected = {name: alone(models / f"{name}.gguf") for name in names}
    assert len(set(expected.values())) == 3
    with ServeProcess("--models-dir", str(models), "--ram", "1GiB") as process:
        assert {name: said(process.address, name) for name in names} == expected
        assert loaded(process.address) == ["one", "three", "two"]
        found: list[tuple[str, str]] = []

        def ask(name: str) -> None:
            found.append((name, said(process.address, name)))

        threads = [threading.Thread(target=ask, args=(names[at % 3],)) for at in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(found) == sorted((name, expected[name]) for name in names for _ in range(4))
        status, body = post(process.address, CHAT, {**greedy("x"), "model": "liar"})
        assert status == 500
        assert "liar cannot be loaded: liar.gguf: " in body["error"]["message"]
        process.signal()
        assert process.wait() == 0


def test_models_that_do_not_fit_together_take_turns(models: Path) -> None:
    expected = {name: alone(models / f"{name}.gguf") for name in ("one", "two")}
    with ServeProcess("--models-dir", str(models), "--ram", "2MiB") as process:
        for name in ("one", "two", "one"):
            assert said(process.address, name) == expected[name]
            assert loaded(process.address) == [name]


def test_the_model_of_the_command_line_is_the_default_and_loaded_at_once(models: Path) -> None:
    options = ("-m", str(models / "two.gguf"), "--models-dir", str(models), "--name", "default")
    with ServeProcess(*options) as process:
        assert post(process.address, CHAT, greedy("hello"))[1]["model"] == "default"
        ids = [one["id"] for one in json.loads(get(process.address, "/v1/models"))["data"]]
        assert ids == ["default", "one", "three"]


def test_the_models_that_were_pulled_are_served_without_a_folder(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(models))
    monkeypatch.setenv("AIRLLM_ALIASES", "gpt-5=one,claude-*=two")
    with ServeProcess("--models-dir", "--alias", "claude-*=one") as process:
        for name in ("one", "gpt-5", "claude-opus-4-1"):
            assert said(process.address, name) == alone(models / "one.gguf")


def test_a_context_that_is_longer_than_a_models_is_the_models(models: Path) -> None:
    with ServeProcess("--models-dir", str(models), "--context", "100000") as process:
        said(process.address, "one")
        assert json.loads(get(process.address, "/props?model=one"))["context"] == 400


def test_a_model_that_is_deleted_while_it_answers_goes_on(models: Path, tmp_path: Path) -> None:
    path = tmp_path / "one.gguf"
    shutil.copy(models / "one.gguf", path)
    shutil.copy(models / "two.gguf", tmp_path / "two.gguf")
    with ServeProcess("--models-dir", str(tmp_path)) as process:
        first = said(process.address, "one")
        path.unlink()
        assert said(process.address, "one") == first  # nobody has looked at the folder since
        while loaded(process.address):
            pass
        assert post(process.address, CHAT, {**greedy("x"), "model": "one"})[0] == 404
        assert said(process.address, "two")


MEMORY = """
import json, sys
from pathlib import Path
from running_server import ServeProcess
from test_serve import CHAT, greedy, post
from test_serve_models import states

def resident(pid):
    words = Path(f"/proc/{pid}/status").read_text().split()
    return int(words[words.index("VmRSS:") + 1]) << 10

found = []
with ServeProcess("--models-dir", sys.argv[1], "--ram", sys.argv[2], "--context", "400") as server:
    for name in (*"abab", None):
        if name is None:
            post(server.address, "/api/generate", {"model": "b", "keep_alive": 0})
            while set(states(server.address).values()) != {"unloaded"}:
                pass
        else:
            body = {**greedy("hello", max_tokens=4), "model": name}
            assert post(server.address, CHAT, body)[0] == 200
        found.append(resident(server.process.pid))
print(json.dumps(found))
"""


@pytest.mark.parametrize("ram", ["36MiB", "24MiB"])
def test_a_model_that_is_unloaded_gives_its_memory_back(tmp_path: Path, ram: str) -> None:
    """With 36 MiB one model fits; with 24 MiB it is streamed."""
    a = write(tmp_path, "a", LARGE)
    shutil.copy(a, tmp_path / "b.gguf")
    n_bytes = a.stat().st_size
    run = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), ram],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        check=True,
    )
    *each, after = json.loads(run.stdout)
    # Four loads take no more than the first, but for what the C library keeps between the parts of
    # a model that is loaded, which comes and goes. A model that stayed would be there three times.
    assert max(each) < each[0] + 1.5 * n_bytes
    assert after < min(each) - (n_bytes / 2 if ram == "36MiB" else 0)


# ---- command lines that are wrong ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--models-dir", "/nothing/at/all"], "/nothing/at/all is no folder"),
        (["--models-dir", "--demo"], "either --model or --demo"),
        (["--models-dir", "--name", "x"], "--name is for the model of --model"),
        (["--models-dir", "--keep-alive", "-2"], "-2"),
        (["--models-dir", "--alias", "gpt-5"], "'gpt-5' is no NAME=MODEL"),
        (["--models-dir", "--alias", "g*t=one"], "'g*t=one' is no NAME=MODEL"),
        (["--demo", "--alias", "gpt-5=one"], "--alias is for the models of --models-dir"),
    ],
)
def test_a_command_line_that_is_wrong_is_refused(
    options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: Any = main(["serve", *options])
    except SystemExit as error:
        status = error.code
    assert status == 2
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "variable", "words"),
    [
        (["--alias", "gpt-5=four"], "", "'gpt-5' is to stand for 'four'; there are: "),
        (["--alias", "gpt-5=one", "--alias", "TWO=one"], "", "'TWO' is to stand for 'one', and is"),
        ([], "gpt-5=one, =", "AIRLLM_ALIASES: '=' is no NAME=MODEL"),
        ([], "gpt-5=four", "'gpt-5' is to stand for 'four'; there are: "),
    ],
)
def test_an_alias_that_leads_nowhere_is_refused_at_the_start(
    options: list[str],
    variable: str,
    words: str,
    models: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("AIRLLM_ALIASES", variable)
    assert main(["serve", "--models-dir", str(models), "--port", "0", *options]) == 1
    assert words in capsys.readouterr().err


def test_the_bound_of_a_folder_is_more_than_people_have() -> None:
    assert directory.MOST_FILES >= 10_000
