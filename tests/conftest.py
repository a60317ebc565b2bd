"""The backends that operations and engines are tested on: NumPy, and the extension on every ISA."""

import gc
import os
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before NumPy is imported: OpenBLAS's threads look for work without sleeping. Where others use the
# processor, too, they make the small products of these tests ten times as slow.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from extension import EVERY_BACKEND, forced_isa, require_cpp
from hypothesis import settings
from streamed_model import Open
from tiny_model import TinyModel

from airllm import numpy_ops
from airllm.layer_engine import LayerWiseInferenceEngine

# The same examples in every run: a failure is the change's, not the day's. To look for new ones:
# pytest --hypothesis-profile=default
settings.register_profile("fixed", derandomize=True, deadline=None)
settings.load_profile("fixed")


def pytest_collection_finish() -> None:
    """Takes pytest's objects for 8,000 tests out of the garbage collector's sight. A worker
    collects at the end of each run; it would go through all of them, half a second each time."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers() -> int:
    """A process for each core, but no more than four: each holds up to 1 GB."""
    budget = numpy_ops.cpu_budget()
    return max(1, min(budget["affinity"], int(budget["cgroup_quota"] or 4), 4))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many of the tests that ran have each marker of pyproject.toml, and their seconds in all
    processes."""
    lines = Path(terminalreporter.config.rootpath, "pyproject.toml").read_text(encoding="utf-8")
    markers = tomllib.loads(lines)["tool"]["pytest"]["ini_options"]["markers"]
    names = {line.partition(":")[0] for line in markers}
    tests: dict[str, set[str]] = defaultdict(set)
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                for name in names & report.keywords.keys() or {"without"}:
                    tests[name].add(report.nodeid)
                    seconds[name] += report.duration
    by_count = sorted(tests, key=lambda name: -len(tests[name]))
    text = ", ".join(f"{len(tests[name])} {name} in {seconds[name]:.0f} s" for name in by_count)
    terminalreporter.write_line(f"by marker: {text}")


@pytest.fixture(scope="module", params=EVERY_BACKEND)
def ops(request):
    """The operations on one backend and ISA after the other, the ISA forced and confirmed."""
    if request.param == "numpy":
        yield numpy_ops
        return
    with forced_isa(request.param.removeprefix("cpp-")) as cpp:
        yield cpp


@pytest.fixture(scope="module", params=["float32", "float16", "q8_0"])
def kv_type(request):
    """What keys and values are kept as."""
    return request.param


@pytest.fixture(scope="module")
def small_head(kv_type):
    """A head size with a tail, where the type can have one."""
    return 32 if kv_type == "q8_0" else 20


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    """The operations on each backend, for what does not depend on the ISA."""
    return numpy_ops if request.param == "numpy" else require_cpp()


@pytest.fixture
def cpp():
    """The extension, on the ISA in use."""
    return require_cpp()


@pytest.fixture(params=["numpy", "cpp"])
def open_engine(request: pytest.FixtureRequest) -> Iterator[Open]:
    """An engine with batches of 32, so that TOKENS are three."""
    if request.param == "cpp":
        require_cpp()
    engines = []

    def opened(model: TinyModel, **settings: Any) -> LayerWiseInferenceEngine:
        engine = LayerWiseInferenceEngine(
            model.path, backend=request.param, **({"batch_size": 32, "context": 96} | settings)
        )
        engines.append(engine)
        return engine

    yield opened
    for engine in engines:
        engine.close()
