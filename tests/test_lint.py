"""The sources are formatted, and free of what ruff and mypy find.

The tools are those of the test requirements, installed beside the Python that runs this: formatters
of other versions have other opinions. AIRLLM_REQUIRE_LINT=1, as in CI, turns the skipping of a
missing one into a failure.
"""

import os
import subprocess
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
CPP_SOURCES = sorted(
    str(path.relative_to(ROOT))
    for folder in ("cpp_ext", "tests", "benchmarks")
    for path in (ROOT / folder).rglob("*")
    if path.suffix in (".cpp", ".h", ".cu")
)


def check(tool, *arguments):
    """Runs the tool in the repository's root; what it finds fails the test."""
    program = SCRIPTS / tool
    if not program.exists():
        missing = f"{tool} is not installed here: python -m pip install -e '.[test]'"
        if os.environ.get("AIRLLM_REQUIRE_LINT") == "1":
            pytest.fail(missing)
        pytest.skip(missing)
    result = subprocess.run(
        [program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if result.returncode != 0:
        pytest.fail(f"{tool}:\n{result.stdout}{result.stderr}", pytrace=False)


def test_ruff_finds_nothing():
    check("ruff", "check", "--quiet", ".")


def test_python_is_formatted():
    check("ruff", "format", "--check", "--diff", "--quiet", ".")


def test_types_are_strict():
    check("mypy", "--no-error-summary")


def test_cpp_is_formatted():
    assert CPP_SOURCES
    check("clang-format", "--dry-run", "--Werror", *CPP_SOURCES)
