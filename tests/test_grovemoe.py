"""GroveMoE's files, which have a small network for each group of experts."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from family_models import VOCAB, metadata_of, write_family_model
from gguf_writer import write_gguf
from messages import check_refused

from airllm.layer_engine import LayerWiseInferenceEngine as Engine
from airllm.models.opening import open_model
from airllm.weights.budget import BudgetError

TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()
EXACT = {"kv_type": "f32", "activations": "f32"}


def alike(name: str, values: np.ndarray) -> np.ndarray:
    """Two experts after another have the same small network."""
    return np.repeat(values[::2], 2, axis=0) if "chexps" in name else values


def write_groups(path: Path, whole: Path, **metadata: object) -> Path:
    """The file with each small network once."""
    with open_model(whole) as file:
        specs = []
        for name, tensor in file.tensors.items():
            values = file.data(name).view("<f4").reshape(tensor.shape)
            values = values[::2] if "chexps" in name else values
            specs.append((name, "f32", values.shape, values))
        return write_gguf(path, metadata_of("grovemoe") | metadata, specs)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """With a small network for each expert, and for each group."""
    whole = write_family_model(tmp_path, "grovemoe", alike)
    return whole, write_groups(tmp_path / "groups.gguf", whole)


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_experts_of_a_group_have_its_small_network(files: tuple[Path, Path], backend: str) -> None:
    found = []
    for path in files:
        with Engine(path, backend=backend, **EXACT) as engine:
            found.append(engine.forward(TOKENS, last_only=False))
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_streamed_file_reads_the_small_network_of_each_expert(
    files: tuple[Path, Path], backend: str
) -> None:
    with Engine(files[0], backend=backend, **EXACT) as engine:
        expected = engine.forward(TOKENS, last_only=False)
    with pytest.raises(BudgetError) as refusal:
        Engine(files[1], backend=backend, ram_budget=1, **EXACT)
    budget = refusal.value.minimum
    with Engine(files[1], backend=backend, ram_budget=budget, **EXACT) as engine:
        assert engine.plan().streams
        actual = engine.forward(TOKENS, last_only=False)
    assert np.linalg.norm(actual - expected) <= 3e-6 * np.linalg.norm(expected)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"experts_per_group": 4}, "experts_per_group is 4; expected a divisor of 6"),
        ({"experts_per_group": 0}, "experts_per_group is 0"),
        ({"experts_per_group": 3}, "tensor blk.0.ffn_gate_chexps.weight has shape"),
        ({"expert_group_scale": -1.0}, "expert_group_scale is -1.0; expected it above 0"),
        ({"expert_chunk_feed_forward_length": 17}, "chexps.weight has shape"),
    ],
)
def test_groups_that_make_no_sense_are_refused(
    tmp_path: Path, files: tuple[Path, Path], keys: dict[str, object], said: str
) -> None:
    changed = {f"grovemoe.{key}": value for key, value in keys.items()}
    path = write_groups(tmp_path / "changed.gguf", files[0], **changed)
    check_refused(lambda: Engine(path, **EXACT), said)


def test_networks_without_their_experts_take_no_memory_for_what_the_file_claims(
    tmp_path: Path,
) -> None:
    """2,000 tensors of 32 bytes, each said to be the network of 4,096 experts."""
    specs = [
        (f"x{i}_chexps.weight", "f32", (1, 8), np.zeros((1, 8), np.float32)) for i in range(2000)
    ]
    claims = {"grovemoe.expert_count": 4096, "grovemoe.experts_per_group": 4096}
    path = write_gguf(tmp_path / "m.gguf", metadata_of("grovemoe") | claims, specs)
    tracemalloc.start()
    with open_model(path) as file:
        assert len(file.tensors) == 2000
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10e6
