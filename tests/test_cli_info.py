"""airllm info: everything that a person who asks "why is it slow" has to know."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from airllm.cli import info, main

Capture = pytest.CaptureFixture[str]


def test_json_has_every_section(capsys: Capture) -> None:
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == [
        "airllm", "cpu", "memory", "backend", "threads", "build", "models", "environment",
    ]  # fmt: skip
    assert found["cpu"]["model"]
    assert found["threads"]["in_use"] >= 1
    assert found["threads"]["reason"]


def test_every_variable_that_matters_is_there_with_its_present_value(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    monkeypatch.delenv("TENSOR_OPS_ISA", raising=False)
    environment = info.collect()["environment"]
    assert environment["AIRLLM_HOME"] == str(tmp_path)
    assert environment["TENSOR_OPS_ISA"] is None


def test_models_that_are_not_here_are_listed_as_not_fetched(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    models = info.collect()["models"]
    assert models["found"] == {}
    assert "smollm2-135m" in models["not_fetched"]


def test_the_text_has_sections_names_and_what_variables_are_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Capture
) -> None:
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path))
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith(" ")] == [
        "airllm", "cpu", "memory", "backend", "threads", "build", "models", "environment",
    ]  # fmt: skip
    home = next(line for line in lines if line.startswith("  AIRLLM_HOME"))
    assert home.split() == ["AIRLLM_HOME", str(tmp_path), "(folder", "of", "the", "models)"]


def test_a_backend_that_does_not_start_is_shown_with_the_reason() -> None:
    """In a process of its own: the choice of a backend is made once."""
    program = "import sys, airllm.cli; sys.exit(airllm.cli.main(['info', '--json']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        env={**os.environ, "AIRLLM_BACKEND": "abacus", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    found = json.loads(done.stdout)
    assert done.returncode == 0
    assert found["backend"]["backend"] is None
    assert 'AIRLLM_BACKEND is "abacus"' in found["backend"]["error"]
    assert found["threads"] == {}
