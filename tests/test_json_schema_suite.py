"""The official test suite of JSON Schema: what a random model says under a schema is valid.

The suite comes from the source distribution of jsonschema 4.17.3, which pip fetches once into
pytest's cache. Where it cannot be had, these tests are skipped.
"""

import json
import os
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from extension import require_cpp
from tiny_model import Sizes, write_tiny_model

from airllm.engine.grammar import Grammar
from airllm.layer_engine import LayerWiseInferenceEngine as Engine

pytest.importorskip("llguidance", reason="`pip install .[test]` brings llguidance")
jsonschema = pytest.importorskip("jsonschema", reason="`pip install .[test]` brings jsonschema")

pytestmark = pytest.mark.variant

RELEASE = "4.17.3"  # the last one with the suite
VALIDATORS = {
    "draft7": jsonschema.Draft7Validator,
    "draft2020-12": jsonschema.Draft202012Validator,
}
HOT = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.5}


class Case(NamedTuple):
    draft: str
    name: str
    schema: Any
    tests: list[dict[str, Any]]


def fetched(folder: Path) -> Path:
    """The source distribution, which pip builds for its metadata, in an environment of its own."""
    path = folder / f"jsonschema-{RELEASE}.tar.gz"
    if not path.exists():
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "-d", str(folder)]
        command += ["--no-binary", "jsonschema", f"jsonschema=={RELEASE}"]
        try:
            subprocess.run(
                command,
                check=True,
                capture_output=True,
                text=True,
                timeout=120,
                env={**os.environ, "PIP_DEFAULT_TIMEOUT": "10", "PIP_RETRIES": "1"},
            )
        except (subprocess.SubprocessError, OSError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            pytest.skip(f"pip has no source distribution of jsonschema {RELEASE}: {said[-1:]}")
    return path


@pytest.fixture(scope="module")
def cases(request: pytest.FixtureRequest) -> list[Case]:
    path = fetched(request.config.cache.mkdir("json_schema_suite"))
    found = []
    with tarfile.open(path) as archive:
        for member in sorted(archive, key=lambda one: one.name):
            # jsonschema-4.17.3/json/tests/draft7/ref.json
            places = member.name.split("/")[1:]
            if len(places) != 4 or places[:2] != ["json", "tests"] or places[2] not in VALIDATORS:
                continue
            file = archive.extractfile(member)
            assert file is not None
            found += [
                Case(places[2], f"{places[3]}: {one['description']}", one["schema"], one["tests"])
                for one in json.load(file)
            ]
    return found


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    require_cpp()
    folder = tmp_path_factory.mktemp("model")
    with Engine(write_tiny_model(folder, "q8_0", sizes=Sizes(context=300)).path) as engine:
        yield engine


class Sorted(NamedTuple):
    enforced: list[tuple[Case, Grammar]]
    refused: list[tuple[Case, str]]


@pytest.fixture(scope="module")
def found(cases: list[Case], engine: Engine) -> Sorted:
    found = Sorted([], [])
    for case in cases:
        try:
            found.enforced.append((case, engine.grammar(json_schema=case.schema)))
        except ValueError as error:
            found.refused.append((case, str(error)))
    return found


def test_each_answer_of_a_random_model_is_valid(found: Sorted, engine: Engine) -> None:
    n_ended = 0
    for case, grammar in found.enforced:
        answer = engine.generate("say", grammar=grammar, seed=0, max_new_tokens=200, **HOT)
        if answer.finish_reason == "stop":
            n_ended += 1
            assert VALIDATORS[case.draft](case.schema).is_valid(json.loads(answer.text)), (
                f"{case.draft} {case.name}: {answer.text}"
            )
    assert len(found.enforced) >= 300
    assert n_ended >= 180  # the others are endless lists and objects, which max_new_tokens cuts


def test_no_instance_that_the_suite_calls_invalid_is_allowed(found: Sorted, engine: Engine) -> None:
    n_refused = 0
    for case, grammar in found.enforced:
        for test in case.tests:
            if not test["valid"]:
                text = json.dumps(test["data"], ensure_ascii=False)
                assert not allows(grammar, text, engine), f"{case.draft} {case.name}: {text}"
                n_refused += 1
    assert n_refused >= 400


def allows(grammar: Grammar, text: str, engine: Engine) -> bool:
    """Whether the whole of a text is an answer that the grammar allows."""
    matcher = grammar.matcher()
    try:
        for token in engine.tokenizer.encode(text, add_special=False):
            matcher.accept(token)
        if matcher.ended:
            return True
    except ValueError:
        return False
    bits = np.unpackbits(matcher.mask().view(np.uint8), bitorder="little")
    return bool(bits[sorted(engine.tokenizer.eos_ids)].any())


# What an error says: a keyword, a format, a place elsewhere, or what is impossible.
NAMES = (
    r'Unimplemented keys: \["[^"]+"',
    r"'(multipleOf|minLength|maxLength|minItems|maxItems|minProperties|maxProperties)'",
    r"'\$id' beside '\$ref'",
    "oneOf constraints are not supported",
    "Unknown format: .",
    "patternProperty regexes /.*/ and /.*/ are not disjoint",
    "Resource '.*' is not present in a registry",
    "Anchor '.*' does not exist",
    "Unsatisfiable schema: schema is false",
)


def test_a_schema_that_is_refused_is_refused_by_the_name_of_what_cannot_be_enforced(
    found: Sorted,
) -> None:
    for case, message in found.refused:
        assert message.startswith("the JSON schema cannot be enforced: "), case
        assert any(re.search(name, message) for name in NAMES), (case, message)
    assert any("'$id' beside '$ref'" in message for _, message in found.refused)
