"""Nothing is allocated where tokens are made, and nothing is left behind by a generation."""

import pytest
from extension import require_cpp
from subprocess_python import run_python
from tiny_model import FAMILIES, write_tiny_model

from airllm.layer_engine import LayerWiseInferenceEngine


@pytest.fixture
def cpp():
    extension = require_cpp()
    before = extension.get_num_threads()
    yield extension
    extension.set_num_threads(before)


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3moe"])
def test_decoding_takes_no_memory_after_the_first_token(cpp, tmp_path, family):
    model = write_tiny_model(tmp_path, "q8_0", sizes=FAMILIES[family])
    with LayerWiseInferenceEngine(model.path, backend="cpp", threads=1) as engine:
        for token in range(60):  # the pages come as a sequence grows, and stay
            engine.forward([token])
        engine.reset()
        engine.forward([1, 2, 3])
        engine.forward([4])
        before = cpp.allocations()
        for token in range(50):
            engine.forward([token])
        assert cpp.allocations() == before


def test_a_thread_takes_memory_of_its_own_when_it_first_comes_and_then_no_more(cpp, tmp_path):
    model = write_tiny_model(tmp_path, "q8_0")
    with LayerWiseInferenceEngine(model.path, backend="cpp", threads=3) as engine:
        engine.forward([1, 2, 3])
        before = cpp.allocations()
        for token in range(80):
            engine.forward([token])
        assert cpp.allocations() - before <= 3 * 2  # for keys that are rotated, and for attention


def test_decoding_a_batch_takes_no_memory_after_the_first_tokens(cpp, tmp_path):
    model = write_tiny_model(tmp_path, "q8_0")
    with LayerWiseInferenceEngine(model.path, backend="cpp", threads=1) as engine:
        with engine.sequences(4) as sequences:
            sequences.forward([1, 2, 3, 4])
            before = cpp.allocations()
            for token in range(50):
                sequences.forward([token] * 4)
        assert cpp.allocations() == before


def test_the_counter_counts(cpp):
    before = cpp.allocations()
    cpp.Executor([("x", 4, True), ("h", 4, False)], [], [("add", ["x", "x"], "h", [], {})], 4)
    assert cpp.allocations() > before


GENERATE = """
import gc
from airllm.layer_engine import LayerWiseInferenceEngine

with LayerWiseInferenceEngine(PATH, backend="cpp") as engine:

    def generate(times):
        for seed in range(times):
            engine.generate(f"hello {seed}", max_new_tokens=3, seed=seed)
            if seed % 20 == 0:
                engine.generate_batch(["a", "hello"], max_new_tokens=3, seed=seed)
        gc.collect()
        return engine.memory_usage()["resident"]

    before = generate(100)
    print(generate(1000) - before)
"""


@pytest.mark.soak
def test_a_thousand_generations_leave_memory_where_it_was(tmp_path):
    """In a process that runs nothing else: what other tests have left behind does not count."""
    require_cpp()
    path = write_tiny_model(tmp_path, "q8_0").path
    done = run_python(GENERATE.replace("PATH", repr(str(path))), timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1 << 20  # a KV cache of this model has 18 KiB
