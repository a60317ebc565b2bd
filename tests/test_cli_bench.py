"""airllm bench and airllm perplexity: what they measure, and the form in which they say it."""

import json
import math
import sys
from pathlib import Path

import pytest
from fake_engine import WORDS, FakeEngine

from airllm.cli import main

Capture = pytest.CaptureFixture[str]


def run_json(capsys: Capture, *argv: str) -> dict[str, object]:
    assert main([*argv, "--json"]) == 0
    found: dict[str, object] = json.loads(capsys.readouterr().out)
    return found


def test_bench_measures_every_prompt_length_then_every_generation_length(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    found = run_json(capsys, "bench", "-m", "m", "-p", "8,4", "-n", "3", "-r", "2")
    results = found["results"]
    assert isinstance(results, list)
    assert [result["test"] for result in results] == ["pp8", "pp4", "tg3"]
    for result in results:
        assert result["tokens_per_second"] > 0
        assert result["stddev"] >= 0
        assert result["threads"] >= 1


def test_bench_opens_the_model_for_each_number_of_threads(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine()
    seen = []

    def open_engine(args: object, *, context: int, threads: int | None) -> FakeEngine:
        seen.append((context, threads))
        return engine

    monkeypatch.setattr("airllm.cli.model.open_engine", open_engine)
    run_json(capsys, "bench", "-m", "m", "-p", "8", "-n", "16", "-t", "1,2", "-r", "1")
    assert seen == [(16, 1), (16, 2)]  # a context that just holds the longest test


def test_bench_prints_a_table_on_stdout(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    FakeEngine().install(monkeypatch)
    assert main(["bench", "-m", "m", "-p", "8", "-n", "4", "-r", "2"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0].split() == ["backend", "isa", "threads", "test", "tokens/s"]
    assert [line.split()[3] for line in lines[1:]] == ["pp8", "tg4"]
    assert all("±" in line for line in lines[1:])
    assert err == ""


def test_bench_of_nothing_is_a_usage_error(capsys: Capture) -> None:
    assert main(["bench", "-m", "m", "-p", "0", "-n", "0"]) == 2
    assert "nothing to measure" in capsys.readouterr().err


def test_bench_of_a_batch_says_how_many_times_one_sequences_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    found = run_json(capsys, "bench", "-m", "m", "-p", "4", "-n", "3", "--batch", "2,5", "-r", "1")
    results = found["results"]
    assert isinstance(results, list)
    assert [result["test"] for result in results] == ["pp4", "tg3", "tg3x2", "tg3x5"]
    assert engine.batches == [(2, 3), (5, 3)]
    speeds = [result["tokens_per_second"] for result in results]
    assert [result["ratio_to_single"] for result in results] == [
        None,
        None,
        pytest.approx(speeds[2] / speeds[1]),
        pytest.approx(speeds[3] / speeds[1]),
    ]


def test_a_profile_is_a_table_of_operations_and_what_lies_between(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    assert main(["bench", "-m", "m", "-p", "0", "-n", "3", "-r", "1", "--profile"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[4].split() == ["op", "calls", "ms", "share", "GB/s", "GFLOP/s"]
    names = [line[:24].strip() for line in lines[5:]]
    assert names == ["linear ffn_up", "add", "(arguments and threads)", "(Python)"]
    assert lines[5].split()[2:4] == ["2", "0.100"]  # 6 calls and 0.3 ms, in three passes
    assert lines[5].split()[-2:] == ["20.0", "100.0"]
    assert err == ""


def test_a_profile_in_json_has_every_number(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    found = run_json(capsys, "bench", "-m", "m", "-p", "0", "-n", "3", "-r", "1", "--profile")
    results = found["results"]
    assert isinstance(results, list)
    profile = results[0]["profile"]
    assert profile["passes"] == 3
    assert profile["ops"][0] == {
        "name": "linear ffn_up",
        "calls": 6,
        "seconds": 3e-4,
        "nbytes": 6_000_000,
        "flops": 30_000_000,
        "gbytes_per_second": pytest.approx(20.0),
        "gflops_per_second": pytest.approx(100.0),
    }
    assert profile["arguments_and_threads_seconds"] == pytest.approx(1e-4)
    python = profile["seconds"] - 5e-4
    assert profile["python_seconds"] == pytest.approx(python)
    assert profile["python_share"] == pytest.approx(python / profile["seconds"])


def test_a_plot_is_drawn_where_matplotlib_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    FakeEngine().install(monkeypatch)
    arguments = ["-p", "4", "-n", "3", "-d", "0,8", "--batch", "2", "-r", "1"]
    assert main(["bench", "-m", "m", *arguments, "--plot", str(tmp_path / "a.png")]) == 0
    names = ["a-batch.png", "a-context.png", "a-operations.png", "a-roofline.png"]
    assert sorted(path.name for path in tmp_path.glob("*.png")) == names
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in names)
    assert "linear ffn_up" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "status", "fault"),
    [
        (["--beside", "x.json"], 2, "--beside is for pictures"),
        (["--plot", "speed"], 2, "expected the ending .png or .svg or .pdf"),
        (["--plot", "/nowhere/speed.png"], 1, "/nowhere: No such file"),
        (["--plot", "speed.png", "--beside", "/nowhere.json"], 1, "/nowhere.json: No such file"),
    ],
)
def test_what_could_not_be_drawn_is_refused_before_anything_is_measured(
    options: list[str],
    status: int,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    engine = FakeEngine().install(monkeypatch)
    assert main(["bench", "-m", "m", *options]) == status
    assert fault in capsys.readouterr().err
    assert engine.resets == 0


def test_a_depth_is_in_the_context_before_each_test(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    found = run_json(capsys, "bench", "-m", "m", "-p", "4", "-n", "3", "-d", "0,50", "-r", "1")
    results = found["results"]
    assert isinstance(results, list)
    assert [result["test"] for result in results] == ["pp4", "pp4@50", "tg3", "tg3@50"]
    assert engine.opened_with["context"] == 54


def test_a_plot_without_matplotlib_is_refused_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["bench", "-m", "m", "--plot", "profile.png"]) == 1
    out, err = capsys.readouterr()
    assert "--plot needs matplotlib; install it with: " in err
    assert (out, engine.resets) == ("", 0)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("a b c " * 5 + "\n")
    return path


def test_perplexity_of_a_model_that_knows_nothing_is_its_vocabulary(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    found = run_json(capsys, "perplexity", "-m", "m", "--file", str(text), "--context", "6")
    assert found.pop("perplexity") == pytest.approx(len(WORDS), rel=1e-12)
    assert found.pop("stderr") == pytest.approx(0, abs=1e-12)
    assert found == {"chunks": 2, "tokens": 4, "context": 6, "stream": None}
    assert engine.opened_with["context"] == 6


def test_perplexity_prints_one_line(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    assert main(["perplexity", "-m", "m", "-f", str(text), "--context", "6"]) == 0
    out, err = capsys.readouterr()
    assert out == "perplexity 6.0000 ± 0.0000 (4 tokens in 2 chunks of 6)\n"
    assert err == ""


def test_an_infinite_perplexity_is_null_in_json(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    engine = FakeEngine().install(monkeypatch)
    uniform = engine.forward

    def broken(tokens: list[int], *, last_only: bool = True, on_progress: object = None) -> object:
        return uniform(tokens, last_only=last_only) + math.nan

    monkeypatch.setattr(engine, "forward", broken)
    found = run_json(capsys, "perplexity", "-m", "m", "-f", str(text), "--context", "6")
    assert found["perplexity"] is None


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (b"\xff\xfe", "text.txt: not UTF-8"),
        (b"a b", "the text has 2 tokens, less than one chunk of 6"),
    ],
)
def test_a_text_that_cannot_be_scored_is_refused(
    data: bytes, fault: str, text: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    FakeEngine().install(monkeypatch)
    text.write_bytes(data)
    assert main(["perplexity", "-m", "m", "-f", str(text), "--context", "6"]) == 1
    assert fault in capsys.readouterr().err


def test_a_text_that_is_not_there_is_named(capsys: Capture) -> None:
    assert main(["perplexity", "-m", "m", "-f", "/nowhere/text.txt"]) == 1
    assert capsys.readouterr().err == (
        "airllm: error: /nowhere/text.txt: No such file or directory\n"
    )
