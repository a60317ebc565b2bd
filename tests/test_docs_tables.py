"""Settings, commands and tables of README and docs are those of the code."""

import argparse
import inspect
import itertools
import re
from pathlib import Path

import doc_commands
import doc_pages
import pytest
from doc_pages import ALL, README, ROOT
from doc_texts import variables_read
from test_layers import KNOWS, LAYERS

from airllm import cli
from airllm.formats.ggml_types import SUPPORTED_TYPES, TYPES
from airllm.formats.hf_quantization import METHODS as QUANTIZED_METHODS
from airllm.formats.numbers import WRITABLE
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import FAMILIES

SETTINGS = ROOT / "docs/pages/settings.md"
FORMATS = ROOT / "docs/pages/formats.md"
DEVELOPMENT = ROOT / "docs/pages/development.md"


def test_every_variable_of_our_own_is_among_the_settings() -> None:
    ours = {n for n in variables_read() if n.startswith(("AIRLLM_", "TENSOR_OPS_", "XSIMD_"))}
    assert {"AIRLLM_HOME", "TENSOR_OPS_NUM_THREADS", "XSIMD_INCLUDE_DIR"} <= ours
    explained = {name for table in doc_pages.tables(SETTINGS) for row in table[1:] for name in
                 re.findall(r"`([A-Z_]+)`", row[0])}  # fmt: skip
    assert ours - explained == set()


def test_every_variable_that_a_page_names_is_read_somewhere() -> None:
    ours = re.compile(r"\b((?:AIRLLM|TENSOR_OPS|XSIMD)_[A-Z_]+)\b")
    named = {
        name for page in ALL for span in doc_pages.spans(page) for name in ours.findall(span.text)
    }
    assert named - variables_read() == set()


def test_every_argument_of_the_engine_is_among_the_settings() -> None:
    engine = LayerWiseInferenceEngine
    methods = (engine.__init__, engine.generate, engine.stream, engine.astream)
    arguments = set(itertools.chain(*(inspect.signature(method).parameters for method in methods)))
    arguments -= {"self", "model_path", "prompt", "on_token", "on_progress"}
    text = SETTINGS.read_text(encoding="utf-8")
    assert [name for name in sorted(arguments) if f"`{name}=`" not in text] == []


def test_every_option_of_how_a_model_runs_is_among_the_settings() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = set().union(*(doc_commands.options_of(commands.choices[name])
                            for name in ("generate", "chat", "demo", "plan")))  # fmt: skip
    options = {option for option in options if option.startswith("--")}
    options -= {"--help", "--model", "--prompt", "--raw", "--chat", "--system", "--session"}
    text = SETTINGS.read_text(encoding="utf-8")
    assert [option for option in sorted(options) if f"`{option}`" not in text] == []


def test_every_option_of_a_worker_is_on_the_cluster_page() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    options = {o for o in doc_commands.options_of(commands.choices["worker"]) if o[:2] == "--"}
    rows = doc_pages.table(ROOT / "docs/pages/cluster.md", "option")
    named = {option for row in rows for option in re.findall(r"--[\w-]+", row[0])}
    assert options - {"--help", "--quiet", "--debug"} == named


def test_every_option_of_the_server_is_on_its_page() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    of = {name: doc_commands.options_of(commands.choices[name]) for name in ("serve", "generate")}
    own = {option for option in of["serve"] - of["generate"] if option.startswith("--")}
    text = (ROOT / "docs/pages/server.md").read_text(encoding="utf-8")
    assert [option for option in sorted(own) if f"`{option}`" not in text] == []


def test_every_command_is_in_the_table_of_commands() -> None:
    [commands] = [a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)]
    rows = doc_pages.table(ROOT / "docs/pages/commands.md", "command")
    assert {row[0].strip("`").split()[1] for row in rows} == set(commands.choices)


@pytest.mark.parametrize("page", [README, FORMATS], ids=lambda page: page.name)
def test_the_table_of_models_is_that_of_the_families(page: Path) -> None:
    rows = doc_pages.table(page, "architecture in the file")
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(named) == sorted(FAMILIES)


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
        in_folder = name in ("f32", "f16", "bf16", "mxfp4", "nvfp4")
        assert (in_folders == "yes") == in_folder, name


def test_the_architectures_that_do_not_open_are_those_of_no_family() -> None:
    start = "- **Architectures of llama.cpp**: of the 153 of version 0.5, "
    said = FORMATS.read_text().partition(start)[2].partition("\n- **")[0]
    assert said.startswith(f"{len(FAMILIES)} open.")  # llama.cpp 0.5 knows each of them
    named = re.findall(r"`([a-z0-9_-]+)`", said)
    assert len(named) > 8
    assert set(named) & set(FAMILIES) == set()


def test_the_table_of_quantised_folders_is_that_of_the_code() -> None:
    rows = doc_pages.table(FORMATS, "`quant_method`")
    named = [name for row in rows for name in re.findall(r"`([^`]+)`", row[0])]
    assert sorted(named) == sorted(QUANTIZED_METHODS)


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


def test_the_table_of_what_a_package_imports_is_that_of_the_test() -> None:
    rows = doc_pages.table(DEVELOPMENT, "package")
    said = {re.findall(r"`(\w+)`", own)[0]: re.findall(r"`(\w+)`", others) for own, others in rows}
    assert said == {package: list(known) for package, known in KNOWS.items()}
