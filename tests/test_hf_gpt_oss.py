"""gpt-oss as a Hugging Face folder, in MXFP4 as it is published and in floats, is its GGUF file."""

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from extension import require_cpp
from family_models import CONTEXT, VOCAB, metadata_of, shapes
from gguf_writer import write_gguf
from hf_folder import safetensors_bytes, stored, write_json
from hf_quantized import mxfp4, rounded_to

from airllm.cli import main
from airllm.formats.gguf import GGUFFile
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

EXACT = 1e-5
TOKENS = np.random.default_rng(4).integers(0, VOCAB, 50).tolist()

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.router",
}
CONFIG = {
    "architectures": ["GptOssForCausalLM"],
    "model_type": "gpt_oss",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 32,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 6,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "max_position_embeddings": CONTEXT,
    "initial_context_length": 32,
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention"] * 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {
        **{"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        **{"beta_fast": 32.0, "beta_slow": 1.0, "truncate": True},
    },
    "swiglu_limit": 7.0,
    "hidden_act": "silu",
    "attention_bias": True,
    "attention_dropout": 0.0,
    "router_aux_loss_coef": 0.9,
    "output_router_logits": False,
    "tie_word_embeddings": False,
}
QUANTIZATION = {
    "quant_method": "mxfp4",
    "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router", "lm_head"],
}


class Files(NamedTuple):
    gguf: Path  # all values as F32
    mxfp4: Path  # folders
    floats: Path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Files:
    """One model in three forms; its experts' values are such as MXFP4 has."""
    place = tmp_path_factory.mktemp("gpt-oss")
    random = np.random.default_rng(12)
    metadata = metadata_of("gpt-oss")
    values: dict[str, np.ndarray] = {}
    for name, shape in shapes("gpt-oss", metadata).items():
        if name.endswith("_exps.weight"):
            values[name] = mxfp4(shape[-1] ** -0.5 * random.standard_normal(shape)).values
        else:
            spread = 0.5 if len(shape) == 1 or "bias" in name else shape[-1] ** -0.5
            values[name] = (spread * random.standard_normal(shape)).astype(np.float32)
        if name.endswith("_exps.bias"):  # the folder in MXFP4 has them in BF16
            values[name] = rounded_to(values[name], "BF16")[1]
    specs = [(name, "f32", each.shape, each.astype(np.float32)) for name, each in values.items()]
    gguf = write_gguf(place / "model.gguf", metadata, specs)
    packed, floats = {}, {}
    for name, each in values.items():
        if "_exps." not in name:
            packed[_hf_name(name)] = floats[_hf_name(name)] = "F32", stored(each, "F32")
    for layer in range(8):
        stem, experts = f"blk.{layer}", f"model.layers.{layer}.mlp.experts"
        for kind in ("weight", "bias"):
            both = (values[f"{stem}.ffn_{part}_exps.{kind}"] for part in ("gate", "up"))
            together = np.stack(list(both), axis=2)  # rows (of a bias: values) alternate
            shape = (6, 64, 64) if kind == "weight" else (6, 64)
            down = values[f"{stem}.ffn_down_exps.{kind}"]
            for name, each in (("gate_up_proj", together.reshape(shape)), ("down_proj", down)):
                if kind == "bias":
                    packed[f"{experts}.{name}_bias"] = "BF16", stored(each, "BF16")
                    floats[f"{experts}.{name}_bias"] = "F32", stored(each, "F32")
                    continue
                for suffix, tensor in mxfp4(each).tensors.items():
                    packed[f"{experts}.{name}{suffix}"] = tensor
                turned = np.ascontiguousarray(each.swapaxes(1, 2))
                floats[f"{experts}.{name}"] = "F32", stored(turned, "F32")
    quantised = CONFIG | {"quantization_config": QUANTIZATION}
    return Files(
        gguf,
        _write(place / "mxfp4", quantised, packed),
        _write(place / "floats", CONFIG, floats),
    )


def _hf_name(name: str) -> str:
    layer, stem, suffix = re.fullmatch(r"(?:blk\.(\d+)\.)?(.*)\.(\w+)", name).groups()
    if stem == "attn_sinks":
        return f"model.layers.{layer}.self_attn.sinks"
    return f"{'' if layer is None else f'model.layers.{layer}.'}{NAMES[stem]}.{suffix}"


def _write(folder: Path, config: dict, arrays: dict) -> Path:
    folder.mkdir()
    write_json(folder / "config.json", config)
    vocabulary = {f"t{id}": id for id in range(VOCAB)}
    tokenizer = {
        "added_tokens": [],
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False},
        "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }
    write_json(folder / "tokenizer.json", tokenizer)
    (folder / "model.safetensors").write_bytes(safetensors_bytes(arrays))
    return folder


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
