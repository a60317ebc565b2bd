"""The command line as a whole: help, exit status, what goes to stdout and what to stderr."""

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fake_engine import FakeEngine

from airllm.cli import main

COMMANDS = [
    *("demo", "run", "pull", "list", "show", "rm", "generate", "chat", "batch", "convert"),
    *("perplexity", "bench", "plan", "worker", "info"),
]
GENERATE = ["generate", "--model", "m", "--prompt", "p"]


def usage_error(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    """What stderr says to a command line that is wrong."""
    with pytest.raises(SystemExit) as exit:
        main(argv)
    assert exit.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_by_example_and_documents_its_exit_status(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit:
        main([command, "--help"])
    assert exit.value.code == 0
    text = capsys.readouterr().out
    assert f"  airllm {command}" in text.split("examples:")[1]
    assert "130  interrupted" in text.split("exit status:")[1]
    assert max(map(len, text.splitlines())) <= 100


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    assert [command for command in COMMANDS if f"\n    {command} " not in text] == []


def test_help_imports_neither_numpy_nor_the_engine() -> None:
    program = (
        "import sys, airllm.cli\n"
        "try: airllm.cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'tokenizers', 'jinja2', 'tqdm', 'tensor_ops_cpp'} & set(sys.modules)\n"
        "sys.exit(f'imported: {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("columns", [40, 80])
def test_without_a_command_it_says_what_to_type_first_and_where_models_come_from(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert main([]) == 2
    out, said = capsys.readouterr()
    assert out == ""
    for words in ("usage: airllm [options] COMMAND ...", "airllm demo", "airllm run model.gguf"):
        assert words in said
    assert "airllm run hf.co/ORG/REPO:QUANT" in said
    *lines, last = said.splitlines()
    assert last == "airllm: error: expected a COMMAND; airllm --help lists them all"
    assert [line for line in lines if len(line) > columns] == []


@pytest.mark.parametrize(
    ("option", "value", "fault"),
    [
        ("--max-tokens", "0", "0 is less than 1"),
        ("--max-tokens", "many", "'many' is not a whole number"),
        ("--temperature", "-1", "-1 is negative"),
        ("--temperature", "nan", "nan is not a finite number"),
        ("--top-k", "-1", "-1 is less than 0"),
        ("--top-p", "1.5", "1.5 is not between 0 and 1"),
        ("--min-p", "x", "'x' is not a number"),
        ("--repeat-penalty", "0", "0 is not above 0"),
        ("--stop", "", "the text is empty"),
        ("--threads", "0", "0 is less than 1"),
        ("--decode-threads", "0", "0 is less than 1"),
        ("--context", "0", "0 is less than 1"),
        ("--backend", "gpu", "invalid choice: 'gpu'"),
        ("--kv-type", "q1", "invalid choice: 'q1'"),
    ],
)
def test_an_option_out_of_range_is_a_usage_error_that_names_it(
    option: str, value: str, fault: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said = usage_error(capsys, *GENERATE, f"{option}={value}")
    assert option in said
    assert fault in said


def test_an_unknown_option_shows_the_usage_of_its_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    said = usage_error(capsys, *GENERATE, "--max-new-tokens", "3")
    assert said.startswith("usage: airllm generate -m M [options] [PROMPT]\n")
    assert "unrecognized arguments: --max-new-tokens (did you mean --max-tokens?)" in said
    assert "airllm generate --help" in said
    said = usage_error(capsys, *GENERATE, "--temprature=3")
    assert "did you mean --temperature?" in said


@pytest.mark.parametrize("columns", [50, 80, 200])
@pytest.mark.parametrize("command", [*COMMANDS, ""])
def test_help_fits_the_terminal(
    command: str,
    columns: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        main([*filter(None, [command]), "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if len(line) > columns] == []


def test_an_example_that_is_cut_is_still_a_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    with pytest.raises(SystemExit):
        main(["chat", "--help"])
    text = capsys.readouterr().out.replace(" \\\n     ", "")
    assert "airllm chat -m smollm2-135m --session ada.session\n" in text
    assert "# the same on another day" in text


def test_options_are_not_abbreviated(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--temp (did you mean --temperature?)" in usage_error(capsys, *GENERATE, "--temp", "0")


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("model.gguf: truncated"), "airllm: error: model.gguf: truncated\n"),
        (
            FileNotFoundError(2, "No such file or directory", "x.gguf"),
            "airllm: error: x.gguf: No such file or directory\n",
        ),
        (MemoryError(), "airllm: error: out of memory\n"),
        (MemoryError("std::bad_alloc"), "airllm: error: out of memory\n"),
        (MemoryError("90 MiB"), "airllm: error: out of memory: 90 MiB\n"),
        (ImportError("tensor_ops_cpp is missing"), "airllm: error: tensor_ops_cpp is missing\n"),
    ],
)
def test_an_expected_error_is_one_line_and_status_1(
    error: Exception,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    FakeEngine([error]).install(monkeypatch)
    assert main(GENERATE) == 1
    assert capsys.readouterr() == ("", line)


def test_with_json_an_error_is_json_on_stdout_as_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failed(*argv: str) -> dict[str, object]:
        status = main(argv)
        found: dict[str, object] = json.loads(capsys.readouterr().out)["error"]
        assert found["status"] == status != 0
        return found

    FakeEngine([ValueError("m: truncated")], [KeyboardInterrupt()]).install(monkeypatch)
    said = failed(*GENERATE, "--json")
    assert said == {"type": "ValueError", "message": "m: truncated", "status": 1}
    assert failed(*GENERATE, "--json")["status"] == 130
    assert "one prompt" in str(failed(*GENERATE, "again", "--json")["message"])
    with pytest.raises(SystemExit) as exit:
        main([*GENERATE, "--json", "--top-k", "x"])
    assert exit.value.code == 2
    out, err = capsys.readouterr()
    assert "'x' is not a whole number" in json.loads(out)["error"]["message"]
    assert "'x' is not a whole number" in err


def test_debug_shows_where_an_error_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    FakeEngine([ValueError("bad")], [ValueError("bad")]).install(monkeypatch)
    with pytest.raises(ValueError, match="bad"):
        main([*GENERATE, "--debug"])
    monkeypatch.setenv("AIRLLM_DEBUG", "1")
    with pytest.raises(ValueError, match="bad"):
        main(GENERATE)


def test_a_fault_of_our_own_is_not_dressed_up_as_the_users(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeEngine([ZeroDivisionError()]).install(monkeypatch)
    with pytest.raises(ZeroDivisionError):
        main(GENERATE)
    assert "please report" in capsys.readouterr().err


def test_ctrl_c_ends_with_one_line_and_status_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeEngine(["Once", KeyboardInterrupt()]).install(monkeypatch)
    assert main(GENERATE) == 130
    assert capsys.readouterr() == ("Once\n", "airllm: interrupted\n")


SPEAKS_UNTIL_STOPPED = """
import itertools, sys
sys.path.insert(0, {tests!r})
from fake_engine import FakeEngine
from airllm.cli import main, model
model.open_engine = lambda args, **options: FakeEngine(itertools.repeat("again and again "))
sys.exit(main({argv!r}))
"""


SPEAKS_ONCE = SPEAKS_UNTIL_STOPPED.replace('itertools.repeat("again and again ")', '["Yes."]')


def start(*argv: str, stdout: int = subprocess.PIPE) -> "subprocess.Popen[str]":
    """The command in a process of its own, with a model that never stops to speak."""
    tests = Path(__file__).parent
    program = SPEAKS_UNTIL_STOPPED.format(tests=str(tests), argv=list(argv))
    return subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
    )


def test_a_reader_that_goes_away_ends_it_quietly_with_status_141() -> None:
    with start(*GENERATE) as process:
        assert process.stdout is not None
        assert process.stdout.read(5) == "again"
        process.stdout.close()
        assert process.wait(timeout=30) == 141
        assert process.stderr is not None
        assert process.stderr.read() == ""


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_streams_that_are_closed_are_empty_or_take_everything(closed: str) -> None:
    tests = Path(__file__).parent
    program = SPEAKS_ONCE.format(tests=str(tests), argv=["chat", "--model", "m"])
    done = subprocess.run(
        ["sh", "-c", f'printf "Well?\\n" | "$0" -c "$1" {closed}', sys.executable, program],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(tests.parent)},
    )
    assert done.returncode == 0
    assert done.stdout == ("Yes.\n" if closed == "2>&-" else "")
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_notes_that_stderr_does_not_take_are_lost_and_no_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    FakeEngine(["Once"]).install(monkeypatch)
    with Path("/dev/full").open("w", buffering=1) as full:
        monkeypatch.setattr("sys.stderr", full)
        assert main(GENERATE) == 0
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert capsys.readouterr().out == "Once\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_said_once_with_status_1() -> None:
    with Path("/dev/full").open("w") as full, start(*GENERATE, stdout=full.fileno()) as process:
        assert process.wait(timeout=30) == 1
        assert process.stderr is not None
        assert process.stderr.read() == "airllm: error: stdout: No space left on device\n"
