"""How soon `airllm generate` says something, imports and tokeniser included.

Seconds differ from machine to machine, so the bound is a multiple of what no program of this kind
can do without, measured in the same run: a Python that imports NumPy and the tokenizers library.
Seconds of the processor are compared, on one thread: others may use the machine.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from extension import require_cpp
from subprocess_python import ROOT, run_python
from tiny_model import write_tiny_model

from airllm.hub import find_model

UNAVOIDABLE = "import numpy, tokenizers; print('x')"
ATTEMPTS = 3  # the best counts


def seconds_of_cpu(*command: str) -> float:
    """What `python command` takes of the processor until it ends, with its modules compiled: by the
    first attempt, if not before."""
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0
    return usage.ru_utime + usage.ru_stime


def assert_first_token_within(times: float, model: Path, backend: str) -> None:
    options = ["--raw", "--prompt", "Once upon a time", "--max-tokens", "1", "--temperature", "0"]
    options += ["--threads", "1"]
    generate = ["-m", "airllm", "generate", "-m", str(model), "--backend", backend, *options]
    tries = [
        (seconds_of_cpu("-c", UNAVOIDABLE), seconds_of_cpu(*generate)) for _ in range(ATTEMPTS)
    ]
    unavoidable, first_token = map(min, zip(*tries, strict=True))
    assert first_token < times * unavoidable, (
        f"the first token took {first_token:.2f} s, expected less than {times} times the "
        f"{unavoidable:.2f} s of the imports that it needs"
    )


def test_a_tiny_model_says_something_soon_after_the_imports(tmp_path: Path) -> None:
    assert_first_token_within(5, write_tiny_model(tmp_path).path, "numpy")  # measured: 2.4


def test_a_real_model_says_something_soon_after_the_imports() -> None:
    require_cpp()
    model = find_model(os.environ.get("AIRLLM_TEST_MODEL") or "smollm2-135m")
    if model is None:
        pytest.skip("no real model here: run `airllm pull smollm2-135m`, or set AIRLLM_TEST_MODEL")
    assert_first_token_within(7, model, "cpp")  # measured: 3.4


def test_generate_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    code = f"""
import sys
from airllm.cli import main
model = {str(write_tiny_model(tmp_path).path)!r}
main(["generate", "-m", model, "--raw", "-p", "x", "-n", "1", "--backend", "numpy", "--quiet"])
unused = "jinja2 tqdm matplotlib asyncio"
unused += " airllm.state.session airllm.tools.benchmark airllm.tools.perplexity"
print([name for name in unused.split() if name in sys.modules], file=sys.stderr)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "[]\n")
