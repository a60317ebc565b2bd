"""Folders of models with recurrent layers: what they store otherwise than GGUF files."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from extension import require_cpp
from hf_case import VOCAB
from hf_cases import CASES
from hf_models import build, logits, require_hf, write_folder, write_gguf

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models.opening import open_model

EXACT = 3e-6  # norm of the logits' difference over the norm of the logits
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 40).tolist()


@pytest.fixture(scope="module", params=["LFM2 MoE", "Granite 4", "Nemotron 3"])
def model(request, tmp_path_factory):
    """A folder in BF16, and the logits of its model."""
    require_hf()
    case = CASES[request.param]
    hf = build(case)
    for weight in hf.state_dict().values():
        weight.copy_(weight.bfloat16())
    expected = logits(hf, TOKENS)
    folder = write_folder(tmp_path_factory.mktemp("bf16") / "model", case, hf.bfloat16())
    return folder, expected


def difference(path: Path, expected: np.ndarray, backend: str = "cpp") -> float:
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        actual = engine.forward(TOKENS, last_only=False)
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("backend", ["numpy", "cpp"])
def test_a_folder_in_bf16_gives_the_logits_of_its_values(model, backend):
    if backend == "cpp":
        require_cpp()
    assert difference(*model, backend) <= EXACT


def test_a_converted_folder_gives_the_folders_logits(tmp_path, model):
    require_cpp()
    folder, expected = model
    with open_model(folder) as file:
        convert(file, tmp_path / "model.gguf", "f32")
    assert difference(tmp_path / "model.gguf", expected) <= EXACT


@pytest.mark.parametrize("model", ["Granite 4", "Nemotron 3"], indirect=True)
def test_a_converted_folder_has_the_shapes_and_keys_that_llama_cpp_reads(tmp_path, model):
    """It takes ssm_a and ssm_d as matrices of a column, and ssm_norm with a row for each group;
    Nemotron's epsilon has the key of LayerNorm."""
    with open_model(model[0]) as file:
        convert(file, tmp_path / "model.gguf", "f32")
    with open_model(tmp_path / "model.gguf") as file:
        architecture = file.metadata.text("general.architecture")
        heads, groups, inner = (
            file.metadata.integer(f"{architecture}.ssm.{key}")
            for key in ("time_step_rank", "group_count", "inner_size")
        )
        wanted = {"ssm_a": (heads, 1), "ssm_d": (heads, 1)}
        wanted["ssm_norm.weight"] = (groups, inner // groups)
        for slot, shape in wanted.items():
            shapes = {t.shape for name, t in file.tensors.items() if name.endswith(f".{slot}")}
            assert shapes == {shape}, slot
        if architecture.startswith("nemotron"):
            assert file.metadata.number(f"{architecture}.attention.layer_norm_epsilon") > 0


def test_layers_that_guess_further_tokens_are_left_out(tmp_path, model):
    from safetensors.torch import load_file, save_file

    require_cpp()
    folder, expected = model
    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    tensors = load_file(weights)
    further = {"mtp.layers.0.eh_proj.weight": next(iter(tensors.values())).clone()}
    save_file(tensors | further, weights)
    assert difference(tmp_path / "model", expected) <= EXACT


@pytest.mark.parametrize("source", ["folder", "file"])
def test_recurrent_layers_keep_their_small_tensors_in_float32(tmp_path, model, source):
    path, _ = model
    if source == "file":  # as llama.cpp's converter writes it: ssm_norm and ssm_a are matrices
        path = write_gguf(tmp_path / "source.gguf", CASES["Granite 4"], build(CASES["Granite 4"]))
    with open_model(path) as file:
        convert(file, tmp_path / "model.gguf", "q8_0")
    with open_model(tmp_path / "model.gguf") as file:
        kinds = {name: tensor.type for name, tensor in file.tensors.items()}
    small = ("conv1d.weight", "shortconv.conv.weight", "ssm_a", "ssm_d", "norm.weight", ".bias")
    assert {kind for name, kind in kinds.items() if name.endswith(small)} == {"f32"}
    assert "q8_0" in kinds.values()
