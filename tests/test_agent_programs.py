"""Codex and Claude Code themselves, run against a tiny model whose answers are scripted.

`pip install '.[test-agents]'` brings Codex. Claude Code's program comes with `claude-agent-sdk`,
and is not open source; whoever wants its test installs that package.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("llguidance")

import agent_session

PACKAGES = {"codex": "openai-codex-cli-bin", "claude": "claude-agent-sdk"}


def session(name: str, folder: Path) -> dict[str, Any]:
    if agent_session.program(name) is None:
        pytest.skip(f"{PACKAGES[name]} is not installed")
    ended = subprocess.run(
        [sys.executable, agent_session.__file__, name, str(folder)],
        capture_output=True,
        text=True,
        timeout=2 * agent_session.SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    if "cannot" in told:
        pytest.skip(f"no network of its own for the agent: {told['cannot']}")
    return told


@pytest.mark.parametrize("name", list(PACKAGES))
def test_an_agent_runs_its_tools_and_nothing_is_evaluated_twice(name: str, tmp_path: Path) -> None:
    told = session(name, tmp_path)
    assert told["code"] == 0, told
    assert "That is all." in told["out"]
    first, second, third = told["requests"]  # the question, after two calls, and after one more
    listed, read = second["end"].index("tiny.gguf"), second["end"].index("it works")
    assert listed < read  # in the order of the calls
    assert "23 letter.txt" in third["end"]
    assert first["prompt"] > 8000  # of bytes: the agent's instructions and tools were there
    assert first["reused"] == 0
    # The thought that the first prompt's end began is told otherwise in the next one.
    assert second["reused"] >= first["prompt"] - 16
    assert third["reused"] >= second["prompt"] - 16
    assert third["prompt"] - third["reused"] < 800
