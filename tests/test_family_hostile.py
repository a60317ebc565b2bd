"""Whatever the header of an architecture's file says, it is refused by name, or it computes."""

import itertools
import time
from collections.abc import Iterator

import numpy as np
import pytest
from family_models import (
    ARCHITECTURES,
    EVERY_ARCHITECTURE,
    described,
    metadata_of,
    shapes,
    whole_key,
)
from traced_memory import limited_memory

from airllm.models import FAMILIES, load_model
from airllm.util.metadata import FormatError
from airllm.weights.layer_weights import check_tensors

Shapes = dict[str, tuple[int, ...]]

VALUES = [
    *(-1, 0, 1, 3, 2**31, 2**63, -(2**63)),
    *(-0.5, 0.0, 1e-30, 1e30, float("inf"), float("nan")),
    *("", "yarn", "none", True, False, [], ["a"]),
    np.zeros(3, np.float32),
    np.arange(2**12, dtype=np.int32),
]
# What any family may read, beside what its model here has.
KEYS = [
    *("block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size"),
    *("attention.head_count", "attention.head_count_kv", "attention.key_length"),
    *("attention.value_length", "attention.scale", "attention.sliding_window"),
    *("attention.sliding_window_pattern", "attention.causal", "attention.temperature_scale"),
    *("rope.dimension_count", "rope.freq_base", "rope.freq_base_swa", "rope.scaling.type"),
    *("rope.scaling.factor", "rope.scaling.original_context_length", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
    *("rope.scaling.yarn_log_multiplier", "logit_scale", "embedding_scale", "residual_scale"),
    *("expert_count", "expert_used_count", "expert_feed_forward_length", "expert_gating_func"),
    *("expert_weights_scale", "expert_weights_norm", "expert_group_count", "expert_shared_count"),
    *("expert_group_used_count", "leading_dense_block_count", "nextn_predict_layers"),
    *(
        "expert_shared_feed_forward_length",
        "attention.key_length_swa",
        "attention.value_length_swa",
    ),
    *("rope.dimension_count_swa", "attention.shared_kv_layers", "embedding_length_per_layer_input"),
]


def hostile(architecture: str) -> Iterator[tuple[str, object]]:
    own = [key.removeprefix(f"{architecture}.") for key in metadata_of(architecture)]
    for key in dict.fromkeys([*KEYS, *own]):
        if not key.startswith("general."):
            yield from ((key, value) for value in VALUES)


def refusal(architecture: str, key: str, value: object, tensors: Shapes) -> str | None:
    """What is said of a file with this value; None if it computes."""
    entries = metadata_of(architecture) | {whole_key(architecture, key): value}
    try:
        file = described(entries, tensors)
        check_tensors(file, load_model(file, with_next_head=True))
    except FormatError as error:
        return str(error)
    return None


@pytest.mark.parametrize("architecture", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("every", [11, pytest.param(3, marks=pytest.mark.fuzz)])
def test_a_hostile_key_is_refused_by_name_or_it_computes(architecture: str, every: int) -> None:
    """every: of so many pairs of key and value, one is tried; others for the next architecture."""
    tensors = shapes(architecture, metadata_of(architecture))
    refused = 0
    with limited_memory(64 * 2**20):
        begin = list(ARCHITECTURES).index(architecture) % every
        for key, value in itertools.islice(hostile(architecture), begin, None, every):
            started = time.process_time()
            said = refusal(architecture, key, value, tensors)
            assert time.process_time() - started < 1.0, (key, value)
            if said is not None:
                named = ("tiny: tensor ", f"tiny: {architecture}.", "tiny: xielu.")
                assert said.startswith(named), said
                refused += 1
    assert refused > len(KEYS) // every


def test_every_architecture_is_attacked() -> None:
    assert set(ARCHITECTURES) == set(FAMILIES)
