"""Falcon-H1: what a layer keeps, its constants in folders and in files, and what is refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from family_models import CONTEXT, VOCAB, described, metadata_of, shapes, write_family_model
from gguf_writer import TensorSpec, write_gguf

from airllm.formats import model_file
from airllm.formats.convert import convert
from airllm.formats.model_file import ModelFile
from airllm.formats.multiplied import multiplied
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import Model, load_model
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata

ARCH = "falcon-h1"
TOKENS = np.random.default_rng(3).integers(0, VOCAB, 20).tolist()
EXACT: dict[str, Any] = {"kv_type": "f32", "activations": "f32", "context": CONTEXT}

# As the published folders have it.
CONFIG: dict[str, Any] = {
    **{"model_type": "falcon_h1", "vocab_size": 160, "hidden_size": 64, "hidden_act": "silu"},
    **{"intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32},
    **{"num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5},
    **{"mamba_d_ssm": 96, "mamba_n_heads": 8, "mamba_d_head": 12, "mamba_n_groups": 2},
    **{"mamba_d_state": 16, "mamba_d_conv": 4, "mamba_expand": 2, "mamba_chunk_size": 256},
    **{"mamba_conv_bias": True, "mamba_proj_bias": False, "mamba_rms_norm": False},
    **{"mamba_norm_before_gate": True, "mamba_use_mlp": True, "attn_layer_indices": None},
    **{"mlp_expansion_factor": 8, "attention_bias": False, "mlp_bias": False},
    **{"projectors_bias": False, "rope_theta": 1e11, "rope_scaling": None},
    **{"embedding_multiplier": 5.5, "lm_head_multiplier": 0.25, "key_multiplier": 0.5},
    **{"attention_in_multiplier": 2.0, "attention_out_multiplier": 0.75, "ssm_in_multiplier": 4.0},
    **{"ssm_out_multiplier": 0.125, "mlp_multipliers": [0.5, 3.0]},
    "ssm_multipliers": [0.5, 1.0, 2.0, 0.25, 0.125],
}


def translated(**changes: object) -> dict[str, Any]:
    """GGUF's keys of a folder, without the architecture in front."""
    said = {key: value for key, value in (CONFIG | changes).items() if value != "left out"}
    found = translate(Metadata("config.json", said)).metadata
    return {key.removeprefix(f"{ARCH}."): value for key, value in found.items()}


def refusal(**changes: object) -> str:
    with pytest.raises(FormatError) as refused:
        translated(**changes)
    return str(refused.value)


def loaded(**entries: object) -> Model:
    """The model of tests/family_models.py with other metadata."""
    usual = metadata_of(ARCH)
    own = {f"{ARCH}.{key}": value for key, value in entries.items()}
    return load_model(described(usual | own, shapes(ARCH, usual)))


def logits(path: Path) -> np.ndarray:
    with LayerWiseInferenceEngine(path, backend="numpy", **EXACT) as engine:
        return engine.forward(TOKENS, last_only=False)


def difference(actual: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(actual - expected) / np.linalg.norm(expected))


def test_a_layer_keeps_keys_and_recurrent_memory() -> None:
    model = loaded()
    assert len(model.kinds) == 1
    for state in model.states:
        assert state.keys is not None
        assert (state.keys.n_kv_heads, state.keys.head_dim, state.keys.value_dim) == (2, 16, 16)
        assert state.recurrent_floats == 128 * 16 + (4 - 1) * (128 + 2 * 2 * 16)
    assert set(model.kinds[0].rotations) == {"rope"}


def test_the_constants_of_a_folder_are_factors_of_slots() -> None:
    found = {key: value for key, value in translated().items() if key.startswith("factor.")}
    parts = found.pop("factor.ssm_in")
    np.testing.assert_array_equal(parts, [2.0, 4.0, 8.0, 1.0, 0.5])
    assert found == {
        **{"factor.token_embd": 5.5, "factor.output": 0.25, "factor.attn_q": 2.0},
        **{"factor.attn_v": 2.0, "factor.attn_output": 0.75},  # 2 * 0.5 is no factor of attn_k
        **{"factor.ssm_out": 0.125, "factor.ffn_gate": 0.5, "factor.ffn_down": 3.0},
    }
    assert translated(key_multiplier=0.75)["factor.attn_k"] == 1.5


@pytest.mark.parametrize(("said", "inner"), [(96, 96), (None, 128), ("left out", 1024)])
def test_the_width_of_mamba_may_follow_from_the_model_s(said: object, inner: int) -> None:
    found = translated(mamba_d_ssm=said, mamba_d_head="auto")
    assert found["ssm.inner_size"] == inner


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_bias": True}, "attention_bias is 'True'; expected False"),
        ({"mlp_bias": True}, "mlp_bias is 'True'; expected False"),
        ({"projectors_bias": True}, "projectors_bias is 'True'; expected False"),
        ({"mamba_proj_bias": True}, "mamba_proj_bias is 'True'; expected False"),
        ({"mamba_use_mlp": False}, "mamba_use_mlp is 'False'; expected True"),
        ({"attn_layer_indices": [1]}, "attn_layer_indices is '[1]'"),
        ({"mamba_rms_norm": True}, "mamba_norm_before_gate is 'True'; expected False"),
        ({"mamba_d_head": 16}, "mamba_d_head times mamba_n_heads, 8, is not 96"),
        ({"key_multiplier": -1.0}, "key_multiplier has -1.0; expected a number above 0"),
        ({"ssm_multipliers": [1.0] * 4}, "ssm_multipliers is no list of 5 numbers"),
        ({"ssm_multipliers": 2.0}, "ssm_multipliers is no list of 5 numbers"),
        ({"mlp_multipliers": [1.0, "x"]}, "mlp_multipliers has x; expected a number above 0"),
        ({"mamba_new_thing": 1}, "mamba_new_thing asks for something"),
        ({"value_multiplier": 2.0}, "value_multiplier asks for something"),
    ],
)
def test_a_folder_with_another_arithmetic_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    assert said in refusal(**changes)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("factor.attn_q", -1.0, "is -1.0; expected it above 0"),
        ("factor.ffn_up", 2.0, "asks for something that falcon-h1 models here do not do"),
        ("factor.ssm_in", np.ones(4, np.float32), "is no array of 5 numbers"),
        ("factor.ssm_in", np.zeros(5, np.float32), "has a number that is not above 0"),
        ("factor.ssm_in", np.full(5, np.inf, np.float32), "has a number that is not above 0"),
        ("factor.ssm_in", 2.0, "is no array of 5 numbers"),
        ("ssm.group_count", 3, "is 3; expected a divisor of 8 heads"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        loaded(**{key: value})
    assert f"{ARCH}.{key} {said}" in str(refused.value)


def test_a_conversion_multiplies_the_matrices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_file, "PIECE_VALUES", 3000)  # of 47 rows
    path = write_family_model(tmp_path, ARCH)
    with open_model(path) as model:
        convert(model, tmp_path / "converted.gguf", "f32")
    with open_model(tmp_path / "converted.gguf") as converted:
        assert not [key for key in converted.metadata if ".factor." in key]
        assert load_model(converted).config.mamba2.factors == (1.0,) * 5
    assert difference(logits(tmp_path / "converted.gguf"), logits(path)) < 3e-6


@pytest.mark.parametrize("type", ["bf16", "q8_0"])
def test_a_conversion_to_a_type_rounds_the_products(tmp_path: Path, type: str) -> None:
    path = write_family_model(tmp_path, ARCH)
    with open_model(path) as model:
        convert(model, tmp_path / "converted.gguf", type)
    assert difference(logits(tmp_path / "converted.gguf"), logits(path)) < 0.05


@pytest.mark.parametrize("left_out", ["output", "token_embd", "nothing"])
def test_a_conversion_of_tied_embeddings_writes_the_matrix_of_the_logits(
    tmp_path: Path, left_out: str
) -> None:
    """The embedding's factor is not that of the logits."""
    specs: list[TensorSpec] = []
    with open_model(write_family_model(tmp_path, ARCH)) as model:
        for name, tensor in model.tensors.items():
            if name != "output.weight":
                values = model.data(name).view("<f4").reshape(tensor.shape)
                specs.append((name, "f32", tensor.shape, np.array(values)))
    entries = metadata_of(ARCH)
    entries.pop(f"{ARCH}.factor.{left_out}", None)
    tied = write_gguf(tmp_path / "tied.gguf", entries, specs)
    with open_model(tied) as model:
        convert(model, tmp_path / "converted.gguf", "f32")
    assert difference(logits(tmp_path / "converted.gguf"), logits(tied)) < 3e-6


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("factor.attn_q", "much", "factor.attn_q is the string 'much'; expected a number"),
        ("factor.ssm_in", np.ones(2**12, np.float32), "factor.ssm_in is no array of 5 numbers"),
        ("ssm.inner_size", 129, "ssm_in.weight has 328 rows; expected 330"),
        ("ssm.inner_size", 2**31 - 1, "ssm_in.weight has 328 rows; expected 4294967366"),
    ],
)
def test_a_conversion_refuses_factors_that_do_not_fit(
    tmp_path: Path, key: str, value: object, said: str
) -> None:
    with open_model(write_family_model(tmp_path, ARCH)) as model:
        entries = {**model.metadata, f"{ARCH}.{key}": value}
        other = SimpleNamespace(
            metadata=Metadata("m.gguf", entries), tensors=model.tensors, path=None, parts=()
        )
        with pytest.raises(FormatError) as refused:
            multiplied(cast(ModelFile, other))
    assert said in str(refused.value)
