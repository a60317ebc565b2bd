"""What the README says is so: its programs run, its commands are CI's, it names every variable."""

import os
import re
from pathlib import Path

import pytest

from airllm import hub, layer_engine

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```python\n(.*?)^```", README, re.M | re.S)
SOURCES = [
    path
    for folder in ("airllm", "cpp_ext", "tests")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".py", ".cpp", ".h")
]


def test_the_engines_program_runs(capsys, monkeypatch):
    model = hub.find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if model is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`")
    monkeypatch.setattr(hub, "pull", lambda name: {"smollm2-135m": model}[name])
    [program] = [text for text in PROGRAMS if layer_engine.__name__ in text]
    exec(program, {})
    output = capsys.readouterr().out
    assert output.startswith("The capital of France is Paris.")
    assert output.endswith(" Paris\n")


def test_the_operations_program_runs(capsys):
    [program] = [text for text in PROGRAMS if "tensor_ops_hybrid" in text]
    exec(program, {})
    assert capsys.readouterr().out.endswith(" (4, 4)\n")


def test_every_program_is_tested():
    assert len(PROGRAMS) == 2


def test_ci_runs_the_readmes_commands():
    ci = (ROOT / ".ci/run").read_text(encoding="utf-8")
    commands = re.findall(r"^    (python -m pip .*)", README, re.M)
    assert len(commands) == 2
    assert all(command in ci for command in commands)


def test_every_variable_of_our_own_is_explained():
    read = re.compile(r"""(?:environ\S*[(\[]|getenv\()["'](\w+)["']""")
    names = {name for path in SOURCES for name in read.findall(path.read_text(encoding="utf-8"))}
    ours = {name for name in names if name.startswith(("AIRLLM_", "TENSOR_OPS_", "XSIMD_"))}
    assert {"AIRLLM_HOME", "TENSOR_OPS_NUM_THREADS", "XSIMD_INCLUDE_DIR"} <= ours
    assert [name for name in sorted(ours) if f"`{name}" not in README] == []


def test_every_instruction_set_is_in_the_table():
    isas = [path.stem for path in sorted((ROOT / "cpp_ext/isa").glob("*.cpp"))]
    assert isas
    assert [isa for isa in isas if f"| `{isa}` |" not in README] == []


@pytest.mark.parametrize("path", re.findall(r"\]\((?!http)([^)#]+)\)", README))
def test_every_link_leads_somewhere(path):
    assert (ROOT / path).exists()
