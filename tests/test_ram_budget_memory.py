"""How much memory a streamed model takes, and that one that fits is read once: seen from outside,
by a process that runs nothing else."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from benchmark_scripts import run
from extension import require_cpp
from subprocess_python import run_python

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")

RUN = """
import json, re
from pathlib import Path
import numpy.random, tokenizers  # what an answer imports
from airllm.layer_engine import LayerWiseInferenceEngine

def number(file, name):
    return int(re.search(rf"^{name}:\\s*(\\d+)", Path(file).read_text(), re.M)[1])

imported = number("/proc/self/status", "VmHWM")
with LayerWiseInferenceEngine(PATH, ram_budget=BUDGET, context=256) as engine:
    engine.forward([1, 2, 3])
    before = number("/proc/self/io", "read_bytes")
    for token in range(4, 8):
        engine.forward([token])
    read = number("/proc/self/io", "read_bytes") - before
    engine.generate("abc", max_new_tokens=2)
    print(json.dumps({
        **engine.plan().as_dict(),
        "peak": 1024 * (number("/proc/self/status", "VmHWM") - imported),
        "read_by_four_tokens": read,
        "stream": engine.stream_stats(),
    }))
"""
LAYER_BYTES = 2 * (2 * 1024**2 + 2 * 1024 * 256 + 3 * 1024 * 3072)  # 24 MB


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight layers of 24 MB, in F16."""
    require_cpp()
    path = tmp_path_factory.mktemp("model") / "model.gguf"
    sizes = "--hidden-size 1024 --ffn 3072 --layers 8 --heads 8 --kv-heads 2 --vocab 1000"
    run("make_model.py", path, *sizes.split(), "--type", "f16")
    return path


def figures(path: Path, budget: int) -> dict[str, Any]:
    code = RUN.replace("PATH", repr(str(path))).replace("BUDGET", str(budget))
    done = run_python(code)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_memory_is_what_is_pinned_and_two_layers_and_little_more(path: Path) -> None:
    found = figures(path, 110 << 20)
    assert found["streamed_layers"]
    beyond = found["peak"] - found["kv_cache_bytes"] - found["pinned_bytes"]
    assert beyond < 2 * LAYER_BYTES + (24 << 20), f"{beyond / 2**20:.0f} MiB"


def test_a_streamed_model_reads_what_its_plan_says(path: Path) -> None:
    found = figures(path, 110 << 20)
    stream, per_pass = found["stream"], found["streamed_bytes_per_pass"]
    assert stream["bytes_taken"] % per_pass == 0
    passes = stream["bytes_taken"] // per_pass
    ahead = 2 * LAYER_BYTES + (16 << 20)
    assert stream["bytes_read"] <= 1.02 * passes * per_pass + ahead


def test_a_model_that_fits_is_read_once(path: Path) -> None:
    found = figures(path, 1 << 30)
    assert found["stream"] is None
    assert found["read_by_four_tokens"] == 0
