"""The README is short, its two commands are CI's, and its program answers as it says.

test_docs.py runs everything else that README and docs show.
"""

import os
import re

import doc_pages
import pytest
from doc_pages import README, ROOT

from airllm import LayerWiseInferenceEngine, hub


def test_it_is_read_in_a_quarter_of_an_hour():
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 250


def test_its_table_of_speeds_has_three_rows():
    rows = doc_pages.table(README, "model and work")
    assert len(rows) == 3


def test_the_speeds_are_those_of_the_performance_page():
    page = (ROOT / "docs/pages/performance.md").read_text(encoding="utf-8")
    for _, speed, ratio in doc_pages.table(README, "model and work"):
        assert re.search(rf"\| 2 \| {re.escape(speed)} \| {re.escape(ratio)} \|", page)


def test_the_engines_program_answers(capsys, monkeypatch):
    model = hub.find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if model is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`")
    monkeypatch.setattr(hub, "pull", lambda name: {"smollm2-135m": model}[name])
    [program] = [block.text for block in doc_pages.blocks(README) if block.language == "python"]
    assert LayerWiseInferenceEngine.__name__ in program
    exec(program, {})
    output = capsys.readouterr().out
    assert output.startswith("The capital of France is Paris.")
    assert output.endswith(" Paris\n")


def test_ci_runs_the_readmes_commands():
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    text = "".join(block.text for block in doc_pages.blocks(README) if block.language == "sh")
    commands = re.findall(r"^(python -m pip .*)", text, re.M)
    assert len(commands) == 3
    assert all(command in ci for command in commands[:2])  # a server would not end
