"""Code within the sentences of README and docs: commands, options, files, names and messages exist.

What is looked up: `code` that begins like a command, an option, a file of the repository, a name of
airllm's or a method of the engine's; and messages, in bold, that begin a paragraph.
"""

import importlib
import re
from functools import cache
from pathlib import Path

import doc_commands
import doc_pages
import pytest
from doc_commands import WrongCommandError
from doc_pages import ALL, PAGES, README, ROOT, Span
from doc_texts import texts

from airllm import cli
from airllm.layer_engine import LayerWiseInferenceEngine

SPANS = [span for page in ALL for span in doc_pages.spans(page)]
# Of programs of other projects.
FOREIGN_OPTIONS = {
    *("--buffer-float-type", "--max-seq-len", "--net-turbo", "--workers"),  # dllama's
    "--no-deps",  # pip's
    "--tools",  # Claude Code's
}


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
