"""The first hour in a shell on a terminal: what is on the screen at each step, and that it can be
played again. The recording lies in build/first_hour.cast."""

import json
import shutil
from pathlib import Path

import pytest
from extension import require_cpp

pytest.importorskip("huggingface_hub")

from first_hour import RECORDING, TINY_RAM, Shell, first_hour, shell_with_a_hub


@pytest.fixture(autouse=True)
def _bash() -> None:
    require_cpp()
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")


@pytest.mark.variant
def test_the_first_hour_goes_as_it_should() -> None:
    with shell_with_a_hub() as shell:
        first_hour(shell, TINY_RAM)
    header, *events = map(json.loads, RECORDING.read_text(encoding="utf-8").splitlines())
    assert (header["version"], header["width"], header["height"]) == (2, 80, 24)
    times = [time for time, _, _ in events]
    assert times == sorted(times)
    assert {kind for _, kind, _ in events} == {"o"}
    assert "airllm: deleted hf.co/org/repo:Q4_0" in "".join(text for _, _, text in events)


def output(shell: Shell, command: str) -> str:
    shell.run(command)
    return shell.prompt().strip("\n")


def test_on_a_narrow_terminal_no_word_of_a_note_is_cut(tmp_path: Path) -> None:
    with shell_with_a_hub(recording=tmp_path / "cast", columns=40) as shell:
        shell.wait_for("$ ")
        said = output(shell, "airllm run mistral")
        usage = output(shell, "airllm chat --model m --no-such-option")
        shell.type("exit\n")
    assert said.replace("\n", " ").startswith("airllm: error: mistral: no such file, and no model")
    assert max(map(len, said.split("\n"))) <= 40
    assert usage.replace("\n", " ").endswith("error: unrecognized arguments: --no-such-option")


MISTAKES = [
    ("airllm run nosuch.gguf Hi", "nosuch.gguf: no such file"),
    ("airllm run /etc Hi", "/etc"),
    ("airllm run half.gguf Hi", "half.gguf"),
    ("airllm run /etc/passwd Hi", "not a GGUF file"),
    ("airllm run hf.co/org/other Hi", "org/other"),
    ("airllm chatt", "chatt"),
    ("airllm run", "MODEL"),
]


@pytest.mark.variant
def test_mistakes_get_a_line_that_names_them_and_no_traceback(tmp_path: Path) -> None:
    with shell_with_a_hub(recording=tmp_path / "cast", columns=200) as shell:
        shell.wait_for("$ ")
        output(shell, "head -c 5000 model.gguf > half.gguf; mkdir folder")
        found = [(command, named, output(shell, command)) for command, named in MISTAKES]
        shell.type("exit\n")
    for command, named, said in found:
        assert named in said, (command, said)
        assert "Traceback" not in said
        assert len(said.split("\n")) <= 10, (command, said)
