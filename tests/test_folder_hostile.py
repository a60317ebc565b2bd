"""Whatever a folder's config.json says, it is refused by name, or it becomes a file's header."""

import copy
import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from family_folders import MODEL_TYPES, config_of
from traced_memory import limited_memory

from airllm.models.opening import translate
from airllm.util.metadata import FormatError, Metadata

VALUES: list[object] = [
    *(-1, 0, 1, 3, 7, 2**16 + 1, 2**31 - 1, 2**31, 2**63, -(2**63)),
    *(-0.5, 0.0, 0.3, 1e-30, 1e30, 1.5e308),
    *("", "yarn", "none", "x" * 5000, True, False, None),
    *([], [None], ["a"], [[]], [-1], [0] * 4, [2**31] * 4, [0.5] * 4, [1] * 2**12),
    *(["full_attention"] * 4, ["sliding_attention"] * 4, {}, {"a": 1}),
    *({"rope_type": kind} for kind in ("yarn", "linear", "longrope", "llama3", "proportional")),
    {"rope_type": "yarn", "factor": 1e300, "original_max_position_embeddings": 1},
    {"full_attention": {"rope_type": "proportional"}},
    {"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 32}
    | {"low_freq_factor": 1.0, "high_freq_factor": 4.0},
]
# What any family may read, beside what its config.json here has.
KEYS = [
    *("head_dim", "layer_types", "sliding_window", "max_window_layers", "partial_rotary_factor"),
    *("rope_theta", "rope_scaling", "rope_parameters", "rope_local_base_freq", "layer_rope_theta"),
    *("tie_word_embeddings", "attention_bias", "quantization_config", "text_config"),
    *("num_nextn_predict_layers", "n_group", "topk_group", "n_shared_experts", "norm_topk_prob"),
    *("routed_scaling_factor", "first_k_dense_replace", "mlp_layer_types", "moe_layer_freq"),
    *("num_experts", "num_local_experts", "n_routed_experts", "num_experts_per_tok"),
    *("time_step_limit", "mamba_n_heads", "mamba_d_state", "no_rope_layers", "conv_L_cache"),
]
_SCALINGS = [value for value in VALUES if isinstance(value, dict) and "rope_type" in value]


def places(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a JSON value; of lists, the first."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def hostile(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """config.json with another value somewhere; with a scaling of RoPE, two."""
    here = [*places(config), *((key,) for key in KEYS if key not in config)]
    for path, value in itertools.product(here, VALUES):
        changed = copy.deepcopy(config)
        inner = changed
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = value
        yield changed
    for scaling, key, value in itertools.product(_SCALINGS, ("head_dim", "hidden_size"), VALUES):
        yield config | {"rope_parameters": scaling, key: value}


def refusal(config: dict[str, Any]) -> str | None:
    """What is said of a folder with this config.json; None if it can be read further."""
    try:
        translate(Metadata("config.json", config))
    except FormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("model_type", MODEL_TYPES)
@pytest.mark.parametrize("every", [41, pytest.param(5, marks=pytest.mark.fuzz)])
def test_a_hostile_config_is_refused_by_name_or_translated(model_type: str, every: int) -> None:
    """every: of so many changes, one is tried."""
    config = config_of(model_type)
    assert refusal(config) is None
    refused = 0
    with limited_memory(64 * 2**20), np.errstate(all="raise"):
        for changed in itertools.islice(hostile(config), 0, None, every):
            started = time.process_time()
            said = refusal(changed)
            assert time.process_time() - started < 1.0, changed
            if said is not None:
                assert said.startswith("config.json: "), said
                assert len(said) < 2000, said  # which names each model_type
                refused += 1
    assert refused > len(KEYS) // every
