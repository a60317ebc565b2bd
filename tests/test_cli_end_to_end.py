"""Every command that runs a model, on a real file and the real engine: a tiny model, on NumPy."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_tiny_model

from airllm.cli import main
from airllm.layer_engine import LayerWiseInferenceEngine

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    return str(write_tiny_model(tmp_path).path)


def run(capsys: Capture, *argv: str) -> str:
    assert main([*argv, "--backend", "numpy", "--quiet"]) == 0
    return capsys.readouterr().out


def test_generate_says_what_the_engine_says(tiny: str, capsys: Capture) -> None:
    options = ["--raw", "--prompt", "hello", "--max-tokens", "5", "--temperature", "0", "--json"]
    found = json.loads(run(capsys, "generate", "-m", tiny, *options))
    with LayerWiseInferenceEngine(tiny, backend="numpy") as engine:
        expected = engine.generate("hello", max_new_tokens=5, temperature=0)
    assert found["text"] == expected.text
    assert tuple(found["tokens"]) == expected.tokens
    assert found["finish_reason"] == expected.finish_reason
    assert found["backend"] == "numpy"


def test_the_streamed_answer_is_the_whole_answer(tiny: str, capsys: Capture) -> None:
    options = ["-m", tiny, "--chat", "--prompt", "hello", "--max-tokens", "9", "--seed", "4"]
    streamed = run(capsys, "generate", *options)
    whole = json.loads(run(capsys, "generate", *options, "--json"))["text"]
    assert whole
    assert streamed == whole + "\n"


def test_a_chat_that_outgrows_the_context_ends_with_the_way_to_go_on(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" * 30))
    options = ["--max-tokens", "4", "--temperature", "0", "--context", "64"]
    assert main(["chat", "-m", tiny, "--backend", "numpy", *options]) == 1
    _, err = capsys.readouterr()
    assert "context of 64 tokens is full" in err.splitlines()[-1]


def test_a_chat_in_two_sessions_says_what_one_would_have_said(
    tiny: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    options = ["-m", tiny, "--max-tokens", "4", "--temperature", "0"]

    def chat(typed: str, *more: str) -> str:
        monkeypatch.setattr("sys.stdin", io.StringIO(typed))
        return run(capsys, "chat", *options, *more)

    session = ["--session", str(tmp_path / "s")]
    expected = chat("hello\nworld\n")
    assert chat("hello\n", *session) + chat("world\n", *session) == expected


def test_a_chat_that_shifts_goes_on_and_on(
    tiny: str, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n" * 12))
    options = ["--max-tokens", "4", "--temperature", "0", "--context", "64", "--on-full", "shift"]
    assert main(["chat", "-m", tiny, "--backend", "numpy", *options]) == 0
    assert "messages are forgotten" in capsys.readouterr().err


def test_perplexity_is_that_of_the_engines_logits(
    tiny: str, tmp_path: Path, capsys: Capture
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("hello world " * 12)
    found = json.loads(
        run(capsys, "perplexity", "-m", tiny, "-f", str(text), "--context", "16", "--json")
    )
    losses = []
    with LayerWiseInferenceEngine(tiny, backend="numpy", context=16) as engine:
        tokens = engine.tokenize("hello world " * 12)
        for start in range(0, len(tokens) - 15, 16):
            chunk = tokens[start : start + 16]
            if engine.tokenizer.add_bos:
                chunk[0] = engine.tokenizer.bos_id or 0
            engine.reset()
            logits = engine.forward(chunk, last_only=False).astype(np.float64)
            log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            losses += [-log_p[position, chunk[position + 1]] for position in range(8, 15)]
    assert found["tokens"] == len(losses)
    assert found["perplexity"] == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)


def test_bench_measures_the_engine(tiny: str, capsys: Capture) -> None:
    found = json.loads(run(capsys, "bench", "-m", tiny, "-p", "8", "-n", "4", "-r", "2", "--json"))
    assert [result["test"] for result in found["results"]] == ["pp8", "tg4"]
    assert all(result["tokens_per_second"] > 0 for result in found["results"])


def test_a_file_that_is_no_model_is_one_line_that_names_it(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"not a model")
    assert main(["generate", "-m", str(path), "-p", "x"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"airllm: error: {path}: ")
    assert err.count("\n") == 1


def test_a_context_beyond_the_models_is_refused_with_its_limit(tiny: str, capsys: Capture) -> None:
    assert main(["generate", "-m", tiny, "-p", "x", "--context", "97"]) == 1
    assert "at most 96 tokens" in capsys.readouterr().err
