"""Gemma 3n: what is read of files and folders, and what is refused."""

import json
from typing import Any

import numpy as np
import pytest
from family_models import described, metadata_of, shapes
from hf_case import VOCAB
from hf_cases import CASES
from hf_models import build, logits, require_hf, write_folder
from messages import check_refused

from airllm.formats.convert import convert
from airllm.layer_engine import LayerWiseInferenceEngine
from airllm.models import Model, load_model
from airllm.models.opening import open_model, translate
from airllm.util.metadata import FormatError, Metadata

ARCH = "gemma3n"
SHAPES = shapes(ARCH, metadata_of(ARCH))
CUTOFFS, PATTERN = "activation_sparsity_scale", "attention.sliding_window_pattern"


def model_of(**changes: object) -> Model:
    """changes: of GGUF's keys; None takes a key away."""
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    return load_model(described(entries, SHAPES))


def test_the_gates_of_layers_that_the_file_says_are_cut_off() -> None:
    cutoffs = [layer.cutoff for layer in model_of().config.layers]
    assert cutoffs == [pytest.approx(1.6), 0.5, *6 * [None]]


def test_most_gates_of_the_first_ten_layers_are_cut_off_where_a_file_says_nothing() -> None:
    cutoffs = [layer.cutoff for layer in model_of(**{CUTOFFS: None}).config.layers]
    assert cutoffs == [pytest.approx(1.6448536)] * 8


def test_the_last_layers_read_the_keys_of_the_last_of_their_kind() -> None:
    layers = model_of().config.layers
    assert [layer.keys_of for layer in layers] == [*5 * [None], 4, 3, 4]


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("altup.active_idx", 1, "is 1; expected 0"),
        ("altup.num_inputs", 2, "is 2; expected 3 to 16"),
        (CUTOFFS, np.zeros(3, np.float32), "is no array of 8 numbers, one for each layer"),
        (CUTOFFS, np.full(8, np.nan, np.float32), "has nan; expected -1000 to 1000, or -inf"),
        (PATTERN, np.array([True] * 5 + [False] * 3), "is 3; expected a layer without a window"),
    ],
)
def test_a_file_that_asks_for_more_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError, match=rf"tiny: {ARCH}\.") as refused:
        model_of(**{key: value})
    assert said in str(refused.value)


# ---- folders -------------------------------------------------------------------------------------


def translated(**changes: object) -> dict[str, object]:
    text: dict[str, Any] = {"model_type": "gemma3n_text", "num_hidden_layers": 10} | changes
    config = {"model_type": ARCH, "text_config": text, "vision_config": {}, "audio_config": {}}
    return translate(Metadata("config.json", config)).metadata


def test_shares_of_gates_become_deviations() -> None:
    found = translated(activation_sparsity_pattern=[0.95, 0.5, *8 * [0.0]])[f"{ARCH}.{CUTOFFS}"]
    np.testing.assert_allclose(found, [1.6448536, 0, *8 * [-np.inf]], rtol=1e-6)


@pytest.mark.parametrize(("n_layers", "n_cut"), [(10, 0), (11, 10)])
def test_the_first_ten_of_more_layers_have_cut_gates_unless_the_folder_says_otherwise(
    n_layers: int, n_cut: int
) -> None:
    found = translated(num_hidden_layers=n_layers)[f"{ARCH}.{CUTOFFS}"]
    assert np.isfinite(found).tolist() == [index < n_cut for index in range(n_layers)]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"activation_sparsity_pattern": [0.5] * 9}, "activation_sparsity_pattern is no list of"),
        ({"activation_sparsity_pattern": [1.0] * 10}, "activation_sparsity_pattern is no list of"),
        ({"activation_sparsity_pattern": ["a"] * 10}, "activation_sparsity_pattern is no list of"),
        ({"intermediate_size": [64] * 9}, "intermediate_size is no list of 10 integers"),
        ({"intermediate_size": [-1] * 10}, "intermediate_size is no list of 10 integers"),
        ({"altup_correct_scale": False}, "altup_correct_scale is 'False'; expected True"),
        ({"layer_types": ["chunked"] * 10}, "layer_types does not say of each of 10 layers"),
        ({"attn_logit_softcapping": 50.0}, "attn_logit_softcapping asks for something"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)


def test_the_text_of_a_model_that_sees_and_hears_is_taken(tmp_path) -> None:
    """Its table of layers' embeddings has no rows for the tokens of pictures and sounds."""
    require_hf()
    from safetensors.numpy import load_file, save_file

    case, n_rows = CASES["Gemma 3n"], VOCAB - 16
    case = type(case)(
        **(vars(case) | {"config": case.config | {"vocab_size_per_layer_input": n_rows}})
    )
    hf = build(case)
    folder = write_folder(tmp_path / "model", case, hf)
    tensors = load_file(folder / "model.safetensors")
    tensors = {
        name.replace("model.", "model.language_model.", 1): tensors[name] for name in tensors
    }
    for other in ("vision_tower.a", "audio_tower.b", "embed_vision.c", "embed_audio.d"):
        tensors[f"model.{other}.weight"] = np.zeros((2, 3), np.float32)
    save_file(tensors, folder / "model.safetensors")
    config = {"model_type": ARCH, "text_config": json.loads((folder / "config.json").read_text())}
    (folder / "config.json").write_text(json.dumps(config))
    tokens = np.random.default_rng(3).integers(0, n_rows, 40).tolist()
    expected = logits(hf, tokens)
    exact = {"kv_type": "f32", "activations": "f32", "backend": "numpy"}
    with open_model(folder) as model:
        convert(model, tmp_path / "model.gguf", "f32")
    for path in (folder, tmp_path / "model.gguf"):
        with open_model(path) as model:
            table = model.data("per_layer_token_embd.weight").view("<f4").reshape(VOCAB, -1)
            assert not table[n_rows:].any()
            assert table[:n_rows].any(axis=1).all()
        with LayerWiseInferenceEngine(path, **exact) as engine:
            actual = engine.forward(tokens, last_only=False)
        assert np.linalg.norm(actual - expected) <= 3e-6 * np.linalg.norm(expected)
