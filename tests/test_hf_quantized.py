"""Hugging Face folders whose weights are quantised: the model of their values, or a refusal."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference_blocks
from extension import require_cpp
from hf_folder import safetensors_bytes
from hf_quantized import FORMATS, Packed, compressed, write_floats, write_quantised
from test_model_families import EXACT, TOKENS, error, logits_of
from tiny_model import FAMILIES, Sizes, TinyModel, write_tiny_model

from airllm.cli import main
from airllm.formats.gguf import GGUFFile
from airllm.formats.hf_quantization import Quantization
from airllm.formats.model_file import ModelFile
from airllm.formats.numbers import decode
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata
from airllm.weights.layer_weights import check_tensors
from airllm.weights.plan import BudgetError

# Rows of 128 and 256 columns: a group of 128 is a whole row, or half of it. The 64 rows of K and V
# fill half a block of 128 x 128.
SIZES = Sizes("qwen3", hidden=128, ffn=256, n_layers=2, head_dim=32, rope_dims=32, eps=1e-6)
MIXTURE = dataclasses.replace(FAMILIES["qwen3moe"], hidden=128, ffn=128, n_layers=2)

FP8_BY_TENSOR = dict(FORMATS["FP8 by tensor"].config)
Q, UP = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"
GGUF_NAMES = {
    **{f"self_attn.{one}_proj": f"attn_{one}" for one in "qkv"},
    "self_attn.o_proj": "attn_output",
    **{f"mlp.{part}_proj": f"ffn_{part}" for part in ("gate", "up", "down")},
}


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> TinyModel:
    return write_tiny_model(tmp_path_factory.mktemp("tiny"), sizes=SIZES)


def held(packed: Packed, type: str) -> np.ndarray:
    """The values of a matrix once it has become `type`: float64."""
    if type == "q8_0":
        blocks = reference_blocks.quantize(packed.values.astype(np.float32), "q8_0")
        return reference_blocks.dequantize(blocks, "q8_0").reshape(packed.values.shape)
    if packed.offsets is None:
        return packed.values
    rounded = packed.offsets.astype(np.float16).astype(np.float64)
    return packed.values + (rounded - packed.offsets)


def read(file: ModelFile, name: str) -> np.ndarray:
    """The values of a tensor of the model, by its name in a float folder: float64."""
    _, _, layer, stem = name.removesuffix(".weight").split(".", 3)
    tensor = file.tensors[f"blk.{layer}.{GGUF_NAMES[stem]}.weight"]
    raw = file.data(tensor.name).reshape(-1, tensor.row_bytes)
    values = decode(raw, tensor.type).astype(np.float64).reshape(tensor.shape)
    scale = tensor.name.replace(".weight", ".scale")
    return values * file.data(scale).view("<f4")[0] if scale in file.tensors else values


def logits(folder: Path, model: TinyModel, backend: str, **settings) -> np.ndarray:
    return logits_of(TinyModel(folder, model.sizes, model.tensors), backend, [TOKENS], **settings)


# The same model.


@pytest.mark.parametrize("name", FORMATS)
def test_a_matrix_is_that_of_its_codes_and_scales(tmp_path, tiny, name):
    format = FORMATS[name]
    packed = write_quantised(tmp_path / "hf", tiny, format)
    with open_model(tmp_path / "hf") as file:
        for matrix, each in packed.items():
            expected = held(each, format.type)
            np.testing.assert_allclose(read(file, matrix), expected, rtol=2e-7, atol=0)
        assert file.tensors["blk.0.attn_q.weight"].type == format.type


@pytest.mark.parametrize("name", FORMATS)
def test_logits_are_those_of_the_values_as_floats(tmp_path, tiny, backend, name):
    format = FORMATS[name]
    packed = write_quantised(tmp_path / "hf", tiny, format)
    values = {matrix: held(each, format.type) for matrix, each in packed.items()}
    expected = logits(write_floats(tmp_path / "floats", tiny, values), tiny, backend)
    assert error(logits(tmp_path / "hf", tiny, backend), expected) <= EXACT


@pytest.mark.parametrize(
    "name", ["FP8 in blocks", "int4 in groups of 32", "AWQ", "NVFP4 of ModelOpt"]
)
@pytest.mark.parametrize("n_shards", [1, 4])
def test_experts_may_be_quantised(tmp_path, backend, name, n_shards):
    """Of a mixture, in files that have a matrix and its scales apart."""
    model, format = write_tiny_model(tmp_path, sizes=MIXTURE), FORMATS[name]
    packed = write_quantised(tmp_path / "hf", model, format, n_shards=n_shards)
    values = {matrix: held(each, format.type) for matrix, each in packed.items()}
    expected = logits(write_floats(tmp_path / "floats", model, values), model, backend)
    assert error(logits(tmp_path / "hf", model, backend), expected) <= EXACT


@pytest.mark.parametrize("name", FORMATS)
def test_modules_that_are_not_quantised_are_read_as_they_are(tmp_path, tiny, name):
    write_quantised(tmp_path / "hf", tiny, FORMATS[name], plain="layers.1.")
    with open_model(tmp_path / "hf") as file:
        check_tensors(file, load_model(file))
        assert file.tensors["blk.0.ffn_up.weight"].type == FORMATS[name].type
        assert file.tensors["blk.1.ffn_up.weight"].type == "f32"
        expected = tiny.tensors["blk.1.ffn_up.weight"].astype(np.float32)
        np.testing.assert_array_equal(file.data("blk.1.ffn_up.weight").view("<f4"), expected)


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_those_of_the_whole_matrix(tmp_path, tiny, name):
    write_quantised(tmp_path / "hf", tiny, FORMATS[name])
    with open_model(tmp_path / "hf") as file:
        for name in ("blk.0.ffn_down.weight", "blk.0.attn_k.weight"):
            whole = file.data(name)
            for first, end in ((0, 1), (3, 21), (29, 64)):
                rows = file.read(name, np.empty(whole.size, np.uint8), (first, end))
                np.testing.assert_array_equal(rows, whole[first:end])


def test_rows_across_quantised_experts_are_read(tmp_path):
    model = write_tiny_model(tmp_path, sizes=MIXTURE)
    packed = write_quantised(tmp_path / "hf", model, FORMATS["AWQ"])
    stem = "model.layers.1.mlp.experts"
    expected = [held(packed[f"{stem}.{i}.down_proj.weight"], "q4_1") for i in range(6)]
    with open_model(tmp_path / "hf") as file:
        name = "blk.1.ffn_down_exps.weight"  # [6, 128, 128]
        memory = np.empty(file.tensors[name].nbytes, np.uint8)
        rows = decode(file.read(name, memory, (100, 400)), "q4_1")
    np.testing.assert_allclose(rows, np.concatenate(expected)[100:400], rtol=2e-7, atol=0)


@pytest.mark.parametrize("name", ["GPTQ", "AWQ"])
def test_large_matrices_are_made_a_piece_at_a_time(tmp_path, tiny, monkeypatch, name):
    write_quantised(tmp_path / "hf", tiny, FORMATS[name])
    with open_model(tmp_path / "hf") as file:
        whole = file.data("blk.0.ffn_down.weight")
    monkeypatch.setattr("airllm.formats.model_file.PIECE_VALUES", 3000)  # 11 rows
    monkeypatch.setattr("airllm.formats.hf_columns.STRIP_VALUES", 6200)  # 24 rows
    with open_model(tmp_path / "hf") as file:
        np.testing.assert_array_equal(file.data("blk.0.ffn_down.weight"), whole)
        rows = file.read("blk.0.ffn_down.weight", np.empty(whole.size, np.uint8), (21, 50))
        np.testing.assert_array_equal(rows, whole[21:50])


# What a type of ours loses.


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_fp8_loses_a_quarter_of_its_own_rounding_or_less(tmp_path, tiny):
    """E4M3 is 2.6% off the weights that were quantised, and Q8_0 0.55% off E4M3."""
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS["FP8 in blocks"])
    with open_model(tmp_path / "hf") as file:
        found, expected = read(file, f"{Q}.weight"), packed[f"{Q}.weight"].values
    original = tiny.tensors["blk.0.attn_q.weight"]
    own, added = relative(expected, original), relative(found, expected)
    assert 0.02 < own < 0.03
    assert added < own / 4
    assert relative(found, original) < 1.03 * own


@pytest.mark.parametrize("name", ["AWQ", "GPTQ"])
def test_zero_points_lose_less_than_a_hundredth_of_a_step(tmp_path, tiny, name):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS[name])[f"{UP}.weight"]
    step = packed.tensors[".scales"][1].T.astype(np.float64)  # of each row and group
    step = np.repeat(step, packed.values.shape[1] // step.shape[1], axis=1)
    with open_model(tmp_path / "hf") as file:
        off = np.abs(read(file, f"{UP}.weight") - packed.values)
    assert (off <= 0.0074 * step).all()  # 15 * 2^-11 and the rounding of the sum
    assert off.max() > 0


@pytest.mark.parametrize(
    "name", ["int4 in groups of 32", "int4 in groups of 128", "GPTQ, symmetric"]
)
def test_weights_without_zero_points_lose_nothing(tmp_path, tiny, name):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS[name])
    with open_model(tmp_path / "hf") as file:
        for matrix, each in packed.items():
            np.testing.assert_array_equal(read(file, matrix), each.values, matrix)


def test_mxfp4_is_copied_code_by_code(tmp_path, tiny):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS["MXFP4 of compressed-tensors"])
    with open_model(tmp_path / "hf") as file:
        blocks = file.data("blk.0.attn_q.weight").reshape(128, 4, 17)
    codes = packed[f"{Q}.weight"].tensors[".weight_packed"][1].reshape(128, 4, 16)
    np.testing.assert_array_equal(blocks[..., 0], packed[f"{Q}.weight"].tensors[".weight_scale"][1])
    for at in range(32):  # here byte i has codes i and i + 16, there 2 i and 2 i + 1
        here = blocks[..., 1 + at % 16] >> (4 if at >= 16 else 0) & 15
        np.testing.assert_array_equal(here, codes[..., at // 2] >> (4 * (at % 2)) & 15)


def test_a_block_of_nvfp4_is_that_of_its_codes_and_scales(tmp_path, tiny):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS["NVFP4 of ModelOpt"])[f"{Q}.weight"]
    with open_model(tmp_path / "hf") as file:
        blocks = file.data("blk.0.attn_q.weight").reshape(-1, 36)
        scale = file.data("blk.0.attn_q.scale").view("<f4")
    values = reference_blocks.dequantize(blocks, "nvfp4").reshape(packed.values.shape)
    np.testing.assert_array_equal(values * packed.scale, packed.values)
    np.testing.assert_array_equal(scale, np.float32([packed.scale]))


@pytest.mark.parametrize("by", ["ModelOpt", "compressed-tensors"])
def test_each_expert_of_nvfp4_keeps_its_scale(tmp_path, by):
    model = write_tiny_model(tmp_path, sizes=MIXTURE)
    packed = write_quantised(tmp_path / "hf", model, FORMATS[f"NVFP4 of {by}"])
    stem = "model.layers.1.mlp.experts"
    expected = [packed[f"{stem}.{i}.down_proj.weight"].scale for i in range(6)]
    with open_model(tmp_path / "hf") as file:
        found = file.data("blk.1.ffn_down_exps.scale").view("<f4")
    assert len(set(expected)) == 6
    np.testing.assert_array_equal(found, np.float32(expected))


# Converted, and within a budget.


@pytest.mark.parametrize("by", ["ModelOpt", "compressed-tensors"])
def test_nvfp4_is_converted_to_another_type_with_its_scales(tmp_path, tiny, by):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS[f"NVFP4 of {by}"])
    out = tmp_path / "new.gguf"
    assert main(["convert", "-m", str(tmp_path / "hf"), "-o", str(out), "--type", "f32"]) == 0
    with GGUFFile.open(out) as file:
        assert file.tensors["blk.0.attn_q.weight"].type == "f32"
        for matrix, each in packed.items():
            np.testing.assert_allclose(read(file, matrix), each.values, rtol=2e-7, atol=0)


def test_fp8_is_converted_from_its_own_values(tmp_path, tiny, capsys):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS["FP8 in blocks"])
    out = tmp_path / "new.gguf"
    assert main(["convert", "-m", str(tmp_path / "hf"), "-o", str(out), "--type", "f32"]) == 0
    assert "quantised already" not in capsys.readouterr().err
    with GGUFFile.open(out) as file:
        for matrix, each in packed.items():
            np.testing.assert_array_equal(read(file, matrix), each.values.astype(np.float32))


def test_fp8_runs_in_another_type_if_asked(tmp_path, tiny, backend):
    packed = write_quantised(tmp_path / "hf", tiny, FORMATS["FP8 in blocks"])
    values = {matrix: each.values for matrix, each in packed.items()}
    floats = write_floats(tmp_path / "floats", tiny, values)
    expected = logits(floats, tiny, backend, quantize="bf16")
    assert error(logits(tmp_path / "hf", tiny, backend, quantize="bf16"), expected) <= EXACT


@pytest.mark.parametrize("name", FORMATS)
def test_a_converted_folder_keeps_its_blocks_and_its_logits(tmp_path, tiny, name):
    format = FORMATS[name]
    write_quantised(tmp_path / "hf", tiny, format)
    out = tmp_path / "new.gguf"
    command = ["convert", "-m", str(tmp_path / "hf"), "-o", str(out), "--type", "f32"]
    assert main([*command, "--keep-quantized"]) == 0
    with GGUFFile.open(out) as new, open_model(tmp_path / "hf") as old:
        for name, tensor in old.tensors.items():
            assert new.tensors[name].type == tensor.type
            np.testing.assert_array_equal(new.data(name), old.data(name), name)
    expected = logits(tmp_path / "hf", tiny, "numpy")
    assert error(logits(out, tiny, "numpy"), expected) <= EXACT


def test_a_budget_that_is_too_small_says_to_convert(tmp_path, backend):
    sizes = dataclasses.replace(SIZES, ffn=1024, n_layers=24)
    model = write_tiny_model(tmp_path, sizes=sizes)
    write_quantised(tmp_path / "hf", model, FORMATS["AWQ"])
    little = {"backend": backend, "kv_type": "f32", "batch_size": 16, "context": 16}
    with pytest.raises(BudgetError, match=r"quantised folders\) stay in memory; `airllm convert`"):
        LayerWiseInferenceEngine(tmp_path / "hf", ram_budget=4_000_000, **little)
    out = tmp_path / "new.gguf"
    command = ["convert", "-m", str(tmp_path / "hf"), "-o", str(out), "--type", "q8_0"]
    assert main([*command, "--keep-quantized"]) == 0
    with LayerWiseInferenceEngine(out, ram_budget=4_000_000, **little) as engine:
        assert engine.plan().streams


def test_a_changed_code_changes_the_fingerprint(tmp_path, tiny):
    write_quantised(tmp_path / "hf", tiny, FORMATS["AWQ"])
    with open_model(tmp_path / "hf") as file:
        before = file.fingerprint()
    path = tmp_path / "hf/model.safetensors"
    raw = bytearray(path.read_bytes())
    table = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    raw[8 + int.from_bytes(raw[:8], "little") + table[f"{UP}.qweight"]["data_offsets"][0]] ^= 1
    path.write_bytes(raw)
    with open_model(tmp_path / "hf") as file:
        assert file.fingerprint() != before


def test_scales_of_activations_are_left_out(tmp_path, tiny):
    write_quantised(tmp_path / "hf", tiny, FORMATS["FP8 by tensor"])
    change_tensors(
        tmp_path / "hf",
        lambda t: {**t, f"{Q}.activation_scale": ("F32", np.ones((), np.float32))},
    )
    with open_model(tmp_path / "hf") as file:
        check_tensors(file, load_model(file))


def test_biases_of_zeros_that_gptq_adds_are_left_out(tmp_path, tiny):
    write_quantised(tmp_path / "hf", tiny, FORMATS["GPTQ"])
    for value, refused in ((0.0, False), (0.5, True)):
        bias = {f"{Q}.bias": ("F16", np.full(128, value, np.float16))}
        change_tensors(tmp_path / "hf", lambda t, bias=bias: t | bias)
        with open_model(tmp_path / "hf") as file:
            assert ("blk.0.attn_q.bias" in file.tensors) == refused


def test_gptq_stores_a_zero_point_of_zero_as_fifteen(tmp_path, tiny):
    each = write_quantised(tmp_path / "hf", tiny, FORMATS["GPTQ"])[f"{UP}.weight"]
    change_tensors(tmp_path / "hf", with_array(f"{UP}.qzeros", lambda a: np.full_like(a, -1)))
    with open_model(tmp_path / "hf") as file:
        found = read(file, f"{UP}.weight")
    np.testing.assert_allclose(found, each.values - each.offsets, rtol=1e-6, atol=0)


def test_a_quantised_head_beside_a_tied_embedding_is_left_out(tmp_path):
    model = write_tiny_model(tmp_path, sizes=SIZES, tied=True)
    packed = write_quantised(tmp_path / "hf", model, FORMATS["AWQ"])[f"{Q}.weight"]
    head = {f"lm_head{suffix}": each for suffix, each in packed.tensors.items()}
    change_tensors(tmp_path / "hf", lambda t: t | head)
    with open_model(tmp_path / "hf") as file:
        check_tensors(file, load_model(file))


def test_a_model_that_sees_pictures_may_say_it_outside_of_its_language_model():
    inner = {"model_type": "mistral", "hidden_size": 64, "num_attention_heads": 4}
    inner |= {"num_hidden_layers": 2, "intermediate_size": 64, "vocab_size": 100}
    inner |= {"max_position_embeddings": 64, "rms_norm_eps": 1e-6}
    outer = {"model_type": "mistral3", "text_config": inner, "quantization_config": FP8_BY_TENSOR}
    found = translate(Metadata("config.json", outer))
    assert found.quantization == Quantization("fp8")


# Refused.


Tensors = dict[str, tuple[str, np.ndarray]]


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> None:
    """Rewrites the weights of a folder of one file."""
    path = folder / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    types = {"F32": "<f4", "F16": "<f2", "BF16": "<u2", "I32": "<i4", "I64": "<i8"}
    tensors: Tensors = {}
    for name, entry in json.loads(raw[8:start]).items():
        first, end = (start + at for at in entry["data_offsets"])
        array = np.frombuffer(raw[first:end], types.get(entry["dtype"], "u1"))
        tensors[name] = entry["dtype"], array.reshape(entry["shape"]).copy()
    path.write_bytes(safetensors_bytes(change(tensors)))


def read_all(folder: Path) -> None:
    with open_model(folder) as file:
        check_tensors(file, load_model(file))
        for name in file.tensors:
            file.data(name)


def refusal(folder: Path) -> str:
    """Of a folder that is opened, or whose matrices are read."""
    with pytest.raises(FormatError) as error:
        read_all(folder)
    assert str(error.value).startswith(str(folder))
    return str(error.value)


def without(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: each for key, each in tensors.items() if key != name}


def with_array(name: str, change: Callable[[np.ndarray], Any]) -> Callable[[Tensors], Tensors]:
    def changed(tensors: Tensors) -> Tensors:
        dtype, array = tensors[name]
        return tensors | {name: (dtype, np.ascontiguousarray(change(array), array.dtype))}

    return changed


def with_dtype(name: str, dtype: str, type: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: tensors | {name: (dtype, tensors[name][1].astype(type))}


def filled(value: float) -> Callable[[np.ndarray], np.ndarray]:
    """The last value is this one."""

    def fill(array: np.ndarray) -> np.ndarray:
        array.reshape(-1)[-1] = value
        return array

    return fill


@pytest.mark.parametrize(
    ("name", "change", "fault"),
    [
        (
            "FP8 in blocks",
            without(f"{Q}.weight_scale_inv"),
            f"{Q}.weight' needs tensor '{Q}.weight_scale_inv', which is missing",
        ),
        (
            "FP8 in blocks",
            with_array(f"{UP}.weight_scale_inv", lambda a: a[:1]),
            f"'{UP}.weight_scale_inv' has shape [1, 1]; expected [2, 1]",
        ),
        (
            "FP8 in blocks",
            with_array(f"{UP}.weight_scale_inv", filled(np.nan)),
            f"'{UP}.weight_scale_inv' has values that are no finite numbers",
        ),
        (
            "FP8 in blocks",
            with_array(f"{UP}.weight", filled(0x7F)),
            f"'{UP}.weight' has values that are no finite numbers",
        ),
        (
            "FP8 in blocks",
            with_array(f"{UP}.weight_scale_inv", filled(1e38)),
            f"'{UP}.weight' has values",
        ),
        (
            "FP8 by tensor",
            with_array(f"{UP}.weight_scale_inv", lambda a: np.ones(2)),
            f"'{UP}.weight_scale_inv' has shape [2]; expected [256, 1], a scale for each row, or",
        ),
        (
            "FP8 by row",
            with_dtype(f"{UP}.weight_scale", "U8", "u1"),
            f"'{UP}.weight_scale' is of type U8; expected F32 or F16 or BF16",
        ),
        (
            "int4 in groups of 32",
            without(f"{UP}.weight_scale"),
            f"{UP}.weight_packed' needs tensor '{UP}.weight_scale', which is missing",
        ),
        (
            "int4 in groups of 32",
            with_array(f"{UP}.weight_scale", lambda a: a[:, :2]),
            f"'{UP}.weight_scale' has shape [256, 2]; expected [256, 4], as quantization_config",
        ),
        (
            "int4 in groups of 128",
            with_array(f"{UP}.weight_scale", filled(np.inf)),
            f"'{UP}.weight_scale' has values that are no finite numbers",
        ),
        (
            "int4 in groups of 32",
            with_array(f"{UP}.weight_shape", filled(2**60)),
            f"'{UP}.weight_shape' says [256, {2**60}]; expected [256, 128]",
        ),
        (
            "int4 in groups of 32",
            lambda t: t | {f"{UP}.weight_zero_point": ("I32", np.zeros((32, 4), "<i4"))},
            f"'{UP}.weight_zero_point' has zero points, which are not supported",
        ),
        (
            "int4 in groups of 32",
            lambda t: t | {f"{UP}.weight_g_idx": ("I32", np.arange(128, dtype="<i4")[::-1])},
            f"'{UP}.weight_g_idx' has the columns in another order",
        ),
        (
            "int4 in groups of 32",
            with_dtype(f"{UP}.weight_packed", "I64", "<i8"),
            f"'{UP}.weight_packed' is of type I64; expected I32",
        ),
        (
            "MXFP4 of compressed-tensors",
            with_array(f"{UP}.weight_scale", filled(255)),
            f"'{UP}.weight_scale' has a scale that is no number",
        ),
        (
            "MXFP4 of compressed-tensors",
            with_array(f"{UP}.weight_scale", lambda a: a[:, :3]),
            f"'{UP}.weight_scale' has shape [256, 3]; expected [256, 4]",
        ),
        (
            "AWQ",
            without(f"{UP}.qzeros"),
            f"{UP}.qweight' needs tensor '{UP}.qzeros', which is missing",
        ),
        (
            "AWQ",
            with_array(f"{UP}.qzeros", lambda a: a[:, :3]),
            f"'{UP}.qzeros' has shape [1, 3]; expected [1, 32]",
        ),
        (
            "AWQ",
            with_array(f"{UP}.scales", lambda a: a[:, :8]),
            f"'{UP}.scales' has shape [1, 8]; expected [1, 256]",
        ),
        (
            "AWQ",
            with_array(f"{UP}.scales", filled(np.nan)),
            f"'{UP}.scales' has values that are no finite numbers",
        ),
        (
            "AWQ",
            with_array(f"{UP}.scales", filled(60000.0)),
            f"'{UP}.scales' has scales of more than 65504",
        ),
        (
            "AWQ",
            with_array(f"{UP}.qweight", lambda a: a[:40]),
            f"'{UP}.qweight' has rows of 40 weights; expected a multiple of 32",
        ),
        (
            "GPTQ",
            with_array(f"{UP}.g_idx", filled(-1)),
            f"'{UP}.g_idx' has the columns in another order",
        ),
        (
            "GPTQ",
            with_array(f"{UP}.g_idx", filled(2**31 - 1)),
            f"'{UP}.g_idx' has the columns in another order",
        ),
        (
            "GPTQ",
            with_array(f"{UP}.g_idx", lambda a: a[:-1]),
            f"'{UP}.g_idx' has shape [127]; expected [128]",
        ),
        *(
            ("NVFP4 of ModelOpt", with_array(f"{UP}.weight_scale_2", filled(value)), fault)
            for value, fault in [
                (0, f"'{UP}.weight_scale_2' is 0; expected a number above 0"),
                (-2, f"'{UP}.weight_scale_2' is -2; expected a number above 0"),
                (np.nan, f"'{UP}.weight_scale_2' has values that are no finite numbers"),
                (np.inf, f"'{UP}.weight_scale_2' has values that are no finite numbers"),
            ]
        ),
        *(
            (
                "NVFP4 of compressed-tensors",
                with_array(f"{UP}.weight_global_scale", filled(value)),
                f"'{UP}.weight_global_scale' is {said}; expected a number above 0",
            )
            for value, said in [(0, "0"), (-1, "-1"), (1e-45, "1.4013e-45")]
        ),
        (
            "NVFP4 of ModelOpt",
            with_array(f"{UP}.weight_scale_2", lambda a: np.full(2, a)),
            f"'{UP}.weight_scale_2' has shape [2]; expected one number",
        ),
        (
            "NVFP4 of ModelOpt",
            without(f"{UP}.weight_scale_2"),
            f"'{UP}.weight' needs tensor '{UP}.weight_scale_2', which is missing",
        ),
        (
            "NVFP4 of compressed-tensors",
            without(f"{UP}.weight_global_scale"),
            f"needs tensor '{UP}.weight_global_scale', which is missing",
        ),
        (
            "NVFP4 of ModelOpt",
            with_array(f"{UP}.weight_scale", lambda a: a[:, :-1]),
            f"'{UP}.weight_scale' has shape [256, 7]; expected [256, 8]",
        ),
        (
            "NVFP4 of ModelOpt",
            with_array(f"{UP}.weight", lambda a: a[:, :-8]),
            f"'{UP}.weight' has shape [256, 56]; expected [n, k / 2], k a multiple of 64",
        ),
        *(
            (
                "NVFP4 of ModelOpt",
                with_array(f"{UP}.weight_scale", filled(code)),
                f"'{UP}.weight_scale' has a scale that is negative or no number",
            )
            for code in (0x7F, 0x80, 0xB8, 0xFF)
        ),
        (
            "GPTQ, symmetric",
            with_array(f"{UP}.qzeros", filled(0)),
            f"'{UP}.qzeros' has zero points other than 8",
        ),
    ],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, tiny, name, change, fault):
    write_quantised(tmp_path / "hf", tiny, FORMATS[name])
    change_tensors(tmp_path / "hf", change)
    assert fault in refusal(tmp_path / "hf")


@pytest.mark.parametrize(
    ("config", "fault"),
    [
        ({"quant_method": "bitsandbytes"}, "quant_method is 'bitsandbytes'; supported are fp8"),
        ({}, None),
        ({"bits": 4}, "quant_method is None"),
        ("gptq", "quantization_config is no object"),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "fmt is 'e5m2'; expected e4m3"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "weight_block_size is [0, 128]"),
        ({"quant_method": "fp8", "weight_block_size": [2**40] * 2}, "weight_block_size is"),
        ({"quant_method": "fp8", "weight_block_size": 128}, "expected two sizes"),
        ({"quant_method": "awq", "bits": 8}, "bits is 8; expected 4"),
        ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "version is 'gemv'; expected gemm"),
        ({"quant_method": "awq", "bits": 4, "zero_point": False}, "zero_point is False"),
        ({"quant_method": "gptq", "bits": 3}, "bits is 3; expected 4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 16}, "group_size is 16; expected a mul"),
        ({"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"}, "is 'marlin'"),
        (
            compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group")
            | {"format": "nvfp4-pack-quantised"},
            "format is 'nvfp4-pack-quantised'",
        ),
        (
            compressed(
                "nvfp4-pack-quantized",
                **{"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 32},
            ),
            "group_size is 32; expected 16",
        ),
        ({"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}, "quant_algo is 'w4a8_awq'"),
        (compressed("marlin-24", num_bits=4), "format is 'marlin-24'"),
        (compressed("pack-quantized", num_bits=8, type="int"), "num_bits is 8; expected 4"),
        (
            compressed("pack-quantized", num_bits=4, type="int", symmetric=False),
            "symmetric is False; expected True",
        ),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized"},
            "config_groups does not describe 1 to 16 groups",
        ),
        (
            compressed("pack-quantized", num_bits=4, type="int") | {"transform_config": {"u": 1}},
            "transform_config asks for something that is not supported",
        ),
    ],
)
def test_a_quantisation_that_is_not_supported_is_refused_by_name(tmp_path, tiny, config, fault):
    write_quantised(tmp_path / "hf", tiny, FORMATS["AWQ"])
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": config}))
    said = refusal(tmp_path / "hf")
    if fault is None:
        assert "qweight' is of type I32; supported are F32" in said
    else:
        assert fault in said
        assert "no object" in said or "a GGUF file of the model, can be opened" in said


def test_a_reordered_matrix_that_does_not_say_its_order_is_refused(tmp_path, tiny):
    write_quantised(tmp_path / "hf", tiny, FORMATS["GPTQ"])
    path = tmp_path / "hf/config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["desc_act"] = True
    path.write_text(json.dumps(config))
    read_all(tmp_path / "hf")  # its tensors say that the order is the plain one
    change_tensors(tmp_path / "hf", without(f"{UP}.g_idx"))
    assert f"'{UP}.qweight' has the columns in another order" in refusal(tmp_path / "hf")


def test_quantised_tensors_need_a_description(tmp_path, tiny):
    write_quantised(tmp_path / "hf", tiny, FORMATS["FP8 in blocks"])
    path = tmp_path / "hf/config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": None}))
    assert "is of type F8_E4M3; supported are F32, F16, BF16, and what quantization_config" in (
        refusal(tmp_path / "hf")
    )
