"""gpt-oss as a Hugging Face folder, in MXFP4 as it is published and in floats, is its GGUF file."""

from pathlib import Path

import numpy as np
import pytest
from extension import require_cpp
from family_models import VOCAB
from hf_folder import write_json
from hf_gpt_oss import CONFIG, QUANTIZATION, Files, write_gpt_oss

from airllm.cli import main
from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

EXACT = 1e-5
TOKENS = np.random.default_rng(4).integers(0, VOCAB, 50).tolist()


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    return write_gpt_oss(tmp_path_factory.mktemp("gpt-oss"))


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def logits(path: Path, backend: str) -> np.ndarray:
    exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
    with LayerWiseInferenceEngine(path, backend=backend, **exact) as engine:
        return engine.forward(TOKENS, last_only=False)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("form", ["mxfp4", "floats"])
def test_a_folder_is_the_model_of_the_gguf_file(files, backend, form):
    expected = logits(files.gguf, backend)
    assert difference(logits(getattr(files, form), backend), expected) <= EXACT


@pytest.mark.parametrize("form", ["mxfp4", "floats"])
def test_every_tensor_of_a_folder_is_the_gguf_files(files, form):
    with open_model(files.gguf) as gguf, open_model(getattr(files, form)) as folder:
        assert load_model(folder).config.windows == load_model(gguf).config.windows
        assert set(folder.tensors) == set(gguf.tensors)
        for name, tensor in gguf.tensors.items():
            assert folder.tensors[name].shape == tensor.shape
            if form == "floats" or "_exps." not in name:
                np.testing.assert_array_equal(folder.data(name), gguf.data(name), name)
        rows = np.empty(10**6, np.uint8)
        for name in ("blk.3.ffn_up_exps.weight", "blk.0.ffn_down_exps.weight"):
            whole = folder.data(name).reshape(-1, folder.tensors[name].row_bytes)
            np.testing.assert_array_equal(folder.read(name, rows, (30, 101)), whole[30:101])


def test_mxfp4_stays_mxfp4_in_a_converted_file(tmp_path, files):
    out = tmp_path / "new.gguf"
    command = ["convert", "-m", str(files.mxfp4), "-o", str(out), "--type", "q8_0"]
    assert main([*command, "--keep-quantized"]) == 0
    with GGUFFile.open(out) as new, open_model(files.mxfp4) as old:
        name = "blk.2.ffn_gate_exps.weight"
        assert new.tensors[name].type == old.tensors[name].type == "mxfp4"
        np.testing.assert_array_equal(new.data(name), old.data(name))
        assert new.tensors["blk.2.attn_q.weight"].type == "q8_0"
        assert new.tensors["blk.2.ffn_up_exps.bias"].type == "f32"


def test_rows_are_not_truncated_if_the_config_says_so(tmp_path, files):
    """transformers rounds the limits of YaRN's ramp unless `truncate` is false."""
    scaling = CONFIG["rope_scaling"] | {"truncate": False}
    write_json(tmp_path / "config.json", CONFIG | {"rope_scaling": scaling})
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(files.floats / name)
    assert difference(logits(tmp_path, "numpy"), logits(files.floats, "numpy")) > 1e-4


@pytest.mark.parametrize(
    ("entries", "fault"),
    [
        ({"swiglu_limit": 5.0}, "swiglu_limit is '5.0'; expected 7.0"),
        ({"swiglu_alpha": 2.0}, "swiglu_alpha is '2.0'; expected 1.702"),
        ({"rope_scaling": None}, "has neither rope_parameters nor rope_scaling"),
        ({"num_local_experts": 5}, "tensor blk.0.ffn_gate_inp.weight has shape [6, 64]"),
        ({"num_local_experts": -1}, "num_local_experts is -1; expected 0"),
        ({"sliding_window": "x"}, "sliding_window is the string 'x'"),
        ({"layer_types": ["full_attention"]}, "layer_types does not say of each of 8 layers"),
        ({"intermediate_size": 96}, "tensor blk.0.ffn_gate_exps.weight has shape [6, 32, 64]"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(tmp_path, files, entries, fault):
    write_json(tmp_path / "config.json", CONFIG | {"quantization_config": QUANTIZATION} | entries)
    for name in ("tokenizer.json", "model.safetensors"):
        (tmp_path / name).symlink_to(files.mxfp4 / name)
    with pytest.raises(FormatError) as error, open_model(tmp_path) as file:
        check_tensors(file, load_model(file))
    assert str(error.value).startswith(str(tmp_path))
    assert fault in str(error.value)
