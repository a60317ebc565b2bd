"""Matrices that have a scale beside them, as those of NVFP4 have, give scaled products."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import reference_model
from extension import require_cpp
from family_models import EVERY_ARCHITECTURE, write_family_model
from gguf_writer import TensorSpec
from streamed_model import smallest_budget
from test_family_paths import EXACT as FAMILY
from test_family_paths import TOKENS as FAMILY_TOKENS
from test_model_families import EXACT, TOKENS, error, logits_of
from tiny_model import FAMILIES, Sizes, TinyModel, write_tiny_model

from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import load_model
from airllm.models.opening import open_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import next_places, places, tensor_name

# Blocks of NVFP4 have 64 values.
DENSE = Sizes("qwen2", hidden=128, ffn=192, n_layers=3, head_dim=32, rope_dims=32)  # has biases
MIXTURE = dataclasses.replace(FAMILIES["qwen3moe"], hidden=128, ffn=64, n_layers=3)


@pytest.fixture(params=["numpy", "cpp"])
def backend(request):
    if request.param == "cpp":
        require_cpp()
    return request.param


def scales_of(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """A scale for every matrix that is multiplied by, float32 by the tensor's name, from 0.6 to
    1.4: one, or one for each expert."""
    rng = np.random.default_rng(8)
    return {
        name: rng.uniform(0.6, 1.4, len(values) if values.ndim == 3 else 1).astype(np.float32)
        for name, values in tensors.items()
        if values.ndim > 1 and name != "token_embd.weight"
    }


def written(folder: Path, sizes: Sizes, scales: dict[str, np.ndarray] | None = None) -> TinyModel:
    """A model in NVFP4 with a scale beside each matrix, and the values of the products."""
    plain = write_tiny_model(folder, "nvfp4", sizes=sizes)
    scales = scales_of(plain.tensors) if scales is None else scales
    beside: dict[str, TensorSpec | None] = {}
    for name, values in scales.items():
        own = name.replace(".weight", ".scale")
        beside[own] = (own, "f32", values.shape, values)
    model = write_tiny_model(folder, "nvfp4", sizes=sizes, tensors=beside)
    values = {
        name: tensor * scales[name].astype(np.float64).reshape(-1, *[1] * (tensor.ndim - 1))
        if name in scales
        else tensor
        for name, tensor in model.tensors.items()
    }
    return TinyModel(model.path, sizes, values)


@pytest.mark.parametrize("sizes", [DENSE, MIXTURE], ids=["dense", "experts"])
def test_logits_are_those_of_the_matrices_times_their_scales(tmp_path, backend, sizes):
    model = written(tmp_path, sizes)
    expected = reference_model.forward(model.tensors, sizes, TOKENS)
    assert error(logits_of(model, backend, [TOKENS]), expected) <= EXACT
    assert error(logits_of(model, backend, [[id] for id in TOKENS]), expected) <= EXACT


def test_layers_may_differ_in_the_matrices_that_have_a_scale(tmp_path, backend):
    scales = scales_of(write_tiny_model(tmp_path, "nvfp4", sizes=MIXTURE).tensors)
    some = {name: each for name, each in scales.items() if name.startswith("blk.1.")}
    some |= {"blk.2.ffn_up_exps.weight": scales["blk.2.ffn_up_exps.weight"]}
    model = written(tmp_path, MIXTURE, some)
    expected = reference_model.forward(model.tensors, MIXTURE, TOKENS)
    assert error(logits_of(model, backend, [TOKENS]), expected) <= EXACT


@pytest.mark.parametrize("sizes", [DENSE, MIXTURE], ids=["dense", "experts"])
def test_fusion_changes_no_bit_of_scaled_products(tmp_path, backend, sizes):
    model = written(tmp_path, sizes)
    plain = logits_of(model, backend, [TOKENS], fusion=False)
    np.testing.assert_array_equal(logits_of(model, backend, [TOKENS], fusion=True), plain)


@pytest.mark.parametrize("sizes", [DENSE, MIXTURE], ids=["dense", "experts"])
def test_a_streamed_model_has_its_scales(tmp_path, backend, sizes):
    sizes = dataclasses.replace(sizes, n_layers=8, ffn=512)
    model = written(tmp_path, sizes)

    def opened(model: TinyModel, ram_budget: int) -> LayerWiseInferenceEngine:
        exact = {"kv_type": "f32", "activations": "f32", "batch_size": 32}
        return LayerWiseInferenceEngine(model.path, backend=backend, ram_budget=ram_budget, **exact)

    with opened(model, smallest_budget(opened, model)) as engine:
        assert engine.plan().streams
        found = engine.forward(TOKENS, last_only=False)
    assert error(found, reference_model.forward(model.tensors, sizes, TOKENS)) <= EXACT


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE)
def test_every_product_of_every_architecture_is_scaled(tmp_path, architecture):
    """By powers of two, with which float32 multiplies matrices and products exactly."""
    require_cpp()
    (tmp_path / "beside").mkdir()
    plain = write_family_model(tmp_path, architecture)
    with open_model(plain) as file:
        model = load_model(file, with_next_head=True)
    beside: dict[str, np.ndarray] = {}
    for graph, layer in (*places(model), *next_places(model)):
        for slot in graph.weights:
            role, name = graph.roles[slot.name], tensor_name(slot.name, layer)
            scale = name.replace(".weight", ".scale")
            own = f"{slot.name}.scale" in graph.roles  # Gemma 4's, of shares
            if role in ("matrix", "experts", "heads") and name != "token_embd.weight" and not own:
                n = slot.shape[0] if role == "experts" else 1
                beside[scale] = 2.0 ** (np.arange(n) % 3 - len(name) % 2)

    def multiplied(name: str, values: np.ndarray) -> np.ndarray:
        scale = beside.get(name.replace(".weight", ".scale"), np.ones(1))
        return values * scale.reshape(-1, *[1] * (values.ndim - 1)) if values.ndim > 1 else values

    expected = write_family_model(tmp_path, architecture, multiplied)
    with LayerWiseInferenceEngine(expected, backend="cpp", **FAMILY) as engine:
        logits = engine.forward(FAMILY_TOKENS, last_only=False).copy()
    scaled = write_family_model(tmp_path / "beside", architecture, beside=beside)
    with LayerWiseInferenceEngine(scaled, backend="cpp", **FAMILY) as engine:
        np.testing.assert_array_equal(engine.forward(FAMILY_TOKENS, last_only=False), logits)
    assert len(beside) > model.config.n_layers


# What is refused.


def refusal(folder: Path, name: str, values: object, type: str = "f32", **changes) -> str:
    array = np.asarray(values, {"f32": np.float32, "f16": np.float16}[type])
    model = write_tiny_model(
        folder, "nvfp4", tensors={name: (name, type, array.shape, array)}, **changes
    )
    with pytest.raises(FormatError) as caught:
        LayerWiseInferenceEngine(model.path, backend="numpy")
    return str(caught.value).removeprefix(f"{model.path}: ")


@pytest.mark.parametrize("name", ["blk.1.attn_q.scale", "output.scale"])
@pytest.mark.parametrize("value", [0.0, -0.0, -2.0, np.nan, np.inf, -np.inf])
def test_a_scale_that_makes_no_sense_is_refused(tmp_path, name, value):
    assert refusal(tmp_path, name, [value]) == (
        f"tensor {name} has the scale {value:g}; expected a finite number above 0"
    )


def test_each_experts_scale_is_looked_at(tmp_path):
    name = "blk.0.ffn_down_exps.scale"
    said = refusal(tmp_path, name, [1, 2, 3, 4, 5, -6], sizes=MIXTURE)
    assert said == f"tensor {name} has the scale -6; expected a finite number above 0"


@pytest.mark.parametrize("shape", [(2,), (1, 1), (256,)])
def test_a_scale_of_another_shape_is_refused(tmp_path, shape):
    said = refusal(tmp_path, "blk.0.ffn_up.scale", np.ones(shape))
    assert said.startswith(f"tensor blk.0.ffn_up.scale is f32 {[*shape]}; expected f32 [1]")


@pytest.mark.parametrize("n", [1, 5, 7])
def test_experts_have_as_many_scales_as_there_are_experts(tmp_path, n):
    said = refusal(tmp_path, "blk.0.ffn_up_exps.scale", np.ones(n), sizes=MIXTURE)
    assert said.startswith(f"tensor blk.0.ffn_up_exps.scale is f32 [{n}]; expected f32 [6]")


def test_a_scale_of_another_type_is_refused(tmp_path):
    said = refusal(tmp_path, "blk.0.ffn_up.scale", [1.0], "f16")
    assert said.startswith("tensor blk.0.ffn_up.scale is f16 [1]; expected f32 [1]")


@pytest.mark.parametrize(
    "name",
    [
        *("token_embd.scale", "blk.0.attn_norm.scale", "blk.0.attn_qkv.scale"),
        *("blk.9.attn_q.scale", "attn_q.scale", "token_embd.input_scale"),
        "blk.0.attn_qkv.input_scale",
    ],
)
def test_a_scale_without_a_matrix_is_refused_by_name(tmp_path, name):
    assert refusal(tmp_path, name, [1.0]) == (
        f"tensor {name} scales no matrix that a llama model multiplies by"
    )


@pytest.mark.parametrize("tied", [False, True])
def test_a_table_of_rows_has_no_scale(tmp_path, tied):
    said = refusal(tmp_path, "token_embd.scale", [2.0], tied=tied)
    assert said.startswith("tensor token_embd.scale scales no matrix")


def test_what_activations_were_rounded_by_changes_nothing(tmp_path, backend):
    plain = logits_of(write_tiny_model(tmp_path, "nvfp4"), backend, [TOKENS])
    name = "blk.0.attn_q.input_scale"
    beside = {name: (name, "f32", (1,), np.full(1, 0.25, np.float32))}
    model = write_tiny_model(tmp_path, "nvfp4", tensors=beside)
    np.testing.assert_array_equal(logits_of(model, backend, [TOKENS]), plain)
