"""Llama 4: which layers have chunks, rotate, have experts; and what is refused."""

from typing import Any

import numpy as np
import pytest
from family_models import described, metadata_of, shapes
from messages import check_refused

from airllm.models import Model, load_model
from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

ARCH = "llama4"
SHAPES = shapes(ARCH, metadata_of(ARCH))


def model_of(**changes: object) -> Model:
    """changes: of GGUF's keys; None takes a key away."""
    entries = metadata_of(ARCH) | {f"{ARCH}.{key}": value for key, value in changes.items()}
    entries = {key: value for key, value in entries.items() if value is not None}
    return load_model(described(entries, SHAPES))


def test_every_fourth_layer_sees_all_positions_and_does_not_rotate() -> None:
    layers = model_of().config.layers
    assert [layer.window for layer in layers] == [20, 20, 20, 0] * 2
    assert [layer.rotates for layer in layers] == [True, True, True, False] * 2


def test_a_chunk_is_what_llama_cpp_takes_for_granted_where_a_file_says_nothing() -> None:
    assert model_of(**{"attention.sliding_window": None}).config.windows[0] == 8192


@pytest.mark.parametrize(("step", "places"), [(1, range(8)), (2, (1, 3, 5, 7)), (3, (2, 5))])
def test_experts_come_every_so_many_layers(step: int, places: Any) -> None:
    layers = model_of(interleave_moe_layer_step=step).config.layers
    assert [index for index, layer in enumerate(layers) if layer.has_experts] == list(places)


def test_a_chunk_is_kept_by_layers_that_have_it_and_by_no_others() -> None:
    kept = [state.keys for state in model_of().states]
    assert [(keys.window, keys.chunked) for keys in kept if keys] == [
        *([(20, True)] * 3 + [(0, False)]) * 2
    ]


def test_queries_without_rotation_grow_a_position_before_each_period_is_over() -> None:
    growth = model_of().kinds[model_of().kind_of_layer[3]].rotations["growth"]
    factors = growth.magnitudes(np.array([0, 14, 15, 30, 31]))
    grown = 1 + 0.1 * np.log([1, 1, 2, 2, 3])
    np.testing.assert_allclose(factors, grown)


@pytest.mark.parametrize("value", [0.0, None])
def test_queries_grow_by_what_llama_cpp_takes_for_granted_unless_the_file_says_0(
    value: float | None,
) -> None:
    config = model_of(**{"attention.temperature_scale": value}).config
    assert config.attention_temperature == (0.1 if value is None else 0.0)


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("attention.sliding_window", 0, "is 0; expected 1 to 16777216"),
        ("expert_used_count", 2, "is 2; expected 1"),
        ("interleave_moe_layer_step", 0, "is 0; expected 1 to"),
        ("attention.temperature_scale", -0.5, "is -0.5; expected 0 to 1000"),
        ("attention.temperature_length", 0, "is 0; expected 1 to 16777216"),
    ],
)
def test_a_file_that_asks_for_more_is_refused_by_name(key: str, value: object, said: str) -> None:
    with pytest.raises(FormatError) as refused:
        model_of(**{key: value})
    assert f"{ARCH}.{key} {said}" in str(refused.value)


# ---- folders -------------------------------------------------------------------------------------

SCOUT: dict[str, Any] = {
    **{"model_type": "llama4_text", "num_hidden_layers": 8, "attn_temperature_tuning": 4},
    **{"no_rope_layers": [], "interleave_moe_layer_step": 1, "attention_chunk_size": 8192},
    "rope_scaling": {
        **{"rope_type": "llama3", "factor": 16.0, "original_max_position_embeddings": 8192},
        **{"low_freq_factor": 1.0, "high_freq_factor": 1.0},
    },
}


def translated(**changes: object) -> dict[str, object]:
    config = {"model_type": "llama4", "text_config": SCOUT | changes, "vision_config": {}}
    return translate(Metadata("config.json", config)).metadata


def test_the_published_folder_is_translated_to_what_files_say() -> None:
    found = translated()
    assert found[f"{ARCH}.feed_forward_length"] == 16384
    assert found[f"{ARCH}.expert_feed_forward_length"] == 8192
    assert not [key for key in found if "sliding" in key or "temperature" in key]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"attention_chunk_size": None}, "attention_chunk_size is null"),
        ({"no_rope_layer_interval": 2}, "says other than that every 4th layer does not rotate"),
        ({"no_rope_layers": [1] * 8}, "says other than that every 4th layer does not rotate"),
        ({"layer_types": ["full_attention"] * 8}, "layer_types says other than that the layers"),
        ({"moe_layers": [1, 3]}, "moe_layers says other than interleave_moe_layer_step, 1"),
        ({"use_qk_norm": False}, "use_qk_norm is 'False'; expected True"),
        ({"num_local_experts": 128}, "use_qk_norm is 'True'; expected False"),
        ({"attention_logit_softcap": 3.0}, "attention_logit_softcap asks for something"),
    ],
)
def test_a_folder_that_asks_for_more_is_refused_by_name(
    changes: dict[str, object], said: str
) -> None:
    check_refused(lambda: translated(**changes), said)
